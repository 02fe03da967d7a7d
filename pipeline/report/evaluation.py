"""Draw what an evaluation gave: the confusion matrix, calibration, and the mistakes made with the most confidence.

Written to a folder: confusion.png, confusion.svg, calibration.png, calibration.svg and mistakes.png.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.figures import COLOURS, STYLE, save
from pipeline.files import written_whole
from pipeline.options.flags import read_flags
from pipeline.options.training import EvaluationOptions
from pipeline.report.gallery import Cell, gallery, images_at

NAMED_CLASSES = 40
"""Most classes whose names have room beside a confusion matrix."""
MISTAKES, COLUMNS = 24, 4
"""Most mistakes that are shown, and images in a row."""


def confusion_matrix(confusion: pd.DataFrame) -> plt.Figure:
    """Rows: the class an image has; columns: the class predicted; shade: share of the row."""
    share = confusion.to_numpy() / confusion.to_numpy().sum(1, keepdims=True).clip(1)
    side = min(max(4.4, 0.5 * len(confusion)), 20)
    figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
    axes.grid(visible=False)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    names = [str(name) for name in confusion.index]
    if len(names) <= NAMED_CLASSES:
        axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 3 else 0)
        axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("class")
    if len(names) <= 20:
        for (row, column), count in np.ndenumerate(confusion.to_numpy()):
            if count:
                axes.text(column, row, count, ha="center", va="center", color="white" if share[row, column] > 0.5 else "black")
    return figure


def calibration(bins: pd.DataFrame, summary: dict) -> plt.Figure:
    """Accuracy over the probability of what is predicted, beside a net that is right as often as it says; and images below."""
    filled = bins[bins.images > 0]
    figure, (shares, counts) = plt.subplots(2, 1, figsize=(6.4, 7.2), sharex=True, height_ratios=(2.2, 1), layout="constrained")
    middles, width = 50 * (bins.low + bins.high), 100 * (bins.high - bins.low)
    shares.plot([0, 100], [0, 100], color="black", linestyle="--", linewidth=1.5, label="as often right as it says")
    look = {"color": COLOURS[5], "edgecolor": COLOURS[0]}
    shares.bar(middles, 100 * bins.accuracy.fillna(0), 0.92 * width, label="accuracy of the images of a bin", **look)
    look = {"color": COLOURS[1], "marker": "o", "markersize": 7, "linestyle": ""}
    shares.plot(100 * filled.mean_probability, 100 * filled.accuracy, label="at their mean probability", **look)
    shares.set(xlim=(0, 100), ylim=(0, 104), ylabel="accuracy, %")
    figure.legend(loc="outside lower center", ncols=2, fontsize=11)
    shares.set_title(
        f"accuracy {summary['accuracy']:.1%}, mean probability {summary['mean_probability']:.1%},\n"
        f"calibration error {summary['calibration_error']:.1%}, log loss {summary['log_loss']:.3g}",
        fontsize=12,
    )
    bars = counts.bar(middles, bins.images, 0.92 * width, color=COLOURS[0])
    counts.bar_label(bars, [f"{count}" if count else "" for count in bins.images], fontsize=11, padding=1)
    counts.set(ylabel="images", xlabel="probability of what is predicted, %", ylim=(0, 1.18 * bins.images.max()))
    counts.set_xticks(range(0, 101, 20))
    return figure


def mistakes(predictions: pd.DataFrame, database: Path) -> plt.Figure:
    """The wrong predictions of the highest probability, with the records' images, what they are and what they are taken for."""
    wrong = predictions[predictions["rank"] > 1]
    if wrong.empty:
        figure = plt.figure(figsize=(6.4, 1.6))
        words = f"No mistakes: each of {len(predictions)} images is taken for what it is."
        figure.text(0.5, 0.5, words, ha="center", va="center", fontsize=13)
        return figure
    worst = wrong.sort_values("probability", ascending=False, kind="stable")[:MISTAKES]
    images = images_at(database, worst.index)
    if len(images) < len(worst):
        raise InputError(database, "fewer records than predictions", do="give the database that was evaluated")
    cells = [Cell(images[row.Index], (row.label, f"→ {row.predicted}", f"{row.probability:.1%}")) for row in worst.itertuples()]
    rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    shown = f"the {MISTAKES} surest of {len(wrong)} mistakes" if len(wrong) > MISTAKES else f"{len(wrong)} mistakes"
    return gallery(rows, f"{shown} in {len(predictions)} images:\nthe class it has, → what is predicted, and its probability")


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, EvaluationOptions)
    parser.add_argument("evaluation", type=Path, help="the folder that the evaluate step wrote")
    parser.add_argument("database", type=Path, help="the LMDB that was evaluated")
    parser.add_argument("folder", type=Path)
    a = parser.parse_args(argv)
    suffix = read_flags(a, EvaluationOptions).suffix
    if not (a.evaluation / "predictions.csv").is_file():
        raise InputError(
            a.evaluation, "no predictions.csv", "it is the evaluate step's folder", "run that first, or correct the path"
        )
    plt.rcParams.update(STYLE)
    text = dict.fromkeys(("path", "label", "predicted"), str)  # classes may be called 1, or NA
    predictions = pd.read_csv(a.evaluation / "predictions.csv", dtype=text, keep_default_na=False)
    confusion = pd.read_csv(a.evaluation / "confusion.csv", index_col=0, dtype={"class": str}, keep_default_na=False)
    summary = json.loads((a.evaluation / "summary.json").read_text())
    save(confusion_matrix(confusion), a.folder / f"confusion{suffix}")
    save(calibration(pd.read_csv(a.evaluation / "calibration.csv"), summary), a.folder / f"calibration{suffix}")
    with written_whole(a.folder / f"mistakes{suffix}.png") as part:
        mistakes(predictions, a.database).savefig(part, format="png", dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    run(main)

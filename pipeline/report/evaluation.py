"""Draw an evaluation: confusion matrix, calibration (reliability diagram), and the most confident mistakes.

Written to a folder: confusion.png, confusion.svg, calibration.png, calibration.svg and mistakes.png.
"""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.figures import COLOURS, STYLE, save
from pipeline.files import written_whole
from pipeline.formats.tables import read_json, read_table
from pipeline.options.flags import read_flags
from pipeline.options.training import EvaluationOptions
from pipeline.report.gallery import Cell, gallery, images_at

NAMED_CLASSES = 40
"""Most classes that are named at a confusion matrix."""
MISTAKES, COLUMNS = 24, 4
"""Most misclassified images shown, and images per row."""


def confusion_matrix(confusion: pd.DataFrame) -> Figure:
    """Rows: true class; columns: predicted class; shade: share of the row."""
    share = confusion.to_numpy() / confusion.to_numpy().sum(1, keepdims=True).clip(1)
    side = min(max(4.4, 0.5 * len(confusion)), 20)
    figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
    axes.grid(visible=False)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    names = [str(name) for name in confusion.index]
    if len(names) <= NAMED_CLASSES:
        axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 3 else 0)
        axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="class")
    if len(names) <= 20:
        for (row, column), count in np.ndenumerate(confusion.to_numpy()):
            if count:
                axes.text(column, row, count, ha="center", va="center", color="white" if share[row, column] > 0.5 else "black")
    return figure


def calibration(bins: pd.DataFrame, summary: dict[str, Any]) -> Figure:
    """Reliability diagram: accuracy over the probability of the predicted class, and the number of images below."""
    filled = bins[bins.images > 0]
    figure, (shares, counts) = plt.subplots(2, 1, figsize=(6.4, 7.2), sharex=True, height_ratios=(2.2, 1), layout="constrained")
    middles, width = 50 * (bins.low + bins.high), 100 * (bins.high - bins.low)
    shares.plot([0, 100], [0, 100], color="black", linestyle="--", linewidth=1.5, label="perfect calibration")
    accuracies, colours = 100 * bins.accuracy.fillna(0), {"color": COLOURS[5], "edgecolor": COLOURS[0]}
    shares.bar(middles, accuracies, 0.92 * width, label="accuracy of the images of a bin", **colours)
    points = 100 * filled.mean_probability, 100 * filled.accuracy
    shares.plot(*points, "o", color=COLOURS[1], markersize=7, label="at their mean probability")
    shares.set(xlim=(0, 100), ylim=(0, 104), ylabel="accuracy, %")
    figure.legend(loc="outside lower center", ncols=2, fontsize=11)
    first = f"accuracy {summary['accuracy']:.1%}, mean probability {summary['mean_probability']:.1%},"
    second = f"calibration error {summary['calibration_error']:.1%}, log loss {summary['log_loss']:.3g}"
    shares.set_title(f"{first}\n{second}", fontsize=12)
    bars = counts.bar(middles, bins.images, 0.92 * width, color=COLOURS[0])
    counts.bar_label(bars, [f"{count}" if count else "" for count in bins.images], fontsize=11, padding=1)
    counts.set(ylabel="images", xlabel="probability of the predicted class, %", ylim=(0, 1.18 * bins.images.max()))
    counts.set_xticks(range(0, 101, 20))
    return figure


def mistakes(predictions: pd.DataFrame, database: Path) -> Figure:
    """The misclassified images of the highest probability, with true class and predicted class."""
    wrong = predictions[predictions["rank"] > 1]
    if wrong.empty:
        figure = plt.figure(figsize=(6.4, 1.6))
        text = f"No mistakes: all {len(predictions)} images are classified correctly."
        figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=13)
        return figure
    worst = wrong.sort_values("probability", ascending=False, kind="stable")[:MISTAKES]
    images = images_at(database, worst.index)
    if len(images) < len(worst):
        raise InputError(database, "fewer records than predictions", do="give the database that was evaluated")
    cells = [Cell(images[row.Index], (row.label, f"→ {row.predicted}", f"{row.probability:.1%}")) for row in worst.itertuples()]
    rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    title = f"the {MISTAKES} most confident of {len(wrong)} mistakes" if len(wrong) > MISTAKES else f"{len(wrong)} mistakes"
    return gallery(rows, f"{title} in {len(predictions)} images:\ntrue class, → predicted class, and its probability")


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, EvaluationOptions)
    parser.add_argument("evaluation", type=Path, help="the folder that the evaluate step wrote")
    parser.add_argument("database", type=Path, help="the LMDB that was evaluated")
    parser.add_argument("folder", type=Path)
    a = parser.parse_args(argv)
    suffix = read_flags(a, EvaluationOptions).suffix
    if not (a.evaluation / "predictions.csv").is_file():
        do = "run the evaluate step first, or correct the path"
        raise InputError(a.evaluation, "no predictions.csv", "it is in the evaluate step's folder", do)
    plt.rcParams.update(STYLE)
    text = dict.fromkeys(("path", "label", "predicted"), str)  # classes may be called 1, or NA
    numbers, table = ("probability", "rank"), a.evaluation / "confusion.csv"
    predictions = read_table(a.evaluation / "predictions.csv", numbers, dtype=text, keep_default_na=False)
    confusion = read_table(table, index_col=0, dtype={"class": str}, keep_default_na=False)
    summary = read_json(a.evaluation / "summary.json", "accuracy", "mean_probability", "calibration_error", "log_loss")
    bins = read_table(a.evaluation / "calibration.csv", ("low", "high", "images", "mean_probability", "accuracy"))
    save(confusion_matrix(confusion), a.folder / f"confusion{suffix}")
    save(calibration(bins, summary), a.folder / f"calibration{suffix}")
    with written_whole(a.folder / f"mistakes{suffix}.png") as part:
        mistakes(predictions, a.database).savefig(part, format="png", dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    run(main)

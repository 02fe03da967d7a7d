"""The report's first page: each experiment's accuracy, curves, confusion and worst mistakes, and what to look at next.

Written as a part of a page in HTML, with its pictures inside, made smaller.
"""

import base64
import html
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.formats.tables import read_table
from pipeline.report.plots import read_metrics

WIDTH = 480
"""Pixels of a picture's longer side, at most."""
SHOWN = 12
"""Most experiments with pictures, the best of each dataset first; of others there is the text alone."""
CHANCE = 1.5
"""An accuracy below this many times that of guessing is none."""
WEAK = 0.1
"""A class is weak if its accuracy is so much below that of all images."""
NAMES: dict[str, Any] = {
    "dtype": {"class": str},
    "keep_default_na": False,
    "na_values": {name: [""] for name in ("accuracy", "precision", "f1")},
}
"""How tables are read that have a column of class names: 7 and NA are names, not a number and a missing value."""
STYLE = """
.overview { max-width: 72rem; line-height: 1.5; margin-bottom: 2rem }
.overview td, .overview h2, .overview li { overflow-wrap: anywhere }
.overview th { vertical-align: bottom }
.overview table { border-collapse: collapse; margin: 1rem 0; width: 100% }
.overview th, .overview td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ccc; vertical-align: top }
.overview td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
.overview .bar { display: block; height: .35rem; background: #4477aa; border-radius: 2px }
.overview h2 { font-size: 1.3rem; font-weight: 600; margin: 1.5rem 0 .3rem }
.overview .pictures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start }
.overview figure { margin: 0; flex: 1 1 14rem; max-width: 30rem }
.overview figure img { width: 100%; background: white }
.overview ul { list-style: disc; margin: .3rem 0 .8rem 1.2rem }
@media (max-width: 40rem) {
  .overview table { font-size: .8rem }
  .overview th, .overview td { padding: .3rem .25rem }
  .overview td.number { width: 1% }
}
"""


def picture(path: Path, caption: str) -> str:
    """A figure that holds the picture, reduced to WIDTH; of a tall one, its upper part."""
    pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise InputError(path, "not a picture", do="build it again with --forcerun evaluated plots")
    height, width = pixels.shape[:2]
    pixels = pixels[: max(1, int(1.6 * width))]
    if (factor := WIDTH / max(pixels.shape[:2])) < 1:
        size = max(1, round(width * factor)), max(1, round(len(pixels) * factor))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    encoded = base64.b64encode(cv2.imencode(".png", pixels)[1].tobytes()).decode()
    cut = " (upper part)" if height > int(1.6 * width) else ""
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{encoded}"><figcaption>{text}{cut}</figcaption></figure>'


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def most_confused(confusion: pd.DataFrame, label: str) -> tuple[str, int] | None:
    """The class that images of a class are most often taken for, and how many; None if all are right.

    confusion  counts by class (rows) and prediction (columns), with a column `class`
    """
    row = confusion[confusion["class"] == label].drop(columns="class").iloc[0].drop(label)
    return (str(row.idxmax()), int(row.max())) if len(row) and row.max() > 0 else None


def advice(row: Any, classes: pd.DataFrame, confusion: pd.DataFrame, metrics: pd.DataFrame) -> list[str]:
    """What to look at next, as sentences: of an experiment that learned nothing, overfits, still improves, or has a weak class.

    row      of comparison.csv
    classes  per_class.csv: class, images, accuracy
    metrics  metrics.csv
    """
    if pd.isna(row.accuracy):
        return [f"Its training {row.note}: lower base_lr, or use clip_gradients."]
    found = []
    if row.accuracy < CHANCE / len(classes):
        found.append(
            f"It is hardly better than guessing among {len(classes)} classes: see its preflight, or try another base_lr."
        )
    tests = metrics.dropna(subset=["test_accuracy"])
    if row.best_accuracy - row.accuracy > 0.005:
        best = int(tests.iteration[tests.test_accuracy.idxmax()])
        found.append(f"It was best at iteration {best}, with {percent(row.best_accuracy)}: best.caffemodel has these weights.")
    elif len(tests) > 3 and tests.test_accuracy.iloc[-1] - tests.test_accuracy.iloc[-1 - len(tests) // 4] > 0.005:
        found.append("Its accuracy was still rising at the end: a larger max_iter may help.")
    losses = metrics.dropna(subset=["loss"]).loss
    if "test_loss" in tests and len(tests) and len(losses) and tests.test_loss.iloc[-1] > 2 * losses.tail(5).mean() + 0.1:
        ratio = tests.test_loss.iloc[-1] / max(losses.tail(5).mean(), 1e-6)
        found.append(f"Its loss in testing is {ratio:.1f} times that in training, so it overfits: more images, or augmentation.")
    weakest = classes.loc[classes.accuracy.idxmin()]
    if row.accuracy - weakest.accuracy > WEAK:
        label = weakest["class"]
        text = f"Of class {label}, {percent(weakest.accuracy)} of {int(weakest.images)} images are right"
        if pair := most_confused(confusion, label):
            text += f"; {pair[1]} of them taken for {pair[0]}"
        found.append(f"{text}: look at its contact sheet, and at the surest mistakes.")
    return found or [nothing_to_improve(classes, confusion)]


def nothing_to_improve(classes: pd.DataFrame, confusion: pd.DataFrame) -> str:
    """The advice for an experiment without a fault: its most frequent mistake, if it makes any."""
    pairs = [(pair[1], label, pair[0]) for label in classes["class"] if (pair := most_confused(confusion, label))]
    if not pairs:
        return "No image is classified wrongly: only more, or harder, validation images can tell more."
    count, label, other = max(pairs)
    images = "1 image" if count == 1 else f"{count} images"
    return f"Nothing stands out. Its most frequent mistake is {label} taken for {other} ({images}); see the surest mistakes."


def result_of(row: Any) -> str:
    return str(row.note) if pd.isna(row.accuracy) else percent(row.accuracy)


def table_line(row: Any) -> str:
    """An experiment in the table: its result, with a bar of its accuracy."""
    bar = "" if pd.isna(row.accuracy) else f'<span class="bar" style="width: {100 * row.accuracy:.1f}%"></span>'
    name, dataset, result = (html.escape(str(text)) for text in (row.experiment, row.dataset, result_of(row)))
    return (
        f'<tr><td><a href="#overview-{row.Index}">{name}</a></td><td>{dataset}</td><td class="number">{row.images:,}</td>'
        f"<td>{result}{bar}</td></tr>"
    )


def section(row: Any, found: list[str], pictures: list[Path]) -> str:
    """An experiment's part of the page: its result, what to look at, and its curves, confusion matrix and mistakes."""
    captions = ("curves", "confusion matrix", "surest mistakes")
    figures = "".join(picture(path, caption) for path, caption in zip(pictures, captions, strict=False))
    items = "".join(f"<li>{html.escape(text)}</li>" for text in found)
    title = html.escape(f"{row.experiment}: {result_of(row)}")
    return f'<h2 id="overview-{row.Index}">{title}</h2><ul>{items}</ul><div class="pictures">{figures}</div>'


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--table", type=Path, required=True, help="comparison.csv")
    parser.add_argument("--plot", type=Path, required=True, help="comparison.png")
    for name in ("metrics", "classes", "confusions", "curves", "matrices", "mistakes"):
        parser.add_argument(
            f"--{name}", nargs="+", type=Path, required=True, help="a file of each experiment, in the table's order"
        )
    a = parser.parse_args(argv)
    table = read_table(a.table, ["accuracy", "images"])
    ranks = table.groupby("dataset").accuracy.rank(ascending=False, method="first", na_option="bottom")
    shown = set(ranks.sort_values(kind="stable").index[:SHOWN])
    lines, sections = [], []
    files = zip(a.metrics, a.classes, a.confusions, a.curves, a.matrices, a.mistakes, strict=True)
    for row, (metrics, classes, confusion, *pictures) in zip(table.itertuples(), files, strict=True):
        found = advice(
            row, read_table(classes, ["images", "accuracy"], **NAMES), read_table(confusion, **NAMES), read_metrics(metrics)
        )
        lines.append(table_line(row))
        sections.append(section(row, found, pictures if row.Index in shown else []))
    head = "<tr><th>Experiment</th><th>Dataset</th><th>Validation images</th><th>Accuracy</th></tr>"
    page = f'<style>{STYLE}</style><div class="overview"><table>{head}{"".join(lines)}</table>'
    page += f'<div class="pictures">{picture(a.plot, "validation accuracy over iterations")}</div>{"".join(sections)}</div>\n'
    with written_whole(a.output) as part:
        part.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    run(main)

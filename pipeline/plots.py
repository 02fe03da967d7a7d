"""Draw what an experiment's training gave, as PNG and SVG, and how a confusion matrix looks."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from pipeline.command import run
from pipeline.errors import InputError
from pipeline.files import written_whole

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]  # told apart by colour-blind readers too
STYLE = {
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.hashsalt": "roastery",  # the same drawing gives the same bytes
    "axes.prop_cycle": plt.cycler(color=COLOURS),
}


NAMED_CLASSES = 40
"""Most classes whose names have room beside a confusion matrix."""


def read_metrics(path: Path) -> pd.DataFrame:
    """A metrics table of the train step."""
    table = pd.read_csv(path)
    missing = [name for name in ("iteration", "loss", "test_loss", "test_accuracy") if name not in table]
    if missing:
        raise InputError(path, f"no column {missing[0]}", "it is metrics.csv of the train step", "correct the path")
    if table.empty:
        raise InputError(path, "no metrics", do="set display and test_interval in the solver")
    return table


def curves(metrics: pd.DataFrame) -> plt.Figure:
    """Loss in training and testing, and test accuracy with its best marked, over iterations."""
    figure, (losses, accuracies) = plt.subplots(2, 1, figsize=(6.4, 6.4), sharex=True, layout="constrained")
    for column, label, marker in (("loss", "training", ""), ("test_loss", "validation", "o")):
        values = metrics.dropna(subset=column)
        losses.plot(values.iteration, values[column], marker=marker, markersize=4, label=label)
    losses.set_ylabel("loss")
    if (metrics[["loss", "test_loss"]].max() > 0).any():
        losses.set_yscale("log")
    losses.legend()
    tests = metrics.dropna(subset="test_accuracy")
    if len(tests):
        accuracies.plot(tests.iteration, 100 * tests.test_accuracy, marker="o", markersize=4, color=COLOURS[1])
        best = tests.loc[tests.test_accuracy.idxmax()]
        accuracies.annotate(
            f"best {100 * best.test_accuracy:.1f} % at {best.iteration:.0f}",
            (best.iteration, 100 * best.test_accuracy),
            xytext=(0, -24),
            textcoords="offset points",
            ha="right" if best.iteration > metrics.iteration.max() / 2 else "left",
            arrowprops={"arrowstyle": "-", "alpha": 0.5},
        )
    accuracies.set_ylabel("validation accuracy, %")
    accuracies.set_xlabel("iteration")
    return figure


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


def save(figure: plt.Figure, stem: Path) -> None:
    """Write a figure as STEM.png and STEM.svg, whole, without dates."""
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        with written_whole(stem.with_suffix(f".{kind}")) as part:
            figure.savefig(part, format=kind, dpi=130, metadata=metadata)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--metrics", type=Path, required=True, help="metrics.csv of the train step")
    a = parser.parse_args(argv)
    plt.rcParams.update(STYLE)
    save(curves(read_metrics(a.metrics)), a.folder / "curves")


if __name__ == "__main__":
    run(main)

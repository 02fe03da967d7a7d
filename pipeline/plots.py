"""Draw what training gave, as PNG and SVG, and the table that compares experiments."""

from __future__ import annotations

import argparse
import json
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


def comparison(metrics: dict[str, pd.DataFrame], table: pd.DataFrame) -> plt.Figure:
    """Validation accuracy over iterations, a panel for each dataset and a line for each experiment on it."""
    datasets = list(dict.fromkeys(table.dataset))
    figure, panels = plt.subplots(1, len(datasets), figsize=(5.2 * len(datasets), 4.2), squeeze=False, layout="constrained")
    for dataset, axes in zip(datasets, panels[0], strict=True):
        for _, row in table[table.dataset == dataset].iterrows():
            tests = metrics[row.experiment].dropna(subset="test_accuracy")
            label = f"{row.experiment}: {100 * row.accuracy:.1f} %"
            axes.plot(tests.iteration, 100 * tests.test_accuracy, marker="o", markersize=3, label=label)
        axes.set_title(dataset)
        axes.set_xlabel("iteration")
        axes.set_ylabel("validation accuracy, %")
        axes.set_ylim(0, 102)
        axes.legend(loc="lower right")
    return figure


def comparison_table(
    names: list[str], datasets: list[str], summaries: list[Path], metrics: dict[str, pd.DataFrame]
) -> pd.DataFrame:
    """One row an experiment: experiment, dataset, images (validation), accuracy, best_accuracy, iterations, seconds."""
    rows = []
    for name, dataset, path in zip(names, datasets, summaries, strict=True):
        summary, measured = json.loads(path.read_text()), metrics[name]
        rows.append(
            {
                "experiment": name,
                "dataset": dataset,
                "images": summary["images"],
                "accuracy": round(summary["accuracy"], 4),
                "best_accuracy": round(float(measured.test_accuracy.max()), 4),
                "iterations": int(measured.iteration.max()),
                "seconds": round(float(measured.seconds.max()), 1),
            }
        )
    return pd.DataFrame(rows)


def save(figure: plt.Figure, stem: Path) -> None:
    """Write a figure as STEM.png and STEM.svg, whole, without dates."""
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        with written_whole(stem.with_suffix(f".{kind}")) as part:
            figure.savefig(part, format=kind, dpi=130, metadata=metadata)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    one = commands.add_parser("experiment", help="curves of one experiment's training")
    one.add_argument("folder", type=Path)
    one.add_argument("--metrics", type=Path, required=True)
    several = commands.add_parser("comparison", help="table and plot of several experiments")
    several.add_argument("folder", type=Path)
    several.add_argument("--names", nargs="+", required=True)
    several.add_argument("--datasets", nargs="+", required=True, help="each experiment's dataset")
    several.add_argument("--metrics", nargs="+", type=Path, required=True)
    several.add_argument("--summaries", nargs="+", type=Path, required=True)
    a = parser.parse_args(argv)
    plt.rcParams.update(STYLE)
    if a.what == "experiment":
        save(curves(read_metrics(a.metrics)), a.folder / "curves")
        return
    metrics = {name: read_metrics(path) for name, path in zip(a.names, a.metrics, strict=True)}
    table = comparison_table(a.names, a.datasets, a.summaries, metrics)
    save(comparison(metrics, table), a.folder / "comparison")
    with written_whole(a.folder / "comparison.csv") as part:
        table.to_csv(part, index=False)


if __name__ == "__main__":
    run(main)

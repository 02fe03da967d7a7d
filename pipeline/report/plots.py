"""Draw an experiment's learning curves: loss, accuracy and learning rate."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.figures import COLOURS, STYLE, save
from pipeline.formats.tables import read_table


def read_metrics(path: Path) -> pd.DataFrame:
    """A metrics table of the train step; tests with a NaN loss, whose images Caffe counts as correct, have no accuracy."""
    if not path.is_file():
        raise InputError(path, "no such table", "it is metrics.csv of the train step", "train first, or correct the path")
    table = read_table(path, ("iteration", "loss", "learning_rate", "test_loss", "test_accuracy"))
    if table.empty:
        raise InputError(path, "no metrics", do="set display and test_interval in the solver")
    table = table.replace([np.inf, -np.inf], np.nan)
    if table.test_loss.notna().any():
        table.loc[table.test_loss.isna(), [name for name in table if name.startswith("test_accuracy")]] = np.nan
    return table


def curves(metrics: pd.DataFrame) -> Figure:
    """Training and validation loss and accuracy, with the best validation accuracy, and learning rate, over iterations.

    The losses are weighted sums over all heads, in validation of the columns test_loss, test_loss1, …. Accuracies are the column
    accuracy (of training), if there is one, and those whose names begin with test_accuracy.
    """
    figure = plt.figure(figsize=(5.6, 7.6), layout="constrained")
    losses, accuracies, rates = figure.subplots(3, sharex=True, height_ratios=[3, 3, 1.4])
    heads = [name for name in metrics if re.fullmatch(r"test_loss\d*", name)]
    series = {"training": metrics.loss, "validation": metrics[heads].sum(axis=1, skipna=False)}
    for (label, values), marker in zip(series.items(), ("", "o"), strict=True):
        measured = values.notna()
        losses.plot(metrics.iteration[measured], values[measured], marker=marker, markersize=4, label=label)
    losses.set_ylabel("loss")
    if any(values.max() > 0 for values in series.values()):
        losses.set_yscale("log")
        _format_log_axis(losses)
    losses.legend(title=f"weighted sum of {len(heads)} heads" if len(heads) > 1 else None)
    _draw_accuracies(accuracies, metrics)
    rate = metrics.dropna(subset="learning_rate")
    rates.plot(rate.iteration, rate.learning_rate, color="#555555", drawstyle="steps-post")
    if rate.learning_rate.min() > 0 and rate.learning_rate.max() > 9 * rate.learning_rate.min():
        rates.set_yscale("log")
        _format_log_axis(rates)
    else:
        rates.set_ylim(0)
        rates.yaxis.get_major_locator().set_params(nbins=3)
        rates.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    rates.set(xlabel="iteration", ylabel="learning rate")
    return figure


def _draw_accuracies(axes: Axes, metrics: pd.DataFrame) -> None:
    others = [name for name in metrics if name.startswith("test_accuracy") and name != "test_accuracy"]
    labels = {"accuracy": "training", "test_accuracy": "validation"}
    labels |= {name: f"validation, {name.removeprefix('test_accuracy').strip('_') or name}" for name in others}
    for colour, (column, label) in zip(COLOURS, labels.items(), strict=False):
        if column in metrics and metrics[column].notna().any():
            values = metrics.dropna(subset=column)
            marker = "" if column == "accuracy" else "o"
            axes.plot(values.iteration, 100 * values[column], marker=marker, markersize=4, color=colour, label=label)
    tests = metrics.dropna(subset="test_accuracy")
    if len(tests):
        best = tests.loc[tests.test_accuracy.idxmax()]
        text, point = f"best {100 * best.test_accuracy:.1f} % at {best.iteration:.0f}", (best.iteration, 100 * best.test_accuracy)
        side = "right" if best.iteration > metrics.iteration.max() / 2 else "left"
        line = {"arrowstyle": "-", "alpha": 0.5}
        axes.annotate(text, point, xytext=(0, -28), textcoords="offset points", ha=side, arrowprops=line)
    if len(axes.lines) > 1:
        axes.set_ylabel("accuracy, %")
        axes.legend(loc="lower right")
    else:
        axes.set_ylabel("validation accuracy, %")


def _format_log_axis(axes: Axes) -> None:
    """Plain numbers at a logarithmic y axis; between powers of ten only if there are few of those."""
    low, high = axes.get_ylim()
    few = np.log10(high / low) < 2.5
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5) if few else ()))
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}")


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--metrics", type=Path, required=True, help="metrics.csv of the train step")
    a = parser.parse_args(argv)
    plt.rcParams.update(STYLE)
    save(curves(read_metrics(a.metrics)), a.folder / "curves")


if __name__ == "__main__":
    run(main)

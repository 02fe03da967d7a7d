"""Compare experiments: a table and a plot of all of them, and of each sweep.

Written to a folder: comparison.csv, comparison.png and .svg; and for each sweep SWEEP.csv, its experiments with the values that
were swept, SWEEP.png and .svg.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipeline.command import run, step_parser
from pipeline.figures import COLOURS, STYLE, save
from pipeline.files import write_table, written_whole
from pipeline.formats.digests import SUMS, write_sums
from pipeline.formats.tables import read_json, read_table
from pipeline.options.flags import read_flags
from pipeline.options.training import ComparisonOptions
from pipeline.report.plots import read_metrics

REPEATED = ("dataset", "random_seed")
"""Swept keys whose values are repetitions, such as seeds, rather than choices."""
LINES = 12
"""Most curves per dataset that are distinguishable; of more experiments, the best are drawn."""


def draw_comparison(metrics: dict[str, pd.DataFrame], table: pd.DataFrame) -> Figure:
    """Validation accuracy over iterations: a panel per dataset, a line for each of its LINES best experiments (diverged last)."""
    datasets = list(dict.fromkeys(table.dataset))
    figure, panels = plt.subplots(len(datasets), 1, figsize=(5.6, 3.8 * len(datasets)), squeeze=False, layout="constrained")
    for dataset, axes in zip(datasets, panels[:, 0], strict=True):
        best = table[table.dataset == dataset].sort_values("accuracy", ascending=False, kind="stable").head(LINES).sort_index()
        for _, row in best.iterrows():
            tests = metrics[row.experiment].dropna(subset="test_accuracy")
            label = f"{row.experiment}: {row.get('note') or f'{100 * row.accuracy:.1f} %'}"
            axes.plot(tests.iteration, 100 * tests.test_accuracy, marker="o", markersize=3, label=label)
        axes.set(title=dataset, xlabel="iteration", ylabel="validation accuracy, %", ylim=(0, 102))
        axes.legend(loc="lower right", fontsize=12 if len(best) < 6 else 8)
    return figure


def comparison_table(
    names: list[str], datasets: list[str], summaries: list[Path], metrics: dict[str, pd.DataFrame], bests: list[Path]
) -> pd.DataFrame:
    """A row per experiment: experiment, dataset, images (validation), accuracy, best_accuracy, iterations.

    A diverged experiment has no accuracies; if there is one, a column `note` gives its iteration, from best.json.
    """
    rows = []
    for name, dataset, path, best in zip(names, datasets, summaries, bests, strict=True):
        summary, measured = read_json(path, "accuracy", "images"), metrics[name]
        diverged = read_json(best).get("diverged")
        accuracies, note = [round(summary["accuracy"], 4), round(float(measured.test_accuracy.max()), 4)], ""
        if diverged is not None:
            accuracies, note = [np.nan, np.nan], f"diverged at iteration {diverged}"
        rows.append((name, dataset, summary["images"], *accuracies, int(measured.iteration.max()), note))
    columns = ["experiment", "dataset", "images", "accuracy", "best_accuracy", "iterations", "note"]
    table = pd.DataFrame(rows, columns=columns)
    return table if table.note.any() else table.drop(columns="note")


def sweep_table(table: pd.DataFrame, keys: list[str], members: dict[str, list[object]]) -> pd.DataFrame:
    """The rows of a sweep's experiments, with a column for each swept key after the name."""
    values = pd.DataFrame([(name, *swept) for name, swept in members.items()], columns=["experiment", *keys])
    return values.merge(table.drop(columns=keys, errors="ignore"), on="experiment")


def draw_sweep(table: pd.DataFrame, keys: list[str]) -> Figure:
    """A row for each combination of choices: a point for each repetition, and their mean."""
    choices = [key for key in keys if key not in REPEATED]
    names = table[choices].apply(_combination, axis=1) if choices else pd.Series("all", index=table.index)
    rows = list(dict.fromkeys(names))
    width = 8.4 if table.accuracy.isna().any() else 6.4  # room for notes
    figure, axis = plt.subplots(figsize=(width, 1.4 + 0.42 * len(rows)), layout="constrained")
    for number, row in enumerate(rows):
        repetitions = table[names == row]
        accuracies = 100 * repetitions.accuracy.dropna().to_numpy()
        axis.scatter(accuracies, np.full(len(accuracies), number), color=COLOURS[0], alpha=0.6, zorder=3)
        notes = []
        if len(accuracies):
            mean = accuracies.mean()
            axis.plot([mean, mean], [number - 0.3, number + 0.3], color=COLOURS[1], linewidth=2.5, zorder=4)
            notes.append(f"{mean:.1f}")
        if len(diverged := repetitions[repetitions.accuracy.isna()]):
            notes.append(diverged.note.iloc[0] if len(repetitions) == 1 else f"{len(diverged)} of {len(repetitions)} diverged")
        axis.annotate(", ".join(notes), (1.01, number), xycoords=("axes fraction", "data"), va="center", color=COLOURS[1])
    axis.set_yticks(range(len(rows)), rows)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    repeated = [key for key in keys if key in REPEATED]
    each = f"; a point for each {' and '.join(key.replace('_', ' ') for key in repeated)}, the mean as a bar" if repeated else ""
    axis.set_xlabel(f"validation accuracy, %{each}", fontsize=11)
    if choices:
        axis.set_title(", ".join(choices), loc="left", fontsize=11)
    return figure


def _combination(values: pd.Series) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values.dropna())


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, ComparisonOptions)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--metrics", nargs="+", type=Path, required=True)
    parser.add_argument("--summaries", nargs="+", type=Path, required=True)
    parser.add_argument("--bests", nargs="+", type=Path, required=True, help="best.json of each train step")
    parser.add_argument("--seconds", nargs="+", type=Path, required=True, help="seconds.csv of each train step")
    a = parser.parse_args(argv)
    options = read_flags(a, ComparisonOptions)
    plt.rcParams.update(STYLE)
    metrics = {name: read_metrics(path) for name, path in zip(options.names, a.metrics, strict=True)}
    table = comparison_table(options.names, options.datasets, a.summaries, metrics, a.bests)
    save(draw_comparison(metrics, table), a.folder / "comparison")
    tables = {"comparison": table} | {name: sweep_table(table, **sweep) for name, sweep in options.sweeps.items()}
    for name, sweep in options.sweeps.items():
        save(draw_sweep(tables[name], sweep["keys"]), a.folder / name)
    for name, rows in tables.items():
        with written_whole(a.folder / f"{name}.csv") as part:
            rows.to_csv(part, index=False)
    with written_whole(a.folder / SUMS) as part:
        write_sums(part, {f"{name}.csv": a.folder / f"{name}.csv" for name in tables})
    with written_whole(a.folder / "seconds.csv") as part:
        seconds = [read_table(path, ["seconds"]).seconds.max() for path in a.seconds]
        write_table(part, ("experiment", "seconds"), zip(options.names, seconds, strict=True))


if __name__ == "__main__":
    run(main)

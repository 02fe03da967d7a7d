"""Comparing experiments: the table, each sweep's table and picture, and the summary on the terminal."""

import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from pipeline.report.comparison import comparison_table, draw_comparison, draw_sweep, sweep_table
from tests.pipeline.report.test_plots import METRICS

TABLE = pd.DataFrame(
    {
        "experiment": ["tuned-full-a", "tuned-full-b", "tuned-half-a", "tuned-half-b", "other"],
        "dataset": ["a", "b", "a", "b", "a"],
        "accuracy": [0.5, 0.7, 0.9, 0.7, 0.1],
    }
)
MEMBERS = {name: name.split("-")[1:] for name in TABLE.experiment[:4]}


def test_the_table_has_the_final_and_the_best_accuracy(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"accuracy": 0.8, "images": 30}))
    (tmp_path / "best.json").write_text('{"diverged": null}')
    table = comparison_table(["e"], ["cats"], [tmp_path / "summary.json"], {"e": METRICS}, [tmp_path / "best.json"])
    assert table.iloc[0].to_dict() == {
        "experiment": "e",
        "dataset": "cats",
        "images": 30,
        "accuracy": 0.8,
        "best_accuracy": 0.9,
        "iterations": 10,
    }


LOST = TABLE.assign(
    accuracy=[None, None, 0.9, None, 0.1], note=["diverged at iteration 3"] * 2 + ["", "diverged at iteration 5", ""]
)


def test_a_diverged_experiment_is_listed_without_accuracies(tmp_path):
    paths = [tmp_path / f"{name}.json" for name in ("summary", "good", "lost")]
    for path, text in zip(paths, ('{"accuracy": 0.8, "images": 30}', '{"diverged": null}', '{"diverged": 7}'), strict=True):
        path.write_text(text)
    both = {"e": METRICS, "f": METRICS}
    table = comparison_table(["e", "f"], ["cats", "cats"], paths[:1] * 2, both, paths[1:])
    assert list(table.accuracy.isna()) == list(table.best_accuracy.isna()) == [False, True]
    assert list(table.note) == ["", "diverged at iteration 7"]
    figure = draw_comparison(both, table)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["e: 80.0 %", "f: diverged at iteration 7"]
    plt.close(figure)


def test_the_picture_of_a_sweep_marks_diverged_experiments():
    figure = draw_sweep(sweep_table(LOST, ["strategy", "dataset"], MEMBERS), ["strategy", "dataset"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["2 of 2 diverged", "90.0, 1 of 2 diverged"]
    one = draw_sweep(sweep_table(LOST, ["strategy"], {"tuned-full-a": ["full"]}), ["strategy"])
    assert [text.get_text() for text in one.axes[0].texts] == ["diverged at iteration 3"]
    plt.close("all")


def test_a_sweeps_table_has_its_experiments_and_their_values():
    table = sweep_table(TABLE, ["strategy", "dataset"], MEMBERS)
    assert list(table.columns) == ["experiment", "strategy", "dataset", "accuracy"]
    assert list(table.strategy) == ["full", "full", "half", "half"]
    assert list(table.accuracy) == [0.5, 0.7, 0.9, 0.7]


def test_a_sweep_is_drawn_with_a_row_for_each_choice_and_the_mean_of_its_repetitions():
    figure = draw_sweep(sweep_table(TABLE, ["strategy", "dataset"], MEMBERS), ["strategy", "dataset"])
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["full", "half"]
    assert [text.get_text() for text in axis.texts] == ["60.0", "80.0"]
    assert sorted(x for points in axis.collections for x in points.get_offsets()[:, 0]) == pytest.approx([50, 70, 70, 90])
    plt.close(figure)


def test_a_sweep_of_repetitions_only_has_one_row():
    table = sweep_table(TABLE, ["dataset"], {"tuned-full-a": ["a"], "tuned-full-b": ["b"]})
    figure = draw_sweep(table, ["dataset"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["60.0"]
    plt.close(figure)


def test_the_summary_has_a_line_for_each_experiment(tmp_path, command):
    (tmp_path / "results/report").mkdir(parents=True)
    row = {"experiment": "e", "dataset": "cats", "images": 30, "accuracy": 0.8}
    pd.DataFrame([row]).to_csv(tmp_path / "results/report/comparison.csv", index=False)
    done = command("pipeline.report.summary", "results")
    assert done.stdout.splitlines()[1].split() == ["e", "cats", "30", "80.0%"]
    lost = {**row, "accuracy": None, "note": "diverged at iteration 7"}
    pd.DataFrame([{**row, "note": ""}, lost]).to_csv(tmp_path / "results/report/comparison.csv", index=False)
    lines = command("pipeline.report.summary", "results").stdout.splitlines()
    assert lines[1].split()[-1] == "80.0%"
    assert lines[2].endswith("  diverged at iteration 7")


def test_a_summary_before_any_run_says_what_to_do(fails):
    fails(["comparison.csv", "run snakemake first"], "pipeline.report.summary", "results")

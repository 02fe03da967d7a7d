"""Plots of an experiment: there for every dataset, from two classes to thousands."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from pipeline.plots import confusion_matrix, save

METRICS = pd.DataFrame(
    {
        "iteration": [0, 5, 10],
        "seconds": [0.1, 0.2, 0.3],
        "loss": [1.1, 0.5, 0.2],
        "learning_rate": [0.1, 0.1, None],
        "test_loss": [1.1, None, 0.3],
        "test_accuracy": [0.3, None, 0.9],
    }
)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_a_confusion_matrix_is_drawn_for_any_number_of_classes(tmp_path, classes):
    names = [f"class {number}" for number in range(classes)]
    save(confusion_matrix(pd.DataFrame(np.eye(classes, dtype=int), index=names, columns=names)), tmp_path / "confusion")
    height, width, _ = plt.imread(tmp_path / "confusion.png").shape
    assert 500 < height < 3000
    assert 500 < width < 3000
    assert (tmp_path / "confusion.svg").read_text().lstrip().startswith("<?xml")


def test_the_same_numbers_give_the_same_files(trained, command):
    made = []
    for folder in ("first", "second"):
        done = command("pipeline.plots", folder, "--metrics", "out/metrics.csv")
        assert done.returncode == 0, done.stderr
        made.append({path.name: path.read_bytes() for path in (trained / folder).iterdir()})
    assert set(made[0]) == {"curves.png", "curves.svg"}
    assert made[0] == made[1]


def test_another_table_than_metrics_is_refused(fails, write):
    write("layers.csv", "layer,shapes,start,learned\nhidden,6,filled,True\n")
    said = ["layers.csv: no column iteration", "metrics.csv of the train step"]
    fails(said, "pipeline.plots", "out", "--metrics", "layers.csv")


def test_metrics_without_a_row_are_refused(fails, write):
    write("metrics.csv", ",".join(METRICS.columns) + "\n")
    fails(["metrics.csv", "no metrics"], "pipeline.plots", "out", "--metrics", "metrics.csv")

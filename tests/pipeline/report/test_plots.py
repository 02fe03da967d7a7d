"""Training curves: what they show, that they are reproducible, and which tables are refused."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from pipeline.figures import save
from pipeline.report.plots import curves, read_metrics

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


def test_curves_show_loss_accuracy_with_its_best_and_the_learning_rate():
    losses, accuracies, rates = curves(METRICS).axes
    assert [len(line.get_xdata()) for line in losses.lines] == [3, 2]
    assert losses.get_legend().get_title().get_text() == ""
    (line,) = accuracies.lines
    assert line.get_ydata().tolist() == [30, 90]
    assert [text.get_text() for text in accuracies.texts] == ["best 90.0 % at 10"]
    assert rates.lines[0].get_ydata().tolist() == [0.1, 0.1]
    plt.close("all")


def test_every_accuracy_that_was_measured_is_drawn():
    more = METRICS.assign(accuracy=[0.4, 0.6, 0.95], test_accuracy_top5=[0.5, None, 1.0], test_accuracy_side=[None] * 3)
    _, accuracies, _ = curves(more).axes
    drawn = {line.get_label(): line.get_ydata().tolist() for line in accuracies.lines}
    assert drawn == {"training": [40, 60, 95], "validation": [30, 90], "validation, top5": [50, 100]}
    assert [text.get_text() for text in accuracies.texts] == ["best 90.0 % at 10"]
    plt.close("all")


def test_losses_of_several_heads_are_drawn_as_their_weighted_sum():
    losses, *_ = curves(METRICS.assign(test_loss1=[0.3, None, 0.1], test_loss2=[0.4, None, 0.2])).axes
    drawn = {line.get_label(): line.get_ydata().tolist() for line in losses.lines}
    assert drawn == {"training": [1.1, 0.5, 0.2], "validation": pytest.approx([1.8, 0.6])}
    assert losses.get_legend().get_title().get_text() == "weighted sum of 3 heads"
    plt.close("all")


def test_a_plot_with_a_small_palette_keeps_white_and_its_colours(tmp_path):
    figure = curves(METRICS)
    save(figure, tmp_path / "curves")
    image = (plt.imread(tmp_path / "curves.png")[..., :3] * 255).round().astype(int)
    assert (image[0, 0] == 255).all()
    assert len(np.unique(image.reshape(-1, 3), axis=0)) <= 256
    assert (np.abs(image - (0xD5, 0x5E, 0x00)).max(2) < 12).sum() > 200
    assert (tmp_path / "curves.png").stat().st_size < 60_000


def test_the_same_metrics_give_the_same_files(trained, command):
    made = []
    for folder in ("first", "second"):
        done = command("pipeline.report.plots", folder, "--metrics", "out/metrics.csv")
        assert done.returncode == 0, done.stderr
        made.append({path.name: path.read_bytes() for path in (trained / folder).iterdir()})
    assert set(made[0]) == {"curves.png", "curves.svg"}
    assert made[0] == made[1]


def test_an_accuracy_with_a_nan_loss_is_left_out(tmp_path):
    diverged = METRICS.assign(loss=[1.1, 9e9, np.inf], test_loss=[1.1, None, np.nan], test_accuracy=[0.3, None, 1.0])
    diverged.to_csv(tmp_path / "metrics.csv", index=False)
    losses, accuracies, _ = curves(read_metrics(tmp_path / "metrics.csv")).axes
    assert losses.lines[0].get_ydata().tolist() == [1.1, 9e9]
    assert [text.get_text() for text in accuracies.texts] == ["best 30.0 % at 0"]
    plt.close("all")


def test_a_table_that_is_not_metrics_is_refused(fails, write):
    write("layers.csv", "layer,shapes,start,learned\nhidden,6,filled,True\n")
    said = ["layers.csv: no column iteration", "it has layer, shapes, start, learned; correct the path"]
    fails(said, "pipeline.report.plots", "out", "--metrics", "layers.csv")


def test_a_missing_table_is_named_with_the_step_that_writes_it(fails):
    fails(["gone.csv: no such table", "metrics.csv of the train step"], "pipeline.report.plots", "out", "--metrics", "gone.csv")


def test_metrics_without_rows_are_refused(fails, write):
    write("metrics.csv", ",".join(METRICS.columns) + "\n")
    fails(["metrics.csv", "no metrics"], "pipeline.report.plots", "out", "--metrics", "metrics.csv")

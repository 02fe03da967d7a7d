"""Training: what is written, what is reproducible, and how invalid or diverged trainings end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import caffe
from pipeline.options.training import TrainOptions
from pipeline.training.initial_weights import WeightFiles
from pipeline.training.train import Settings, train
from tests.conftest import ROOT
from tests.pipeline.conftest import ACCURACY, TRAIN

LOG = ("train.log",)
WEIGHTS = ("start.caffemodel", "out/final.caffemodel")


def change(folder: Path, old: str, new: str, *names: str) -> None:
    """Replace a text in files."""
    for name in names:
        text = (folder / name).read_text()
        assert old in text, name
        (folder / name).write_text(text.replace(old, new))


def test_training_writes_weights_log_and_metrics(trained):
    metrics = pd.read_csv(trained / "out/metrics.csv")
    columns = ["iteration", "loss", "learning_rate", "test_loss", "test_accuracy", "since_best"]
    assert list(metrics.columns) == columns
    assert list(metrics.iteration) == [0, 5, 10, 15, 20]
    assert metrics.loss.iloc[-1] < metrics.loss.iloc[0]
    assert metrics.test_accuracy.notna().all()
    assert "solver.cpp:332] Optimization Done." in (trained / "out/train.log").read_text()
    assert (trained / "out/final.caffemodel").read_bytes() == (trained / "snap/s_iter_20.caffemodel").read_bytes()


def test_layers_csv_lists_where_each_layer_starts_and_whether_it_is_learned(trained, command):
    rows = pd.read_csv(trained / "out/layers.csv")
    assert rows.to_numpy()[:, :4].tolist() == [["hidden", "6×192 6", "filled", True], ["scores", "3×6 3", "filled", True]]
    text = (trained / "train.prototxt").read_text().replace('"scores"', '"others"')
    text = text.replace('top: "hidden" inner', 'top: "hidden" param { lr_mult: 0 } param { lr_mult: 0 } inner')
    (trained / "train.prototxt").write_text(text)
    (trained / "test.prototxt").write_text((trained / "test.prototxt").read_text().replace('"scores"', '"others"'))
    (trained / "out/final.caffemodel").rename(trained / "start.caffemodel")
    done = command(*TRAIN, "--weights", "start.caffemodel")
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(trained / "out/layers.csv", keep_default_na=False)
    assert rows.to_numpy().tolist() == [
        ["hidden", "6×192 6", "copied", False, "start.caffemodel", ""],
        ["others", "3×6 3", "filled", True, "", "the weights have no layer of this name"],
        ["scores", "", "left out", False, "start.caffemodel", "the net has no layer of this name"],
    ]


def test_training_twice_gives_the_same_weights(trained, command):
    first = (trained / "out/final.caffemodel").read_bytes()
    (trained / "out/final.caffemodel").unlink()
    assert command(*TRAIN).returncode == 0
    assert (trained / "out/final.caffemodel").read_bytes() == first


def test_weights_of_another_net_are_refused(small, fails, write):
    other = """
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4 } } }
        layer { name: "fc8" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 2 } }
    """
    caffe.Net(write("other.prototxt", other), caffe.TEST).save(small / "other.caffemodel")
    fails(["other.caffemodel", "weights of layers fc8", "hidden, scores"], *TRAIN, "--weights", "other.caffemodel", leaves=LOG)


def test_a_file_that_is_not_a_caffemodel_is_refused(small, fails):
    (small / "page.caffemodel").write_text("<html>not found</html>")
    fails(["page.caffemodel", "not a .caffemodel"], *TRAIN, "--weights", "page.caffemodel", leaves=LOG)


def test_an_unknown_layer_type_is_refused_with_its_line(small, fails):
    text = (small / "train.prototxt").read_text().replace('"hidden" type: "InnerProduct"', '"hidden" type: "InerProduct"')
    (small / "train.prototxt").write_text(text)
    fails(['train.prototxt:4: layer "hidden"', 'unknown type "InerProduct"', 'did you mean "InnerProduct"'], *TRAIN, leaves=LOG)


def test_a_bottom_that_no_layer_produces_is_refused_with_its_line(small, fails):
    text = (small / "train.prototxt").read_text().replace('bottom: "hidden"', 'bottom: "hiden"')
    (small / "train.prototxt").write_text(text)
    fails(['train.prototxt:6: layer "scores"', '"hiden"', '"hidden"'], *TRAIN, leaves=LOG)


def test_more_classes_than_outputs_are_refused_before_training(small, fails):
    change(small, "num_output: 3", "num_output: 2", "train.prototxt", "test.prototxt")
    solver = (small / "solver.prototxt").read_text().replace('test_net: "test.prototxt" test_iter: 1', "")
    (small / "solver.prototxt").write_text(solver)
    said = ['lmdb/train: labels 0 to 2, but layer "scores" has 2 outputs, for labels 0 to 1; set num_output: 3']
    fails(said, *TRAIN, leaves=LOG)
    assert "Solving" not in (small / "out/train.log").read_text()


def test_training_starts_from_weights_of_the_same_layers(trained, command):
    solver = (trained / "solver.prototxt").read_text().replace("max_iter: 20", "max_iter: 0")
    (trained / "solver.prototxt").write_text(solver)
    (trained / "out/final.caffemodel").rename(trained / "start.caffemodel")
    done = command(*TRAIN, "--weights", "start.caffemodel")
    assert done.returncode == 0, done.stderr
    stored = [caffe.proto.caffe_pb2.NetParameter.FromString((trained / path).read_bytes()) for path in WEIGHTS]
    assert [layer.blobs for layer in stored[0].layer] == [layer.blobs for layer in stored[1].layer]


def values(path: Path) -> dict[str, list[list[float]]]:
    """{layer: its parameters} of a .caffemodel."""
    net = caffe.proto.caffe_pb2.NetParameter.FromString(path.read_bytes())
    return {layer.name: [list(blob.data) for blob in layer.blobs] for layer in net.layer if layer.blobs}


def test_the_best_weights_are_those_of_the_best_test(here):
    metrics, best = train(Path("solver.prototxt"), Path("out"), WeightFiles())
    assert best == json.loads((here / "out/best.json").read_text())
    assert best["by"] == "test_accuracy"
    assert best["test_accuracy"] == metrics.test_accuracy.max()
    assert best["iteration"] == metrics.iteration[metrics.test_accuracy.idxmax()]
    assert (best["tests"], best["stopped_early"]) == (5, False)
    later = (20 - best["iteration"]) // 5
    assert later > 0
    assert list(metrics.since_best[metrics.iteration >= best["iteration"]]) == list(range(later + 1))
    change(here, "max_iter: 20", f"max_iter: {best['iteration']}", "solver.prototxt")
    train(Path("solver.prototxt"), Path("shorter"), WeightFiles())
    assert values(here / "out/best.caffemodel") == values(here / "shorter/final.caffemodel")
    assert values(here / "out/best.caffemodel") != values(here / "out/final.caffemodel")


def test_the_last_weights_are_tested_even_off_the_test_interval(here):
    change(here, "max_iter: 20", "max_iter: 23", "solver.prototxt")
    metrics, best = train(Path("solver.prototxt"), Path("out"), WeightFiles())
    tested = metrics[metrics.test_accuracy.notna()]
    assert list(tested.iteration) == [0, 5, 10, 15, 20, 23]
    assert best["tests"] == 6
    written = pd.read_csv("out/metrics.csv")
    assert list(written[written.test_accuracy.notna()].iteration) == [0, 5, 10, 15, 20, 23]


def test_a_last_test_off_the_interval_is_not_an_early_stop(here):
    change(here, "base_lr: 0.05", "base_lr: 0", "solver.prototxt")
    change(here, "max_iter: 20", "max_iter: 13", "solver.prototxt")
    _, best = train(Path("solver.prototxt"), Path("out"), WeightFiles(), Settings(TrainOptions(early_stopping=2)))
    assert (best["iteration"], best["tests"], best["stopped_early"]) == (5, 4, False)


def test_initial_weights_are_the_best_only_if_no_later_ones_are_as_good(here):
    change(here, "base_lr: 0.05", "base_lr: 0", "solver.prototxt")
    _, best = train(Path("solver.prototxt"), Path("out"), WeightFiles(), Settings(TrainOptions(early_stopping=2)))
    assert (best["iteration"], best["tests"], best["stopped_early"]) == (5, 4, True)


def test_without_accuracy_the_lowest_loss_is_the_best(here):
    text = (here / "test.prototxt").read_text()
    (here / "test.prototxt").write_text("\n".join(line for line in text.splitlines() if "Accuracy" not in line))
    metrics, best = train(Path("solver.prototxt"), Path("out"), WeightFiles())
    assert (best["by"], best["test_loss"]) == ("test_loss", metrics.test_loss.min())
    assert metrics.test_loss.min() < metrics.test_loss.iloc[-1]


def test_without_tests_the_last_weights_are_the_best(here):
    change(here, 'test_net: "test.prototxt" test_iter: 1 test_interval: 5', "", "solver.prototxt")
    _, best = train(Path("solver.prototxt"), Path("out"), WeightFiles())
    assert (best["by"], best["iteration"], best["tests"]) == ("last", 20, 0)
    assert (here / "out/best.caffemodel").read_bytes() == (here / "out/final.caffemodel").read_bytes()


def test_training_stops_early_after_tests_without_improvement(here):
    metrics, best = train(Path("solver.prototxt"), Path("out"), WeightFiles(), Settings(TrainOptions(early_stopping=1)))
    assert best["stopped_early"]
    assert metrics.iteration.iloc[-1] == best["iteration"] + 5
    assert metrics.since_best.iloc[-1] == 1
    log = (here / "out/train.log").read_text()
    assert f"Early stopping: 1 test without a better test_accuracy than {best['test_accuracy']:g}" in log
    assert (here / "out/final.caffemodel").exists()


def test_every_output_of_the_test_net_is_a_metric(here):
    top = (
        'accuracy_param { top_k: 2 } name: "accuracy_top2" type: "Accuracy" bottom: "scores" bottom: "label" top: "accuracy_top2"'
    )
    with (here / "test.prototxt").open("a") as file:
        file.write(f"layer {{ {top} }}\n")
    train(Path("solver.prototxt"), Path("out"), WeightFiles())
    metrics = pd.read_csv(here / "out/metrics.csv")
    assert (metrics.test_accuracy_top2 >= metrics.test_accuracy).all()
    (events,) = (here / "out/tensorboard").iterdir()
    shown = EventAccumulator(str(events)).Reload()
    tags = {"loss/train": "loss", "loss/validation": "test_loss", "accuracy/validation": "test_accuracy"}
    tags |= {"accuracy_top2": "test_accuracy_top2", "learning_rate": "learning_rate"}
    assert set(shown.Tags()["scalars"]) == set(tags)
    for tag, column in tags.items():
        measured = metrics.dropna(subset=column)
        assert [scalar.step for scalar in shown.Scalars(tag)] == list(measured.iteration)
        assert [scalar.value for scalar in shown.Scalars(tag)] == pytest.approx(list(measured[column]))


def test_training_accuracy_is_measured_if_the_net_has_it_and_changes_nothing(here):
    train(Path("solver.prototxt"), Path("without"), WeightFiles())
    with (here / "train.prototxt").open("a") as file:
        file.write(ACCURACY + "\n")
    metrics, _ = train(Path("solver.prototxt"), Path("out"), WeightFiles())
    assert values(here / "out/final.caffemodel") == values(here / "without/final.caffemodel")
    assert list(metrics.columns)[-2:] == ["accuracy", "since_best"]
    assert (3 * metrics.accuracy).round(6).isin([0, 1, 2, 3]).all()
    assert metrics.accuracy.iloc[-1] == 1
    (events,) = (here / "out/tensorboard").iterdir()
    shown = EventAccumulator(str(events)).Reload()
    for part, column in (("train", "accuracy"), ("validation", "test_accuracy")):
        assert [scalar.value for scalar in shown.Scalars(f"accuracy/{part}")] == pytest.approx(list(metrics[column]))


def test_metrics_are_written_during_training(here, monkeypatch):
    seen = []
    measured = caffe.SGDSolver.test_all

    def look(solver):
        part = here / "out/.metrics.csv.part"
        seen.append([line.split(",")[0] for line in part.read_text().splitlines()])
        measured(solver)

    monkeypatch.setattr(caffe.SGDSolver, "test_all", look)
    train(Path("solver.prototxt"), Path("out"), WeightFiles())
    assert seen[0] == ["iteration"]
    assert seen[-1] == ["iteration", "0", "5", "10", "15"]
    assert not (here / "out/.metrics.csv.part").exists()


def test_a_killed_training_leaves_nothing_under_a_final_name(small):
    change(small, "max_iter: 20", "max_iter: 10000000", "solver.prototxt")
    process = subprocess.Popen([sys.executable, "-m", *TRAIN], cwd=small, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while process.poll() is None and not (small / "out/.best.caffemodel.part").exists():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    left = {path.name for path in (small / "out").iterdir() if not path.name.startswith(".")}
    assert left == {"tensorboard", "train.log"}


def test_a_nan_loss_is_explained_by_inputs_labels_and_learning_rate(here):
    change(here, "base_lr: 0.05", "base_lr: 1e6", "solver.prototxt")
    change(here, "display: 5", "display: 1", "solver.prototxt")
    with pytest.raises(caffe.DivergenceError) as raised:
        train(Path("solver.prototxt"), Path("out"), WeightFiles())
    assert "the loss is nan" in raised.value.found
    said = raised.value.do.split("; ")
    assert said[0].startswith("inputs reach 1.0")
    assert said[0].endswith("(no mean is subtracted, scale 0.004)")
    assert said[1] == "labels are within range"
    assert said[2].startswith("the loss rose from 1.")
    assert said[2].endswith("try base_lr: 100000, a tenth of 1e+06, or clip_gradients")
    assert sorted(path.name for path in (here / "out").iterdir()) == ["tensorboard", "train.log"]


def test_a_failing_training_keeps_its_log_and_metrics_and_says_where(here, command):
    change(here, "base_lr: 0.05", "base_lr: 1e6", "solver.prototxt")
    done = command(*TRAIN, "--failed", "logs/failed")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith("or clip_gradients; train.log and metrics.csv so far are in logs/failed")
    assert "Solving" in (here / "logs/failed/train.log").read_text()
    losses = pd.read_csv(here / "logs/failed/metrics.csv").loss
    assert list(losses.isna()) == [False] * (len(losses) - 1) + [True]
    change(here, "base_lr: 1e6", "base_lr: 0.05", "solver.prototxt")
    assert command(*TRAIN, "--failed", "logs/failed").returncode == 0
    assert not (here / "logs/failed").exists()


def test_a_tolerated_divergence_ends_with_the_weights_of_the_best_test(here):
    change(here, "base_lr: 0.05", "base_lr: 1e6", "solver.prototxt")
    metrics, best = train(Path("solver.prototxt"), Path("out"), WeightFiles(), Settings(TrainOptions(tolerate_divergence=True)))
    assert (best["iteration"], best["diverged"]) == (0, metrics.iteration.iloc[-1])
    assert best == json.loads((here / "out/best.json").read_text())
    change(here, "max_iter: 20", "max_iter: 0", "solver.prototxt")
    train(Path("solver.prototxt"), Path("start"), WeightFiles())
    for name in ("final", "best"):
        assert values(here / f"out/{name}.caffemodel") == values(here / "start/final.caffemodel")


def test_a_tolerated_divergence_before_the_first_test_ends_with_the_initial_weights(here):
    norm = """layer { name: "bn" type: "BatchNorm" bottom: "hidden" top: "hidden" }
layer { name: "scores" """
    change(here, 'layer { name: "scores" ', norm, "train.prototxt", "test.prototxt")
    change(here, "test_interval: 5", "test_interval: 5 test_initialization: false", "solver.prototxt")
    change(here, "max_iter: 20", "max_iter: 0", "solver.prototxt")
    train(Path("solver.prototxt"), Path("start"), WeightFiles())
    change(here, "max_iter: 0", "max_iter: 20", "solver.prototxt")
    change(here, "base_lr: 0.05", "base_lr: 1e38", "solver.prototxt")
    _, best = train(Path("solver.prototxt"), Path("out"), WeightFiles(), Settings(TrainOptions(tolerate_divergence=True)))
    assert (best["iteration"], best["by"], best["test_accuracy"]) == (0, "start", None)
    got, start = values(here / "out/final.caffemodel"), values(here / "start/final.caffemodel")
    assert (got["hidden"], got["scores"]) == (start["hidden"], start["scores"])
    assert got["bn"][2] == [1]
    assert got == values(here / "out/best.caffemodel")


def test_a_divergence_by_the_last_update_is_recorded(here):
    change(here, "base_lr: 0.05", "base_lr: 1e38", "solver.prototxt")
    change(here, "max_iter: 20", "max_iter: 1", "solver.prototxt")
    _, best = train(Path("solver.prototxt"), Path("out"), WeightFiles(), Settings(TrainOptions(tolerate_divergence=True)))
    assert (best["iteration"], best["diverged"]) == (0, 1)


def test_tolerating_divergence_does_not_change_a_training(here):
    for tolerates in (False, True):
        settings = Settings(TrainOptions(tolerate_divergence=tolerates), failed=Path("failed") if tolerates else None)
        train(Path("solver.prototxt"), Path(f"out_{tolerates}"), WeightFiles(), settings)
    first, second = (here / f"out_{tolerates}/final.caffemodel" for tolerates in (False, True))
    assert first.read_bytes() == second.read_bytes()


def test_nan_inputs_are_not_blamed_on_the_learning_rate(here):
    change(here, "scale: 0.004", "scale: 0.004 mean_value: nan", "train.prototxt")
    with pytest.raises(caffe.DivergenceError) as raised:
        train(Path("solver.prototxt"), Path("out"), WeightFiles())
    assert raised.value.do == 'layer "data" gives NaN or infinite values: check the mean and the database'


def test_later_weights_overwrite_earlier_ones(here):
    train(Path("solver.prototxt"), Path("first"), WeightFiles())
    change(here, "random_seed: 1", "random_seed: 2", "solver.prototxt")
    train(Path("solver.prototxt"), Path("second"), WeightFiles())
    change(here, "max_iter: 20", "max_iter: 0", "solver.prototxt")
    first, second = Path("first/final.caffemodel"), Path("second/final.caffemodel")
    other = caffe.Net("test.prototxt", caffe.TEST)
    other.copy_from(second, skip=["scores"])
    text = (here / "test.prototxt").read_text().replace('name: "scores"', 'name: "else"')
    (here / "else.prototxt").write_text(text)
    caffe.Net("else.prototxt", str(second), caffe.TEST).save("else.caffemodel")
    train(Path("solver.prototxt"), Path("out"), WeightFiles([first, Path("else.caffemodel")]))
    got = values(here / "out/final.caffemodel")
    assert got["hidden"] == values(second)["hidden"]
    assert got["scores"] == values(first)["scores"]
    rows = pd.read_csv(here / "out/layers.csv", keep_default_na=False).to_numpy().tolist()
    assert rows == [
        ["hidden", "6×192 6", "copied", True, "else.caffemodel", ""],
        ["scores", "3×6 3", "copied", True, "first/final.caffemodel", ""],
        ["else", "", "left out", False, "else.caffemodel", "the net has no layer of this name"],
    ]


def test_a_layer_to_skip_starts_from_its_filler(here):
    change(here, "max_iter: 20", "max_iter: 0", "solver.prototxt")
    caffe.Net("test.prototxt", caffe.TEST).save("start.caffemodel")
    settings = Settings(TrainOptions(skip_layers=["hidden"]))
    train(Path("solver.prototxt"), Path("out"), WeightFiles([Path("start.caffemodel")]), settings)
    rows = pd.read_csv(here / "out/layers.csv", keep_default_na=False).set_index("layer")
    assert (rows.start["hidden"], rows.why["hidden"]) == ("filled", "it was to be skipped")
    assert rows.start["scores"] == "copied"


def test_a_fitted_classifier_is_copied_last_and_may_be_empty(here):
    change(here, "max_iter: 20", "max_iter: 0", "solver.prototxt")
    net = caffe.Net("test.prototxt", caffe.TEST)
    net.save("start.caffemodel")
    for blob in net.params["scores"]:
        blob.data[...] = 7
    net.save("both.caffemodel")
    stored = caffe.proto.caffe_pb2.NetParameter.FromString((here / "both.caffemodel").read_bytes())
    fitted = caffe.proto.caffe_pb2.NetParameter(name="linear")
    (here / "none.caffemodel").write_bytes(fitted.SerializeToString())
    fitted.layer.extend(layer for layer in stored.layer if layer.name == "scores")
    (here / "fitted.caffemodel").write_bytes(fitted.SerializeToString())
    for name, same in (("fitted", "both"), ("none", "start")):
        given = WeightFiles([Path("start.caffemodel")], fitted=Path(f"{name}.caffemodel"))
        train(Path("solver.prototxt"), Path(name), given, Settings(TrainOptions(same_classes=True)))
        assert values(here / name / "final.caffemodel") == values(here / f"{same}.caffemodel")
        assert (here / name / "preflight.csv").read_text() == "kind,where,found,do\n"

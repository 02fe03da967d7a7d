"""Training: what is written, what is repeatable, and how what cannot work ends."""

import pandas as pd

import caffe
from tests.pipeline.conftest import TRAIN

LOG = ("train.log",)
WEIGHTS = ("start.caffemodel", "out/final.caffemodel")


def test_training_writes_weights_log_and_metrics(trained):
    metrics = pd.read_csv(trained / "out/metrics.csv")
    assert list(metrics.columns) == ["iteration", "seconds", "loss", "learning_rate", "test_loss", "test_accuracy"]
    assert list(metrics.iteration) == [0, 5, 10, 15, 20]
    assert metrics.loss.iloc[-1] < metrics.loss.iloc[0]
    assert metrics.test_accuracy.notna().all()
    assert "solver.cpp:332] Optimization Done." in (trained / "out/train.log").read_text()
    assert (trained / "out/final.caffemodel").read_bytes() == (trained / "snap/s_iter_20.caffemodel").read_bytes()


def test_the_layers_are_told_by_where_they_start_and_whether_they_are_learned(trained, command):
    rows = pd.read_csv(trained / "out/layers.csv")
    assert rows.to_numpy().tolist() == [["hidden", "6×192 6", "filled", True], ["scores", "3×6 3", "filled", True]]
    text = (trained / "train.prototxt").read_text().replace('"scores"', '"others"')
    text = text.replace('top: "hidden" inner', 'top: "hidden" param { lr_mult: 0 } param { lr_mult: 0 } inner')
    (trained / "train.prototxt").write_text(text)
    (trained / "test.prototxt").write_text((trained / "test.prototxt").read_text().replace('"scores"', '"others"'))
    (trained / "out/final.caffemodel").rename(trained / "start.caffemodel")
    done = command(*TRAIN, "--weights", "start.caffemodel")
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(trained / "out/layers.csv", keep_default_na=False)
    assert rows.to_numpy().tolist() == [
        ["hidden", "6×192 6", "copied", False],
        ["others", "3×6 3", "filled", True],
        ["scores", "", "left out", False],
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


def test_a_file_that_is_no_weights_is_refused(small, fails):
    (small / "page.caffemodel").write_text("<html>not found</html>")
    fails(["page.caffemodel", "not a .caffemodel"], *TRAIN, "--weights", "page.caffemodel", leaves=LOG)


def test_an_unknown_layer_type_ends_training_with_its_line(small, fails):
    text = (small / "train.prototxt").read_text().replace('"hidden" type: "InnerProduct"', '"hidden" type: "InerProduct"')
    (small / "train.prototxt").write_text(text)
    fails(['train.prototxt:4: layer "hidden"', 'unknown type "InerProduct"', 'did you mean "InnerProduct"?'], *TRAIN, leaves=LOG)


def test_a_bottom_that_no_layer_produces_ends_training_with_its_line(small, fails):
    text = (small / "train.prototxt").read_text().replace('bottom: "hidden"', 'bottom: "hiden"')
    (small / "train.prototxt").write_text(text)
    fails(['train.prototxt:6: layer "scores"', '"hiden"', '"hidden"'], *TRAIN, leaves=LOG)


def test_more_classes_than_outputs_ends_training_with_the_label(small, fails):
    text = (small / "train.prototxt").read_text().replace("num_output: 3", "num_output: 2")
    (small / "train.prototxt").write_text(text)
    (small / "test.prototxt").write_text(text)
    fails(['layer "loss"', "label 2", "2 classes (0 to 1)"], *TRAIN, leaves=LOG)


def test_weights_of_the_same_layers_are_where_training_starts(trained, command):
    solver = (trained / "solver.prototxt").read_text().replace("max_iter: 20", "max_iter: 0")
    (trained / "solver.prototxt").write_text(solver)
    (trained / "out/final.caffemodel").rename(trained / "start.caffemodel")
    done = command(*TRAIN, "--weights", "start.caffemodel")
    assert done.returncode == 0, done.stderr
    stored = [caffe.proto.caffe_pb2.NetParameter.FromString((trained / path).read_bytes()) for path in WEIGHTS]
    assert [layer.blobs for layer in stored[0].layer] == [layer.blobs for layer in stored[1].layer]

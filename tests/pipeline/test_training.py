"""From databases to prototxt, weights, features and evaluation, each step as its command."""

import json

import lmdb
import numpy as np
import pandas as pd
import pytest

import caffe
from pipeline.models import TEMPLATES
from pipeline.prototxt import Dataset, Experiment, nets, solver
from pipeline.prototxt import test_batch as batch_for


@pytest.fixture
def databases(dataset, command):
    """The small dataset as lists, databases, manifests and mean; relative to the test's folder."""
    steps = [("pipeline.label", "list", "download", "resize", "--output", "lists")]
    for part in ("train", "val"):
        files = ("--labels", "lists/labels.txt", "--manifest", f"lmdb/{part}.manifest.json")
        steps.append(("pipeline.database", f"lists/{part}.txt", "resize", f"lmdb/{part}", *files))
    steps.append(("pipeline.mean", "lmdb/train", "mean.binaryproto", "--values", "mean.json"))
    for step in steps:
        done = command(*step)
        assert done.returncode == 0, done.stderr
    return dataset


NET = """
layer {{ name: "data" type: "Data" top: "data" top: "label" data_param {{ source: "lmdb/{part}" batch_size: 3 backend: LMDB }}
  transform_param {{ scale: 0.004 }} }}
layer {{ name: "hidden" type: "InnerProduct" bottom: "data" top: "hidden" inner_product_param {{ num_output: 6
  weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "scores" type: "InnerProduct" bottom: "hidden" top: "scores" inner_product_param {{ num_output: 3
  weight_filler {{ type: "xavier" }} }} }}
{accuracy}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "scores" bottom: "label" top: "loss" }}
"""
ACCURACY = 'layer { name: "accuracy" type: "Accuracy" bottom: "scores" bottom: "label" top: "accuracy" }'
SOLVER = """
train_net: "train.prototxt" test_net: "test.prototxt" test_iter: 1 test_interval: 5 base_lr: 0.05 momentum: 0.9
lr_policy: "fixed" display: 5 max_iter: 20 snapshot_prefix: "snap/s" random_seed: 1 solver_mode: CPU
"""
TRAIN = ("pipeline.train", "solver.prototxt", "--output", "out/final.caffemodel")
LOG = ("train.log",)
TRAIN += ("--log", "out/train.log", "--metrics", "out/metrics.csv")


@pytest.fixture
def small(databases):
    """A small net and its solver beside the databases."""
    (databases / "train.prototxt").write_text(NET.format(part="train", accuracy=""))
    (databases / "test.prototxt").write_text(NET.format(part="val", accuracy=ACCURACY))
    (databases / "solver.prototxt").write_text(SOLVER)
    return databases


def test_training_writes_weights_log_and_metrics(small, command):
    done = command(*TRAIN)
    assert done.returncode == 0, done.stderr
    metrics = pd.read_csv(small / "out/metrics.csv")
    assert list(metrics.columns) == ["iteration", "seconds", "loss", "learning_rate", "test_loss", "test_accuracy"]
    assert list(metrics.iteration) == [0, 5, 10, 15, 20]
    assert metrics.loss.iloc[-1] < metrics.loss.iloc[0]
    assert metrics.test_accuracy.notna().all()
    assert "solver.cpp:332] Optimization Done." in (small / "out/train.log").read_text()
    assert (small / "out/final.caffemodel").read_bytes() == (small / "snap/s_iter_20.caffemodel").read_bytes()


def test_training_twice_gives_the_same_weights(small, command):
    command(*TRAIN)
    first = (small / "out/final.caffemodel").read_bytes()
    command(*TRAIN)
    assert (small / "out/final.caffemodel").read_bytes() == first


def test_weights_of_another_net_are_refused(small, fails, write):
    other = """
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4 } } }
        layer { name: "fc8" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 2 } }
    """
    caffe.Net(write("other.prototxt", other), caffe.TEST).save(small / "other.caffemodel")
    fails(["other.caffemodel", "weights of layers fc8", "hidden, scores"], *TRAIN, "--weights", "other.caffemodel", leaves=LOG)


def test_a_file_that_is_no_weights_is_refused(small, fails):
    (small / "page.caffemodel").write_text("<html>not found</html>")
    fails(["page.caffemodel", "not a binary NetParameter"], *TRAIN, "--weights", "page.caffemodel", leaves=LOG)


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


def test_features_are_those_of_every_image_in_the_lists_order(small, command):
    command(*TRAIN)
    arguments = ("test.prototxt", "out/final.caffemodel", "features", "--blobs", "hidden", "scores", "--list", "lists/val.txt")
    done = command("pipeline.features", *arguments)
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(small / "features/hidden.parquet")
    listed = [line.rsplit(" ", 1) for line in (small / "lists/val.txt").read_text().splitlines()]
    assert [(row.path, str(row.label)) for row in table.itertuples()] == [tuple(pair) for pair in listed]
    values = np.load(small / "features/hidden.npy")
    np.testing.assert_array_equal(np.stack(table.features), values)
    with lmdb.open(str(small / "features/hidden.lmdb"), readonly=True, lock=False).begin() as transaction:
        stored = [(key, caffe.proto.caffe_pb2.Datum.FromString(value)) for key, value in transaction.cursor()]
    records = [(key, caffe.io.datum_to_array(datum)) for key, datum in stored]
    assert [key for key, _ in records] == [b"%010d" % number for number in range(len(listed))]
    np.testing.assert_allclose(np.stack([array.ravel() for _, array in records]), values)


def test_an_unknown_blob_is_named_with_the_known_ones(small, command, fails):
    command(*TRAIN)
    arguments = ("test.prototxt", "out/final.caffemodel", "features", "--blobs", "hiden", "--list", "lists/val.txt")
    fails(["test.prototxt", 'no blob "hiden"', 'did you mean "hidden"?'], "pipeline.features", *arguments)


def test_evaluation_agrees_with_the_nets_own_accuracy(small, command):
    command(*TRAIN)
    arguments = ("test.prototxt", "out/final.caffemodel", "evaluate", "--list", "lists/val.txt", "--labels", "lists/labels.txt")
    done = command("pipeline.evaluate", *arguments)
    assert done.returncode == 0, done.stderr
    accuracy = json.loads((small / "evaluate/summary.json").read_text())["accuracy"]
    assert accuracy == pytest.approx(pd.read_csv(small / "out/metrics.csv").test_accuracy.iloc[-1], abs=1e-6)
    predictions = pd.read_csv(small / "evaluate/predictions.csv")
    confusion = pd.read_csv(small / "evaluate/confusion.csv", index_col=0)
    assert (predictions.label == predictions.predicted).mean() == accuracy
    assert np.trace(confusion) == (predictions.label == predictions.predicted).sum()
    assert set(pd.read_csv(small / "evaluate/per_class.csv")["class"]) == {"cat", "dog", "owl"}


PROTOTXT = (
    "pipeline.prototxt",
    "nets",
    "--name",
    "e",
    "--train",
    "lmdb/train",
    "--val",
    "lmdb/val",
    "--mean",
    "mean.binaryproto",
)


def test_an_unknown_solver_field_is_named(databases, fails):
    said = ["experiments.e.solver.base_lrr: no field", 'did you mean "base_lr"?']
    fails(said, *PROTOTXT, "--model", "lenet", "--solver", '{"base_lrr": 1}')


def test_a_crop_larger_than_the_images_is_named(databases, fails):
    fails(["caffenet crops 227×227", "the images are 8×8"], *PROTOTXT, "--model", "caffenet")


DATASET = Dataset("lmdb/train", "lmdb/val", "mean.binaryproto", (3, 40, 40), 7, 500, 90)


def test_the_written_nets_are_of_one_shape(tmp_path):
    experiment = Experiment("e", "cifar10_quick", "ip2_cats", 10, 50, False, {})
    made = nets(TEMPLATES["cifar10_quick"], DATASET, experiment)
    assert made["deploy"].layer[0].type == "Input"
    assert [layer.name for layer in made["train"].layer][-2:] == ["ip2_cats", "loss"]
    for net in made.values():
        last = next(layer for layer in net.layer if layer.name == "ip2_cats")
        assert last.inner_product_param.num_output == 7
    assert made["test"].layer[0].transform_param.mean_file == "mean.binaryproto"


def test_testing_covers_the_validation_set_exactly(tmp_path):
    experiment = Experiment("e", "lenet", "ip2", 1, 50, False, {"max_iter": 7})
    param, reasons = solver(DATASET, experiment, tmp_path)
    assert param.test_iter[0] * batch_for(90) == 90
    assert (param.test_interval, param.max_iter) == (10, 7)
    assert "test_interval" in reasons
    assert "max_iter" not in reasons


@pytest.mark.parametrize(("images", "batch"), [(1, 1), (256, 256), (257, 1), (796, 199), (1000, 250)])
def test_the_test_batch_divides_the_validation_set(images, batch):
    assert batch_for(images) == batch

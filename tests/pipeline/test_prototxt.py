"""What is written for an experiment: nets of one shape, a solver that fits the dataset."""

import cv2
import numpy as np
import pytest

import caffe
from caffe.proto import caffe_pb2
from pipeline.models import TEMPLATES
from pipeline.prototxt import Dataset, Experiment, nets, solver
from pipeline.prototxt import test_batch as batch_for

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


def test_an_unknown_solver_field_is_named(small, fails):
    said = ["experiments.e.solver.base_lrr: no field", 'did you mean "base_lr"?']
    fails(said, *PROTOTXT, "--model", "lenet", "--solver", '{"base_lrr": 1}')


def test_a_crop_larger_than_the_images_is_named(small, fails):
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


def test_the_commands_files_make_nets_that_caffe_runs(small, command, monkeypatch):
    for path in (small / "resize").rglob("pixels.npy"):
        np.save(path, [cv2.resize(image, (32, 32)) for image in np.load(path)])
    for part in ("train", "val"):
        files = ("--labels", "lists/labels.txt", "--manifest", f"lmdb/{part}.manifest.json")
        assert command("pipeline.database", f"lists/{part}.txt", "resize", f"lmdb/{part}", *files).returncode == 0
    assert command("pipeline.mean", "lmdb/train", "mean.binaryproto", "--values", "mean.json").returncode == 0
    done = command(*PROTOTXT, "--model", "cifar10_quick", "--last", "ip2_cats", "--last-lr-mult", "10", "--batch-size", "3")
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(small)
    rates = {layer.name: [spec.lr_mult for spec in layer.param] for layer in caffe.read_net("nets/train.prototxt").layer}
    assert (rates["ip1"], rates["ip2_cats"]) == ([1, 2], [10, 20])
    deploy = caffe.Net("nets/deploy.prototxt", caffe.TEST)
    assert deploy.forward()["prob"].shape == (1, 3)
    made = caffe.get_solver("nets/solver.prototxt")
    made.step(1)
    made.close()


def test_why_a_value_was_chosen_stands_beside_it(small, command):
    assert command(*PROTOTXT, "--model", "lenet", "--batch-size", "2").returncode == 0
    lines = (small / "nets/solver.prototxt").read_text().splitlines()
    assert lines[lines.index("test_interval: 3") - 1] == "# an epoch: 6 training images in batches of 2"


def test_only_training_images_are_changed():
    changes = caffe_pb2.AugmentationParameter(brightness=0.5, rotation=10)
    made = nets(TEMPLATES["cifar10_quick"], DATASET, Experiment("e", "cifar10_quick", "ip2", 1, 50, False, {}, changes))
    assert made["train"].layer[0].transform_param.augmentation_param == changes
    assert not made["test"].layer[0].transform_param.HasField("augmentation_param")

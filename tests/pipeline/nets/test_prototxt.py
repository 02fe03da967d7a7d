"""Prototxts written for an experiment: consistent nets, and a solver that fits the dataset."""

import dataclasses
import json
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest

import caffe
from caffe.proto import caffe_pb2
from pipeline.dataset.augmentation import as_param
from pipeline.inference.evaluate import scores_blob
from pipeline.nets import models
from pipeline.nets.models import TEMPLATES
from pipeline.nets.prototxt import Dataset, nets, write
from pipeline.nets.solver_defaults import Run, Sizes, solver
from pipeline.nets.solver_defaults import test_batch as batch_for
from pipeline.options.base import Device
from pipeline.options.dataset import Augmentation
from pipeline.options.training import PrototxtOptions

PROTOTXT = (
    "pipeline.nets.prototxt",
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

NORM = 'layer { name: "norm" type: "BatchNorm" bottom: "hidden" top: "hidden" } '


def test_an_unknown_solver_field_is_named(small, fails):
    said = ["experiments.e.solver.base_lrr: no field", 'did you mean "base_lr"?']
    fails(said, *PROTOTXT, "--model", "lenet", "--solver", '{"base_lrr": 1}')


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--model", "lenett"), ['model: "lenett", but there are lenet, mnist_siamese', 'did you mean "lenet"']),
        (("--model", "lenet", "--batch-size", "-3"), ["--batch-size: -3 is less than 0"]),
        (("--model", "lenet", "--solver", "[1]"), ["--solver: [1], but it takes a JSON object; as in '{"]),
        (("--model", "lenet", "--solver", "base_lr=1"), ["--solver: base_lr=1, but it takes a JSON object"]),
    ],
)
def test_a_wrong_argument_is_named(small, fails, given, said):
    fails(said, *PROTOTXT, *given)


def test_a_crop_larger_than_the_images_is_named(small, fails):
    fails(["caffenet crops 227×227", "the images are 8×8"], *PROTOTXT, "--model", "caffenet")


def test_images_that_do_not_match_a_deploy_net_are_refused(small, fails):
    (small / "net.prototxt").write_text(
        """
        input: "data" input_dim: 1 input_dim: 3 input_dim: 6 input_dim: 8
        layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }
        """
    )
    said = ["net.prototxt takes 6×8, but the images are 8×8; set the dataset's size: {height: 6, width: 8}"]
    fails(said, *PROTOTXT, "--model", "net.prototxt")


def options_for(model, last, last_lr_mult, batch_size, **fields):
    return PrototxtOptions(name="e", model=model, last=last, last_lr_mult=last_lr_mult, batch_size=batch_size, **fields)


DATASET = Dataset("lmdb/train", "lmdb/val", "mean.binaryproto", (3, 40, 40), 7, 500, 90)


def test_the_written_nets_are_consistent(tmp_path):
    experiment = options_for("cifar10_quick", "ip2_cats", 10, 50)
    made = nets(TEMPLATES["cifar10_quick"], DATASET, experiment)
    assert made["deploy"].layer[0].type == "Input"
    assert [layer.name for layer in made["train"].layer][-3:] == ["ip2_cats", "accuracy", "loss"]
    for net in made.values():
        last = next(layer for layer in net.layer if layer.name == "ip2_cats")
        assert last.inner_product_param.num_output == 7
    assert made["test"].layer[0].transform_param.mean_file == "mean.binaryproto"


def make_solver(given):
    """The solver for 500 and 90 images in batches of 50 and 90, and its reasons."""
    return solver(Sizes(500, 90, 50, 256), Run(Path("nets"), Path("snapshots/e"), Device(), given), "solver")


def test_testing_covers_the_validation_set_exactly():
    param, reasons = make_solver({"max_iter": 17})
    assert list(param.test_iter) == [1]
    assert (param.test_interval, param.max_iter) == (10, 17)
    assert "test_interval" in reasons
    assert "max_iter" not in reasons


def test_a_training_shorter_than_an_epoch_is_tested_at_its_end():
    param, reasons = make_solver({"max_iter": 7})
    assert (param.test_interval, param.max_iter) == (7, 7)
    assert reasons["test_interval"] == "the whole training, shorter than an epoch of 10 iterations"


@pytest.mark.parametrize(
    ("images", "most", "batch"), [(1, 256, 1), (256, 256, 256), (257, 256, 1), (796, 256, 199), (1000, 256, 250), (1000, 32, 25)]
)
def test_the_test_batch_divides_the_validation_set(images, most, batch):
    assert batch_for(images, most) == batch


@pytest.mark.parametrize(
    ("model", "side", "batch"), [("cifar10_quick", 32, 250), ("resnet50", 256, 25), ("cifar10_quick", 1000, 1)]
)
def test_larger_images_are_tested_in_smaller_batches(model, side, batch):
    dataset = dataclasses.replace(DATASET, shape=(3, side, side), val_images=1000)
    made = nets(
        TEMPLATES[model],
        dataset,
        options_for(model, TEMPLATES[model].last, 1, 50),
    )
    assert made["test"].layer[0].data_param.batch_size == batch


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (1000, ""),
        (97, ""),
        (1009, "no number from 2 to 32 divides 1009; hold out 1008 images, of which 28 make a batch"),
        (998, "no number from 3 to 32 divides 998; hold out 999 images, of which 27 make a batch"),
    ],
)
def test_a_slow_test_batch_is_explained_with_a_better_count(images, said):
    _, reasons = solver(Sizes(500, images, 50, 32), Run(Path("nets"), Path("snapshots/e"), Device(), {}), "solver")
    assert reasons["test_iter"].partition("which is slow: ")[2] == said


def test_caffe_runs_the_prototxts_that_the_command_writes(small, command, monkeypatch):
    for path in (small / "resize").rglob("pixels.npy"):
        np.save(path, [cv2.resize(image, (32, 32)) for image in np.load(path)])
    for part in ("train", "val"):
        files = ("--labels", "lists/labels.txt", "--manifest", f"lmdb/{part}.manifest.json")
        assert command("pipeline.dataset.database", f"lists/{part}.txt", "resize", f"lmdb/{part}", *files).returncode == 0
    assert command("pipeline.dataset.mean", "lmdb/train", "mean.binaryproto", "--values", "mean.json").returncode == 0
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


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        ((), 1),
        (("--pretrained",), 1),
        (("--last", "ip2_cats"), 1),
        (("--last", "ip2_cats", "--pretrained"), 10),
        (("--last", "ip2_cats", "--pretrained", "--last-lr-mult", "3"), 3),
        (("--last", "ip2_cats", "--pretrained", "--strategy", "scratch"), 1),
        (("--last", "ip2_cats", "--pretrained", "--strategy", "scratch", "--last-lr-mult", "3"), 3),
    ],
)
def test_a_new_last_layer_beside_pretrained_weights_learns_ten_times_as_fast(small, command, given, rate):
    done = command(*PROTOTXT, "--model", "lenet", *given)
    assert done.returncode == 0, done.stderr
    (last,) = (layer for layer in caffe.read_net(small / "nets/train.prototxt").layer if layer.name.startswith("ip2"))
    assert [spec.lr_mult for spec in last.param] == [rate, 2 * rate]


@pytest.mark.parametrize("strategy", ["full", "features", "scratch"])
def test_a_strategy_chosen_by_auto_gives_the_same_files_as_naming_it(small, command, strategy):
    net = (small / "train.prototxt").read_text().replace('layer { name: "scores"', f'{NORM}layer {{ name: "scores"')
    (small / "own.prototxt").write_text(net)
    (small / "strategy.json").write_text(json.dumps({"strategy": strategy, "features_from": "top"}))
    common = ("--model", "./own.prototxt", "--last", "scores_cats", "--pretrained")
    frozen = () if strategy == "scratch" else ("--batch-norm", "freeze")
    made = []
    for given in (("--strategy", strategy, *frozen), ("--chosen", "strategy.json", "--batch-norm", "freeze")):
        done = command(*PROTOTXT, *common, *given)
        assert done.returncode == 0, done.stderr
        made.append({path.name: path.read_text() for path in (small / "nets").iterdir()})
    assert made[0] == made[1]
    assert len(made[0]) == 5
    said = "# Written from ./own.prototxt, which is the one to edit.\n"
    assert all(made[0][f"{net}.prototxt"].startswith(said) for net in ("train", "test", "deploy"))


def test_the_reason_for_a_value_is_a_comment_above_it(small, command):
    assert command(*PROTOTXT, "--model", "lenet", "--batch-size", "2").returncode == 0
    lines = (small / "nets/solver.prototxt").read_text().splitlines()
    assert lines[lines.index("test_interval: 3") - 1] == "# an epoch: 6 training images in batches of 2"


def test_iterations_are_computed_from_epochs_and_explained():
    param, reasons = make_solver({"epochs": 30, "step_epochs": [10, 20.5]})
    assert (param.max_iter, param.lr_policy, list(param.stepvalue)) == (300, "multistep", [100, 205])
    assert param.gamma == pytest.approx(0.1)
    assert reasons["max_iter"] == "30 epochs of 10 iterations"
    assert reasons["stepvalue"] == "10, 20.5 epochs of 10 iterations"
    param, reasons = make_solver({"epochs": 1.5, "step_epochs": 0.5, "gamma": 0.5, "iter_size": 2})
    assert (param.max_iter, param.test_interval, param.lr_policy, param.stepsize, param.gamma) == (8, 5, "step", 2, 0.5)
    assert reasons["test_interval"] == "an epoch: 500 training images in batches of 50 × 2"
    assert "gamma" not in reasons


def test_the_reason_for_a_repeated_field_is_written_once(small, command):
    steps = '{"epochs": 3, "step_epochs": [1, 2]}'
    assert command(*PROTOTXT, "--model", "lenet", "--batch-size", "2", "--solver", steps).returncode == 0
    lines = (small / "nets/solver.prototxt").read_text().splitlines()
    assert lines.count("# 1, 2 epochs of 3 iterations") == 1
    assert lines[lines.index("# 1, 2 epochs of 3 iterations") + 1 :][:2] == ["stepvalue: 3", "stepvalue: 6"]


@pytest.mark.parametrize(("batch_norm", "in_training"), [("learn", False), ("freeze", True)])
def test_batch_norm_uses_global_statistics_depending_on_the_phase(batch_norm, in_training):
    experiment = options_for("resnet18", "fc1000", 1, 8, batch_norm=batch_norm)
    for part, net in nets(TEMPLATES["resnet18"], DATASET, experiment).items():
        taken = {layer.batch_norm_param.use_global_stats for layer in net.layer if layer.type == "BatchNorm"}
        assert taken == {in_training if part == "train" else True}


@pytest.mark.parametrize(
    ("fields", "frozen", "learned"),
    [({}, False, [1] * 4), ({"batch_norm": "freeze"}, True, [1] * 4), ({"strategy": "last_layer"}, True, [0] * 4)],
)
def test_batch_norm_of_a_fork_is_frozen_only_in_training(tmp_path, fields, frozen, learned):
    layers = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 32 dim: 32 } } }
layer { name: "conv" type: "DepthwiseConvolution" bottom: "data" top: "conv" convolution_param { num_output: 3 kernel_size: 3 } }
layer { name: "bn" type: "BN" bottom: "conv" top: "bn" %s }
layer { name: "ip" type: "InnerProduct" bottom: "bn" top: "ip" inner_product_param { num_output: 2 } }
"""
    (tmp_path / "net.prototxt").write_text(layers % ("param { lr_mult: 1 } " * 4))
    experiment = options_for(str(tmp_path / "net.prototxt"), "ip", 1, 8, **fields)
    made = nets(models.template(experiment.model), DATASET, experiment)
    norms = {part: next(layer for layer in net.layer if layer.name == "bn") for part, net in made.items()}
    assert {part: norm.bn_param.frozen for part, norm in norms.items()} == {"train": frozen, "test": False, "deploy": False}
    assert [spec.lr_mult for spec in norms["train"].param] == learned
    convolution = next(layer for layer in made["train"].layer if layer.name == "conv")
    assert [spec.lr_mult for spec in convolution.param] == ([0, 0] if fields.get("strategy") else [])


@pytest.mark.parametrize(
    ("fields", "tested"),
    [
        ({}, False),
        ({"batch_norm": "freeze"}, True),
        ({"solver": {"test_initialization": True}}, True),
        ({"model": "lenet"}, True),
    ],
)
def test_a_net_whose_batch_norm_has_no_statistics_yet_is_not_tested_before_training(tmp_path, fields, tested):
    experiment = PrototxtOptions(
        **(
            {"name": "e", "model": "resnet18", "last": "fc", "last_lr_mult": 1, "batch_size": 8, "gpu": False, "solver": {}}
            | fields
        )
    )
    dataset = dataclasses.replace(DATASET, shape=(3, 256, 256))
    write(dataset, experiment, tmp_path / "nets")
    assert caffe.read_solver(tmp_path / "nets/solver.prototxt").test_initialization == tested
    said = "# before training BatchNorm may have no statistics, and the scores would be no numbers"
    assert (said in (tmp_path / "nets/solver.prototxt").read_text().splitlines()) != tested


@pytest.mark.parametrize("numerics", ["reproducible", "fp32", "fast"])
def test_the_solver_names_numerics_unless_they_are_the_default(tmp_path, numerics):
    """BVLC Caffe does not know the field."""
    experiment = PrototxtOptions(name="e", model="lenet", batch_size=8, numerics=numerics)
    write(dataclasses.replace(DATASET, shape=(1, 28, 28)), experiment, tmp_path / "nets")
    assert caffe.read_solver(tmp_path / "nets/solver.prototxt").numerics == ("" if numerics == "fp32" else numerics)


@pytest.mark.parametrize(("classes", "measured"), [(5, ["accuracy"]), (6, ["accuracy", "accuracy_top5"])])
def test_top_5_accuracy_is_measured_for_more_than_5_classes(classes, measured):
    dataset = dataclasses.replace(DATASET, classes=classes)
    made = nets(
        TEMPLATES["cifar10_quick"],
        dataset,
        options_for("cifar10_quick", "ip2", 1, 50),
    )
    layers = [layer for layer in made["test"].layer if layer.type == "Accuracy"]
    assert [layer.name for layer in layers] == measured
    assert [layer.accuracy_param.top_k for layer in layers] == [1, 5][: len(measured)]
    assert [layer.name for layer in made["train"].layer if layer.type == "Accuracy"] == ["accuracy"]


@pytest.fixture
def records(tmp_path, monkeypatch):
    """records(channels, classes) gives a dataset of 8 noise images in each part, relative to the test's folder."""
    monkeypatch.chdir(tmp_path)

    def made(channels: int, classes: int) -> Dataset:
        rng = np.random.default_rng(0)
        for part in ("train", "val"):
            Path(f"lmdb/{part}").mkdir(parents=True)
            with lmdb.open(f"lmdb/{part}", map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
                for number in range(8):
                    pixels = rng.integers(0, 256, channels * 28 * 28, np.uint8).tobytes()
                    datum = caffe_pb2.Datum(channels=channels, height=28, width=28, data=pixels, label=number % classes)
                    transaction.put(b"%08d" % number, datum.SerializeToString())
        return Dataset(Path("lmdb/train"), Path("lmdb/val"), Path("mean.binaryproto"), (channels, 28, 28), classes, 8, 8)

    return made


def test_metrics_have_the_first_of_two_accuracies(records):
    experiment = options_for("lenet", "ip2", 1, 8, solver={"max_iter": 1})
    write(records(1, 8), experiment, Path("nets"))
    made, rows = caffe.get_solver("nets/solver.prototxt"), []
    made.on_metrics(rows.append)
    made.step(1)
    top1, top5 = (float(made.test_nets[0].blobs[name].data) for name in ("accuracy", "accuracy_top5"))
    made.close()
    assert rows[0]["test_accuracy"] == pytest.approx(top1)
    assert top1 < top5


def test_pairs_are_classified_by_their_distance(records):
    experiment = options_for("mnist_siamese", "feat", 1, 8, solver={"max_iter": 1, "base_lr": 0.001})
    write(records(2, 2), experiment, Path("nets"))
    assert scores_blob(Path("nets/test.prototxt")) == "scores"
    assert caffe.Net("nets/deploy.prototxt", caffe.TEST).blobs["feat"].data.shape == (1, 2)
    made = caffe.get_solver("nets/solver.prototxt")
    made.step(1)
    np.testing.assert_array_equal(made.net.params["conv1"][0].data, made.net.params["conv1_p"][0].data)
    (net,) = made.test_nets
    net.forward()
    values = {name: net.blobs[name].data.copy() for name in ("feat", "feat_p", "scores", "sim", "accuracy")}
    made.close()
    distance = np.sqrt(((values["feat"] - values["feat_p"]) ** 2).sum(1))
    same = distance < 0.5
    np.testing.assert_array_equal(values["scores"].argmax(1), same)
    assert values["accuracy"] == pytest.approx((same == values["sim"]).mean())


def test_a_frozen_layer_is_frozen_in_both_siamese_branches():
    dataset = dataclasses.replace(DATASET, shape=(2, 28, 28), classes=2)
    experiment = options_for("mnist_siamese", "feat", 10, 8, freeze_to="conv1")
    layers = {layer.name: layer for layer in nets(TEMPLATES["mnist_siamese"], dataset, experiment)["train"].layer}
    for suffix in ("", "_p"):
        assert [spec.lr_mult for spec in layers[f"conv1{suffix}"].param] == [0, 0]
        assert [spec.lr_mult for spec in layers[f"conv2{suffix}"].param] == [1, 2]
        assert [(spec.name, spec.lr_mult) for spec in layers[f"feat{suffix}"].param] == [("feat_w", 10), ("feat_b", 20)]


def test_a_dataset_without_pairs_is_refused(small, fails):
    fails(["images of 3 channels and 3 classes", "mnist_siamese takes pairs"], *PROTOTXT, "--model", "mnist_siamese")


def test_mean_values_for_other_channels_are_refused(small, fails):
    for part in ("train", "val"):
        manifest = small / f"lmdb/{part}.manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"shape": [1, 256, 256]}))
    fails(["googlenet subtracts a value from each of 3 channels", "the images have 1"], *PROTOTXT, "--model", "googlenet")


def test_colour_settings_follow_the_channel_order_of_the_records():
    changes = Augmentation(saturation=0.5)
    experiment = options_for("googlenet", "loss3/classifier", 1, 8, augmentation=changes)
    for channels, values in (("BGR", [104, 117, 123]), ("RGB", [123, 117, 104])):
        dataset = dataclasses.replace(DATASET, shape=(3, 256, 256), channels=channels)
        train = nets(TEMPLATES["googlenet"], dataset, experiment)["train"].layer[0].transform_param
        assert list(train.mean_value) == values
        assert train.augmentation_param.rgb == (channels == "RGB")


def test_only_training_images_are_augmented():
    changes = Augmentation(brightness=0.5, rotation=10)
    made = nets(
        TEMPLATES["cifar10_quick"],
        DATASET,
        options_for("cifar10_quick", "ip2", 1, 50, augmentation=changes),
    )
    assert made["train"].layer[0].transform_param.augmentation_param == as_param(changes)
    assert not made["test"].layer[0].transform_param.HasField("augmentation_param")

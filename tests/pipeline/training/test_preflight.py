"""Preflight checks before training: what cannot work, and common mistakes."""

import json
import shutil
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest

import caffe
from caffe.db import LMDBFile
from caffe.proto import caffe_pb2
from pipeline.training import preflight
from pipeline.training.initial_weights import WeightFiles, copy_weights
from tests.pipeline.training.test_train import change

NETS = ("train.prototxt", "test.prototxt")


def findings(*files: str, skip: tuple[str, ...] = (), same_classes: bool = False) -> list[preflight.Finding]:
    """Preflight findings for solver.prototxt, starting from these weights."""
    solver = caffe.get_solver("solver.prototxt")
    found = preflight.findings(
        solver,
        copy_weights(solver.net, WeightFiles([Path(file) for file in files]), skip),
        same_classes,
    )
    solver.close()
    return found


def build(folder: Path, labels: list[int], manifest: int | None = None, values: tuple[int, int] = (0, 256)) -> None:
    """Replace the training database by one of noise with these labels, in this order."""
    shutil.rmtree(folder / "lmdb/train")
    (folder / "lmdb/train.manifest.json").unlink(missing_ok=True)
    if manifest:
        (folder / "lmdb/train.manifest.json").write_text(json.dumps({"classes": manifest}))
    rng = np.random.default_rng(1)
    with lmdb.open(str(folder / "lmdb/train"), map_size=1 << 24) as database, database.begin(write=True) as transaction:
        for number, label in enumerate(labels):
            data = rng.integers(*values, 192).astype(np.uint8).tobytes()
            record = caffe_pb2.Datum(channels=3, height=8, width=8, data=data, label=label)
            transaction.put(b"%08d" % number, record.SerializeToString())


def test_a_correct_training_has_no_findings(here, command):
    done = command("pipeline.training.preflight", "solver.prototxt", "--csv", "found.csv")
    assert (done.returncode, done.stdout) == (0, "solver.prototxt: nothing found\n"), done.stderr
    assert (here / "found.csv").read_text() == "kind,where,found,do\n"


def test_databases_that_the_nets_have_opened_are_not_opened_again(here, monkeypatch):
    opened, init = [], LMDBFile.__init__
    monkeypatch.setattr(LMDBFile, "__init__", lambda file, source: opened.append(source) or init(file, source))
    solver = caffe.get_solver("solver.prototxt")
    assert sorted(opened) == ["lmdb/train", "lmdb/val"]
    preflight.findings(solver, [], same_classes=False)
    assert len(opened) == 2
    solver.close()


def test_all_findings_are_reported_at_once(here, command):
    build(here, [1, 2, 3] * 20)
    change(here, "scale: 0.004", "", *NETS)
    (here / "start.prototxt").write_text((here / "test.prototxt").read_text().replace("num_output: 3", "num_output: 5"))
    caffe.Net("start.prototxt", caffe.TEST).save("start.caffemodel")
    done = command("pipeline.training.preflight", "solver.prototxt", "--weights", "start.caffemodel")
    assert done.returncode == 1
    shape, labels = done.stderr.splitlines()
    assert shape.startswith('error: start.caffemodel: layer "scores": parameter 0 has shape (5, 6), but the net\'s has (3, 6)')
    assert "set rename_last: true in the experiment" in shape
    assert labels.startswith('lmdb/train: labels 1 to 3, but layer "scores" has 3 outputs, for labels 0 to 2')
    assert "subtract 1" in labels
    (warning,) = done.stdout.splitlines()
    assert warning.startswith('warning: lmdb/train: layer "data": inputs reach 255, with no mean subtracted')


def test_scores_are_counted_per_image_whatever_their_shape(here):
    maps = 'name: "maps" type: "Reshape" bottom: "scores" top: "maps" reshape_param { shape { dim: 0 dim: 1 dim: 1 dim: -1 } }'
    loss = 'name: "loss" type: "HingeLoss" bottom: "maps" bottom: "label"'
    change(here, 'name: "loss" type: "SoftmaxWithLoss" bottom: "scores" bottom: "label"', f"{maps} }}\nlayer {{ {loss}", *NETS)
    assert findings() == []


def test_labels_are_taken_from_the_manifest_if_it_has_them(here):
    build(here, [0, 1, 2] * 20, manifest=7)
    (found,) = findings()
    assert (found.kind, found.where, found.do) == ("error", "lmdb/train", "set num_output: 7")
    assert "labels 0 to 6" in found.found


def test_images_of_one_class_are_an_error(here):
    build(here, [0] * 20)
    change(here, "num_output: 3", "num_output: 1", *NETS)
    (found,) = (one for one in findings() if one.where == 'layer "scores"')
    assert (found.kind, found.do.split(":")[0]) == ("error", "give images of two classes or more")


def test_outputs_without_labels_and_a_missing_label_0_are_warnings(here):
    build(here, [0, 1] * 30)
    (found,) = findings()
    assert (found.kind, found.do.split(",")[0]) == ("warning", "set num_output: 2")
    build(here, [1, 2] * 30)
    (found,) = findings()
    assert (found.kind, found.found) == ("warning", "no label 0: the lowest is 1")


def test_an_ignore_label_is_not_an_error(here):
    build(here, [0, 1, 2, 255] * 15)
    change(here, 'type: "SoftmaxWithLoss"', 'type: "SoftmaxWithLoss" loss_param { ignore_label: 255 }', "train.prototxt")
    assert findings() == []


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0] * 200 + [1] * 200 + [2] * 200, "of the first 600 records, 597 have the label of the record before; about 199 would"),
        ([0] * 5100 + [1, 2], "the first 5000 records all have label 0"),
    ],
)
def test_records_sorted_by_class_are_a_warning(here, labels, said):
    build(here, labels, manifest=3)
    (found,) = findings()
    assert (found.kind, found.where) == ("warning", "lmdb/train")
    assert said in found.found


@pytest.mark.parametrize("share", [0.34, 0.9, 0.99])
def test_shuffled_records_of_unequal_classes_are_no_finding(here, share):
    rng = np.random.default_rng(3)
    build(here, [0, 1, 2, *rng.choice(3, 1000, p=[share, (1 - share) / 2, (1 - share) / 2]).tolist()])
    assert findings() == []


@pytest.mark.parametrize(
    ("batch", "batches", "said", "do"),
    [
        (1, 2, "a test reads 2 of 3 images (test_iter 2 × batch_size 1)", "set test_iter: 3"),
        (3, 2, "each equally often", "set test_iter: 1"),
        (2, 2, "some count more often than others", "take a batch_size that divides 3"),
    ],
)
def test_a_test_of_fewer_or_more_images_than_there_are_is_a_warning(here, batch, batches, said, do):
    change(here, "batch_size: 3", f"batch_size: {batch}", "test.prototxt")
    change(here, "test_iter: 1", f"test_iter: {batches}", "solver.prototxt")
    (found,) = findings()
    assert found.kind == "warning"
    assert said in found.found
    assert do in found.do


def test_a_mean_of_another_shape_is_an_error_before_training(small, fails):
    mean = caffe_pb2.BlobProto(num=1, channels=3, height=4, width=4, data=np.zeros(48))
    (small / "mean.binaryproto").write_bytes(mean.SerializeToString())
    change(small, "scale: 0.004", 'mean_file: "mean.binaryproto"', "train.prototxt")
    said = ['train.prototxt:2: layer "data"', "mean.binaryproto has shape (3, 4, 4)", "the images have (3, 8, 8)"]
    fails(said, "pipeline.training.preflight", "solver.prototxt")


def test_large_inputs_that_nothing_scales_are_a_warning(here):
    change(here, "scale: 0.004", "", *NETS)
    (found,) = findings()
    assert (found.kind, found.where) == ("warning", 'lmdb/train: layer "data"')
    assert "with no mean subtracted" in found.found
    build(here, [0, 1, 2] * 20, values=(0, 17))
    assert findings() == []


def test_large_inputs_that_a_layer_normalises_are_no_finding(here):
    change(here, "scale: 0.004", "", *NETS)
    first = 'layer { name: "norm" type: "BatchNorm" bottom: "data" top: "norm" }\nlayer { name: "hidden"'
    change(here, 'layer { name: "hidden"', first, *NETS)
    change(here, 'bottom: "data" top: "hidden"', 'bottom: "norm" top: "hidden"', *NETS)
    assert findings() == []


def test_different_preprocessing_in_training_and_testing_is_a_warning(here):
    change(here, "scale: 0.004", "scale: 0.008", "test.prototxt")
    (found,) = findings()
    assert (found.kind, found.found) == ("warning", "scale 0.004 in training, and 0.008 in testing")


def add_batch_norm(folder: Path, **params: str) -> None:
    """Add a BatchNorm after the layer "hidden" to each net, with the parameters given for it."""
    for net, param in params.items():
        norm = f'layer {{ name: "norm" type: "BatchNorm" bottom: "hidden" top: "hidden" batch_norm_param {{ {param} }} }}'
        change(folder, 'layer { name: "scores"', norm + '\nlayer { name: "scores"', f"{net}.prototxt")


@pytest.mark.parametrize(
    ("batches", "size", "do"),
    [
        (257, 2, "hold out 513 images, of which 171 make a batch"),
        (60, 2, "set batch_size: 120 and test_iter: 1"),
        (1, 120, ""),
        (15, 8, ""),
    ],
)
def test_a_test_of_many_small_batches_is_reported_as_slow(here, batches, size, do):
    build(here, [0, 1, 2] * (batches * size // 3) + [0] * (batches * size % 3))
    change(here, "lmdb/val", "lmdb/train", "test.prototxt")
    change(here, "batch_size: 3", f"batch_size: {size}", "test.prototxt")
    change(here, "test_iter: 1", f"test_iter: {batches}", "solver.prototxt")
    assert [one.do for one in findings() if "which is slow" in one.found] == [do] * bool(do)


@pytest.mark.parametrize(
    ("train", "test", "frozen", "said"),
    [
        ("", "", False, []),
        ("use_global_stats: false", "use_global_stats: true", False, []),
        ("use_global_stats: true", "", False, ["no weights give it statistics"]),
        ("", "use_global_stats: false", False, ["use_global_stats: false in testing"]),
        ("", "", True, ['though layer "hidden" before it is frozen']),
    ],
)
def test_batch_norm_in_the_wrong_mode_is_reported(here, train, test, frozen, said):
    add_batch_norm(here, train=train, test=test)
    if frozen:
        specs = "param { lr_mult: 0 } param { lr_mult: 0 } inner_product_param { num_output: 6"
        change(here, "inner_product_param { num_output: 6", specs, "train.prototxt")
    found = findings()
    assert [one.where for one in found] == ['layer "norm"'] * len(said)
    for one, words in zip(found, said, strict=True):
        assert words in one.found


def test_batch_norm_with_statistics_from_the_weights_is_no_finding(here):
    add_batch_norm(here, train="use_global_stats: true", test="")
    caffe.Net("test.prototxt", caffe.TEST).save("start.caffemodel")
    assert findings("start.caffemodel", same_classes=True) == []


def test_a_copied_last_layer_is_a_warning_unless_the_classes_are_the_same(here):
    caffe.Net("test.prototxt", caffe.TEST).save("start.caffemodel")
    (found,) = findings("start.caffemodel")
    assert (found.kind, found.where) == ("warning", 'start.caffemodel: layer "scores"')
    assert "rename_last: true" in found.do
    assert findings("start.caffemodel", same_classes=True) == []
    assert findings("start.caffemodel", skip=("scores",)) == []


def test_layers_of_other_shapes_are_errors_unless_skipped(here):
    change(here, "num_output: 6", "num_output: 7", *NETS)
    caffe.Net("test.prototxt", caffe.TEST).save("start.caffemodel")
    change(here, "num_output: 7", "num_output: 6", *NETS)
    found = findings("start.caffemodel")
    assert [(one.kind, one.where) for one in found] == [
        ("error", f'start.caffemodel: layer "{name}"') for name in ("hidden", "scores")
    ]
    assert "skip_layers" in found[0].do
    assert "rename_last: true" in found[1].do
    (found,) = findings("start.caffemodel", skip=("hidden", "scores"))
    assert "the net takes none" in found.found


def test_a_list_of_images_is_checked_too(here, picture):
    for number in range(3):
        cv2.imwrite(f"{number}.png", picture(number, 8, 8))
    Path("list.txt").write_text("".join(f"{number}.png {number + 1}\n" for number in range(3)))
    change(here, 'type: "Data"', 'type: "ImageData"', "train.prototxt")
    old = 'data_param { source: "lmdb/train" batch_size: 3 backend: LMDB }'
    change(here, old, 'image_data_param { source: "list.txt" batch_size: 3 }', "train.prototxt")
    (found,) = findings()
    assert (found.kind, found.where) == ("error", "list.txt")
    assert "subtract 1" in found.do


@pytest.mark.parametrize(("shuffle", "kinds"), [("", ["warning"]), ("shuffle: true", [])])
def test_a_list_of_images_by_class_is_a_warning_unless_the_layer_shuffles_it(here, picture, shuffle, kinds):
    cv2.imwrite("a.png", picture(0, 8, 8))
    Path("list.txt").write_text("".join(f"a.png {number // 40}\n" for number in range(120)))
    change(here, 'type: "Data"', 'type: "ImageData"', "train.prototxt")
    old = 'data_param { source: "lmdb/train" batch_size: 3 backend: LMDB }'
    change(here, old, f'image_data_param {{ source: "list.txt" batch_size: 3 {shuffle} }}', "train.prototxt")
    assert [found.kind for found in findings()] == kinds

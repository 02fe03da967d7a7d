"""A training resumed from a snapshot is bit-identical to an uninterrupted one, random draws included."""

import json

import h5py
import lmdb
import numpy as np
import pytest
import torch

import caffe
from caffe.proto import caffe_pb2

SOURCES = {
    "Data": 'data_param { source: "db" batch_size: 8 backend: LMDB }',
    "ImageData": 'image_data_param { source: "images.txt" batch_size: 8 shuffle: true rand_skip: 9 }',
}
CROPPED = "crop_size: 12 mirror: true scale: 0.004"
CHANGES = "augmentation_param { brightness: 0.3 rotation: 10 noise: 3 }"
CLASSIFIED = """
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 8 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: STOCHASTIC kernel_size: 2 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool" top: "conv2"
  convolution_param { num_output: 16 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "drop" type: "Dropout" bottom: "conv2" top: "conv2" }
layer { name: "ip" type: "InnerProduct" bottom: "conv2" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


@pytest.fixture
def images(tmp_path, monkeypatch):
    """30 records, as a database and as a list of files, in the working folder."""
    import cv2

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    lines = []
    with lmdb.open("db", map_size=1 << 24) as database, database.begin(write=True) as transaction:
        for number in range(30):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            record = caffe_pb2.Datum(channels=3, height=16, width=16, data=pixels.transpose(2, 0, 1).tobytes(), label=number % 3)
            transaction.put(b"%08d" % number, record.SerializeToString())
            cv2.imwrite(f"{number}.png", pixels)
            lines.append(f"{number}.png {number % 3}\n")
    (tmp_path / "images.txt").write_text("".join(lines))
    return tmp_path


def source(kind):
    """A training source of that type, and a test source whose tests do not end with an epoch."""
    return f"""
    layer {{ name: "data" type: "{kind}" top: "data" top: "label" include {{ phase: TRAIN }}
      transform_param {{ {CROPPED} {CHANGES} }} {SOURCES[kind]} }}
    layer {{ name: "data" type: "Data" top: "data" top: "label" include {{ phase: TEST }}
      transform_param {{ {CROPPED} }} data_param {{ source: "db" batch_size: 7 backend: LMDB }} }}"""


def run(folder, net, steps, rest="", start=None):
    """Weights, displayed losses and test losses of a training of `steps` iterations, resumed from `start` if given."""
    (folder / "net.prototxt").write_text(net)
    (folder / "solver.prototxt").write_text(
        'net: "net.prototxt" base_lr: 0.01 momentum: 0.9 lr_policy: "fixed" display: 1 average_loss: 4 solver_mode: CPU'
        f' max_iter: 99 snapshot_prefix: "run" snapshot_after_train: false {rest}'
    )
    solver = caffe.get_solver("solver.prototxt")
    rows = []
    solver.on_metrics(rows.append)
    if start:
        solver.restore(start)
    solver.step(steps)
    solver.close()
    weights = {
        f"{name}.{index}": blob.data.copy() for name, blobs in solver.net.params.items() for index, blob in enumerate(blobs)
    }
    return weights, [row["loss"] for row in rows], [row["test_loss"] for row in rows]


def assert_resumes_exactly(folder, net, rest="", extension=""):
    """Compare a training of 12 iterations with one resumed, with another seed, from its snapshot at 6."""
    weights, losses, tests = run(folder, net, 12, f"snapshot: 6 {rest}")
    assert all(np.isfinite(loss) for loss in losses)
    (folder / "run_iter_12.caffemodel").unlink(missing_ok=True)
    caffe.set_random_seed(99)
    again, later, tested = run(folder, net, 6, rest, f"run_iter_6.solverstate{extension}")
    for name, values in weights.items():
        np.testing.assert_array_equal(values, again[name], name)
    assert (losses[6:], tests[6:]) == (later, tested)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("extension", ["", ".h5"])
def test_a_resumed_training_makes_the_same_random_draws(images, kind, extension):
    rest = "test_iter: 2 test_interval: 2" + (" snapshot_format: HDF5" if extension else "")
    assert_resumes_exactly(images, source(kind) + CLASSIFIED, rest, extension)


@pytest.mark.parametrize("extension", ["", ".h5"])
def test_a_net_with_shared_parameters_resumes(tmp_path, monkeypatch, extension):
    monkeypatch.chdir(tmp_path)
    layers = (
        'layer { name: "x" type: "DummyData" top: "x" dummy_data_param { shape { dim: 4 dim: 5 } data_filler { value: 1 } } }'
    )
    for name, bottom, top in (("one", "x", "a"), ("two", "a", "b")):
        layers += (
            f' layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{top}" param {{ name: "w" }}'
            ' inner_product_param { num_output: 5 weight_filler { type: "xavier" } bias_term: false } }'
        )
    layers += ' layer { name: "loss" type: "EuclideanLoss" bottom: "b" bottom: "x" top: "loss" }'
    assert_resumes_exactly(tmp_path, layers, "snapshot_format: HDF5" if extension else "", extension)


def test_shuffled_hdf5_rows_resume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, count in (("a", 7), ("b", 11)):
        with h5py.File(f"{name}.h5", "w") as file:
            file["data"], file["label"] = rng.random((count, 3, 12, 12)), rng.integers(0, 3, count)
    (tmp_path / "files.txt").write_text("a.h5\nb.h5\n")
    layer = 'layer { name: "data" type: "HDF5Data" top: "data" top: "label"'
    assert_resumes_exactly(
        tmp_path, layer + ' hdf5_data_param { source: "files.txt" batch_size: 8 shuffle: true } }' + CLASSIFIED
    )


def test_a_shuffled_epoch_has_each_row_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, values in (("a", range(5)), ("b", range(5, 12))):
        with h5py.File(f"{name}.h5", "w") as file:
            file["x"] = np.array(values, float)[:, None]
    (tmp_path / "files.txt").write_text("a.h5\nb.h5\n")
    text = 'layer { name: "x" type: "HDF5Data" top: "x" hdf5_data_param { source: "files.txt" batch_size: 6 shuffle: true } }'
    (tmp_path / "net.prototxt").write_text(text)
    net = caffe.Net("net.prototxt", caffe.TRAIN)
    epochs = [[row for _ in range(2) for row in net.forward()["x"].ravel().tolist()] for _ in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    net.layers[0].seek(12 + 6)
    assert net.forward()["x"].ravel().tolist() == epochs[1][6:]


def test_the_state_of_a_recurrent_layer_resumes(tmp_path):
    net = """
    layer { name: "x" type: "DummyData" top: "x" top: "y" dummy_data_param {
      shape { dim: 3 dim: 2 dim: 4 } shape { dim: 3 dim: 2 dim: 5 } data_filler { type: "gaussian" } } }
    layer { name: "marks" type: "DummyData" top: "marks" dummy_data_param { shape { dim: 3 dim: 2 } data_filler { value: 1 } } }
    layer { name: "lstm" type: "LSTM" bottom: "x" bottom: "marks" top: "h"
      recurrent_param { num_output: 5 weight_filler { type: "uniform" min: -0.5 max: 0.5 } } }
    layer { name: "loss" type: "EuclideanLoss" bottom: "h" bottom: "y" top: "loss" }"""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert_resumes_exactly(tmp_path, net)


def test_sources_that_share_a_name_each_resume_at_their_position(images):
    sources = "".join(
        f"""layer {{ name: "data" type: "Data" top: "{top}" top: "label_{top}"
          transform_param {{ {CROPPED} }} data_param {{ source: "db" batch_size: {batch} backend: LMDB }} }}"""
        for top, batch in (("one", 5), ("two", 3))
    )
    rest = """
    layer { name: "together" type: "Concat" bottom: "one" bottom: "two" top: "data" concat_param { axis: 0 } }
    layer { name: "labels" type: "Concat" bottom: "label_one" bottom: "label_two" top: "label" concat_param { axis: 0 } }"""
    assert_resumes_exactly(images, sources + rest + CLASSIFIED)


@pytest.mark.parametrize("diff", ["", "snapshot_diff: true"])
@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
def test_taking_snapshots_does_not_change_training(images, form, diff):
    net = source("Data") + CLASSIFIED
    (weights, *losses), (others, *theirs) = (
        run(images, net, 8, f"random_seed: 4 test_iter: 2 test_interval: 3 {more}")
        for more in ("", f"snapshot: 2 snapshot_format: {form} {diff}")
    )
    for name, values in weights.items():
        np.testing.assert_array_equal(values, others[name], name)
    assert losses == theirs


class Noisy(caffe.Layer):
    """Adds PyTorch's own random numbers."""

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data + torch.rand(bottom[0].shape).numpy()


def test_a_layer_in_python_that_draws_from_pytorch_resumes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = f"""
    layer {{ name: "x" type: "DummyData" top: "x" top: "t" dummy_data_param {{ shape {{ dim: 4 dim: 5 }} shape {{ dim: 4 dim: 2 }}
      data_filler {{ value: 1 }} data_filler {{ value: 2 }} }} }}
    layer {{ name: "noisy" type: "Python" bottom: "x" top: "y" python_param {{ module: "{__name__}" layer: "Noisy" }} }}
    layer {{ name: "ip" type: "InnerProduct" bottom: "y" top: "ip"
      inner_product_param {{ num_output: 2 weight_filler {{ type: "xavier" }} }} }}
    layer {{ name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "t" top: "loss" }}"""
    assert_resumes_exactly(tmp_path, net)


def test_a_state_from_before_version_0_3_resumes_with_new_random_numbers(images, capfd):
    run(images, source("Data") + CLASSIFIED, 2, "snapshot: 2")
    state = caffe_pb2.SolverState.FromString((images / "run_iter_2.solverstate").read_bytes())
    state.run.ClearField("random")
    state.run.layer[0].generator = json.dumps(np.random.default_rng(1).bit_generator.state)
    position = state.run.layer[0].position
    (images / "run_iter_2.solverstate").write_bytes(state.SerializeToString())
    caffe.init_log(0)
    solver = caffe.get_solver("solver.prototxt")
    solver.restore("run_iter_2.solverstate")
    caffe.init_log(2)
    assert "new ones are drawn" in capfd.readouterr().err
    kept = caffe_pb2.LayerState()
    solver.net.layers[0].keep(kept)
    assert solver.iter == 2
    assert kept.position == position > 0
    solver.step(1)
    solver.close()


@pytest.mark.parametrize(
    "damage",
    [
        {"random": "{}"},
        {"random": '{"key": [1], "position": 3}'},
        *({"layer": [{"name": "data", "generator": text}]} for text in ("{}", "x", '{"key": 1}')),
    ],
)
def test_a_damaged_solver_state_is_named(images, damage):
    run(images, source("Data") + CLASSIFIED, 2, "snapshot: 2")
    state = caffe_pb2.SolverState.FromString((images / "run_iter_2.solverstate").read_bytes())
    for field in damage:
        state.run.ClearField(field)
    state.run.MergeFrom(caffe_pb2.RunState(**damage))
    (images / "run_iter_2.solverstate").write_bytes(state.SerializeToString())
    solver = caffe.get_solver("solver.prototxt")
    with pytest.raises(caffe.FileError) as raised:
        solver.restore("run_iter_2.solverstate")
    solver.close()
    assert raised.value.where == "run_iter_2.solverstate"
    assert "damaged" in raised.value.found

"""pycaffe's public names: all exist, and the smaller ones behave as in pycaffe."""

import copy
import importlib
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import caffe
from caffe import coord_map
from caffe import layers as L
from caffe import params as P
from tests.caffe.layer_checks import exercises

OF_CAFFE = [
    *("AdaDeltaSolver", "AdaGradSolver", "AdamSolver", "Classifier", "Detector", "Layer", "NCCL", "NesterovSolver"),
    *("Net", "NetSpec", "RMSPropSolver", "SGDSolver", "TEST", "TRAIN", "Timer", "__version__", "get_solver"),
    *("has_nccl", "init_log", "io", "layer_type_list", "layers", "log", "net_spec", "params", "proto", "pycaffe"),
    *("set_device", "set_mode_cpu", "set_mode_gpu", "set_multiprocess", "set_random_seed", "set_solver_count"),
    *("set_solver_rank", "solver_count", "solver_rank", "to_proto", "_caffe", "classifier", "coord_map", "detector"),
    "draw",
]
OURS = [
    *("Blob", "Error", "FileError", "LayerError", "ParseError", "Solver", "SolverError", "WeightsError", "log_to_file"),
    *("nearest", "read_net", "read_solver", "write_prototxt", "allocator", "augmentation", "datum", "db", "transform"),
    *("DivergenceError", "check_bottoms", "layer_places", "layer_type", "NetGraph", "open_db", "written_whole"),
    *("parse_datum", "pixels_of", "Generator", "set_numerics", "softmax", "disk_errors", "DiskError", "preflight"),
    *("set_phase_test", "set_phase_train", "read_prototxt", "read_mean"),
]


def test_the_public_names_are_those_of_pycaffe_and_those_listed_here():
    assert sorted(caffe.__all__) == sorted([*OF_CAFFE, *OURS])
    assert dir(caffe) == sorted(caffe.__all__)
    assert all(getattr(caffe, name) is not None for name in caffe.__all__)
    assert not hasattr(caffe, "absent")


@pytest.mark.parametrize("name", ["_caffe", "classifier", "coord_map", "detector", "draw", "io", "net_spec", "proto", "pycaffe"])
def test_a_module_can_be_imported_by_its_name_and_is_an_attribute(name):
    module = importlib.import_module(f"caffe.{name}")
    assert isinstance(module, types.ModuleType)
    assert getattr(caffe, name) is module


def test_caffe_and_its_binding_modules_export_the_same_objects():
    for module in (importlib.import_module("caffe._caffe"), importlib.import_module("caffe.pycaffe")):
        shared = set(module.__all__) & set(caffe.__all__)
        assert len(shared) >= 10
        assert all(getattr(module, name) is getattr(caffe, name) for name in shared)
    assert importlib.import_module("caffe._caffe").SolverParameter is caffe.proto.caffe_pb2.SolverParameter


def test_proto_io_and_net_spec_are_imported_without_heavy_packages():
    code = "import sys, caffe; caffe.NetSpec, caffe.io, caffe.proto.caffe_pb2; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "cv2", "h5py", "matplotlib", "pandas", "scipy", "sklearn", "onnx", "snakemake", "PIL"}
    assert heavy & set(done.stdout.split()) == set()


# ---- the process


def test_solver_count_and_rank_are_set_and_checked():
    assert (caffe.solver_count(), caffe.solver_rank()) == (1, 0)
    try:
        caffe.set_solver_count(4)
        caffe.set_solver_rank(3)
        caffe.set_multiprocess(True)
        assert (caffe.solver_count(), caffe.solver_rank()) == (4, 3)
    finally:
        caffe.set_solver_count(1)
        caffe.set_solver_rank(0)
        caffe.set_multiprocess(False)
    for wrong in (lambda: caffe.set_solver_count(0), lambda: caffe.set_solver_rank(-1)):
        with pytest.raises(caffe.Error):
            wrong()


def test_a_timer_measures_from_start_to_stop(monkeypatch):
    clock = iter([1.0, 1.25, 2.0, 2.125])
    monkeypatch.setattr("caffe.timer._now", lambda: next(clock))
    timer = caffe.Timer()
    assert timer.ms == 0
    timer.start()
    timer.start()  # no effect: it is running already
    timer.stop()
    timer.stop()
    assert timer.ms == 250
    timer.start()
    assert timer.ms == 125
    assert timer.ms == 125


@exercises("DummyData")
def test_a_seed_gives_the_same_fillers(write):
    text = 'layer { name: "p" type: "DummyData" top: "p" dummy_data_param { shape { dim: 9 } data_filler { type: "gaussian" } } }'
    path = write("net.prototxt", text)
    drawn = []
    for seed in (5, 5, 6):
        caffe.set_random_seed(seed)
        drawn.append(caffe.Net(path, caffe.TEST).forward()["p"].copy())
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


# ---- several solvers

TOGETHER = """
import sys
import numpy as np
import caffe

rank, uid = int(sys.argv[1]), sys.argv[2]
caffe.set_solver_count(2)
caffe.set_solver_rank(rank)
caffe.set_multiprocess(True)
caffe.set_random_seed(rank)
solver = caffe.SGDSolver("solver.prototxt")
nccl = caffe.NCCL(solver, uid)
nccl.bcast()
np.save(f"first{rank}", solver.net.params["ip"][0].data)
solver.add_callback(nccl.on_start, nccl.on_gradients_ready)
for x, t in np.load("data.npy"):
    rows = slice(4 * rank, 4 * rank + 4)
    solver.net.blobs["x"].data[...] = x[rows]
    solver.net.blobs["t"].data[...] = t[rows]
    solver.step(1)
np.save(f"last{rank}", solver.net.params["ip"][0].data)
"""
NET = """
layer { name: "x" type: "Input" top: "x" top: "t" input_param { shape { dim: BATCH dim: 3 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "t" top: "loss" }
"""


def test_two_processes_train_like_one_with_the_combined_batch(write, tmp_path):
    write("net.prototxt", NET.replace("BATCH", "4"))
    solver_text = 'net: "net.prototxt" base_lr: 0.1 momentum: 0.9 lr_policy: "fixed" max_iter: 9 solver_mode: CPU'
    write("solver.prototxt", solver_text)
    steps = np.random.default_rng(0).normal(size=(5, 2, 8, 3)).astype(np.float32)
    np.save(tmp_path / "data.npy", steps)
    uid = caffe.NCCL.new_uid()
    assert isinstance(uid, bytes)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(rank), uid.decode()], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    first, last = ([np.load(tmp_path / f"{name}{rank}.npy") for rank in (0, 1)] for name in ("first", "last"))
    np.testing.assert_array_equal(*first)
    np.testing.assert_array_equal(*last)
    whole = write("whole.prototxt", NET.replace("BATCH", "8"))
    alone = caffe.SGDSolver(write("alone.prototxt", solver_text.replace("net.prototxt", whole)))
    alone.net.params["ip"][0].data[...] = first[0]
    for x, t in steps:
        alone.net.blobs["x"].data[...] = x
        alone.net.blobs["t"].data[...] = t
        alone.step(1)
    np.testing.assert_allclose(last[0], alone.net.params["ip"][0].data, rtol=1e-4, atol=1e-6)


def test_a_rank_beyond_the_count_is_refused(write):
    write("net.prototxt", NET.replace("BATCH", "4"))
    solver = caffe.SGDSolver(
        write("solver.prototxt", f'net: "{write("net.prototxt", NET.replace("BATCH", "4"))}" lr_policy: "fixed"')
    )
    caffe.set_solver_rank(1)
    try:
        with pytest.raises(caffe.Error) as error:
            caffe.NCCL(solver, caffe.NCCL.new_uid())
    finally:
        caffe.set_solver_rank(0)
    assert error.value.found == "solver rank 1"


# ---- coordinates


def spec(kernel=3, stride=1, pad=0, deconv_pad=0):
    """Convolution, pooling by 2, and a deconvolution by 2."""
    n = caffe.NetSpec()
    n.data = L.Input(shape={"dim": [1, 1, 48, 48]})
    n.conv = L.Convolution(n.data, num_output=2, kernel_size=kernel, stride=stride, pad=pad)
    n.relu = L.ReLU(n.conv, in_place=True)
    n.pool = L.Pooling(n.relu, pool=P.Pooling.AVE, kernel_size=2, stride=2)
    n.up = L.Deconvolution(n.pool, convolution_param={"num_output": 1, "kernel_size": 4, "stride": 2, "pad": deconv_pad})
    return n


def receptive_centre(n, name, position):
    """Row and column of the receptive field's centre of the four pixels around `position`, by the gradient of the data."""
    definition = n.to_proto()
    definition.force_backward = True
    net = caffe.Net(definition, caffe.TEST)
    for blobs in net.params.values():
        blobs[0].data[...] = 1
    net.blobs["data"].data[...] = 1
    net.forward()
    row, column = (int(axis - 0.5) for axis in position)
    net.blobs[name].diff[0, 0, row : row + 2, column : column + 2] = 1
    gradient = net.backward()["data"][0, 0]
    places = np.arange(48)
    return np.array([gradient.sum(1) @ places, gradient.sum(0) @ places]) / gradient.sum()


SETTINGS = [
    {},
    {"pad": 3},
    {"kernel": 5},
    {"deconv_pad": 2},
    {"stride": 2},
    {"kernel": [3, 7], "pad": [0, 2]},
    {"stride": [1, 2]},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_coord_map_gives_the_centre_of_a_pixels_receptive_field(settings):
    n = spec(**settings)
    axis, a, b = coord_map.coord_map_from_to(n.up, n.data)
    assert axis == 1
    position = np.array([10.5, 8.5])
    np.testing.assert_allclose(receptive_centre(n, "up", position), a * position + b, atol=1e-4)


@pytest.mark.parametrize("settings", [{"pad": 3}, {"pad": [4, 7]}, {"kernel": 5, "pad": 8}], ids=str)
def test_a_cropped_blob_is_aligned_with_the_data(settings):
    n = spec(**settings)
    n.score = coord_map.crop(n.up, n.data)
    position = np.array([20.5, 17.5])
    np.testing.assert_allclose(receptive_centre(n, "score", position), position, atol=1e-4)


def test_a_crop_shifts_the_coord_map_by_its_offset():
    n = spec()
    _, a, b = coord_map.coord_map_from_to(n.up, n.data)
    n.crop = L.Crop(n.up, n.data, axis=2, offset=7)
    axis, a_cropped, b_cropped = coord_map.coord_map_from_to(n.crop, n.data)
    assert (axis, a_cropped, b_cropped) == (1, a, b + 7)


def test_an_impossible_crop_says_why():
    n = spec(deconv_pad=3)
    with pytest.raises(AssertionError, match="must be the larger one"):
        coord_map.crop(n.up, n.data)
    n = spec(stride=2)
    with pytest.raises(AssertionError, match="the same scale"):
        coord_map.crop(n.up, n.data)
    n.fc = L.InnerProduct(n.up, num_output=3)
    with pytest.raises(RuntimeError, match="no common origin"):
        coord_map.coord_map_from_to(n.fc, n.data)
    with pytest.raises(coord_map.UndefinedMapException):
        coord_map.coord_map(n.fc.fn)
    with pytest.raises(coord_map.AxisMismatchException):
        coord_map.compose((1, 1, 0), (2, 1, 0))
    sided = L.Convolution(n.data, num_output=1, kernel_h=3, kernel_w=5)
    with pytest.raises(coord_map.CropError, match="kernel_h, kernel_w"):
        coord_map.conv_params(sided.fn)


def test_private_names_of_the_binding_that_scripts_use_exist(write):
    text = """
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" loss_weight: 2 inner_product_param { num_output: 4 } }
"""
    net = caffe.Net(write("net.prototxt", text), caffe.TEST)
    assert net._layer_names == ["in", "ip"]
    assert net._blob_names == ["x", "y"]
    assert [blob.shape for blob in net._blobs] == [(2, 3), (2, 4)]
    assert (net._inputs, net._outputs, net._bottom_ids(1), net._top_ids(1)) == ([0], [1], [0], [1])
    assert net._blob_loss_weights == [0, 2]
    names = caffe.pycaffe._Net_get_id_name(type(net)._top_ids, "_test_names").fget(net)
    assert names == {"in": ["x"], "ip": ["y"]}
    assert net._test_names is names
    assert [batch["x"].shape for batch in net._batch({"x": np.ones((3, 3))})] == [(2, 3), (2, 3)]


def test_a_name_that_a_net_does_not_have_is_answered_with_the_nearest(write):
    text = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 } } }'
    text += 'layer { name: "fc7" type: "InnerProduct" bottom: "data" top: "fc7" inner_product_param { num_output: 4 } }'
    net = caffe.Net(path := write("net.prototxt", text), caffe.TEST)
    for names, asked, said in (
        (net.blobs, "dta", 'no blob "dta"; did you mean "data"?'),
        (net.blobs, "prob", 'no blob "prob"; it has data, fc7'),
        (net.params, "fc8", 'no layer with parameters "fc8"; it has fc7'),
        (net.params, "fc77", 'no layer with parameters "fc77"; did you mean "fc7"?'),
    ):
        with pytest.raises(KeyError) as error:
            names[asked]
        assert str(error.value) == f"{path}: {said}"
        assert isinstance(error.value, caffe.Error)
        assert asked not in names
        assert names.get(asked) is None
    shapes = copy.deepcopy(net.params)
    assert list(shapes) == list(net.params)
    with pytest.raises(KeyError, match="it has fc7"):
        shapes["x"]


def test_a_missing_file_is_a_runtime_error_as_in_pycaffe(write):
    with pytest.raises(RuntimeError, match="absent"):
        caffe.Net("absent.prototxt", caffe.TEST)


@pytest.mark.parametrize(("content", "message"), [(None, "no such image"), (b"no image", "not an image that OpenCV can read")])
def test_an_unreadable_image_is_an_oserror_that_scripts_can_catch(tmp_path, content, message):
    path = tmp_path / "cat.jpg"
    if content:
        path.write_bytes(content)
    with pytest.raises(OSError, match=f"cat.jpg: {message}$") as error:
        caffe.io.load_image(str(path))
    assert isinstance(error.value, caffe.FileError)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


@pytest.mark.parametrize("phase", [(), ("lenet.caffemodel", "test")])
def test_a_net_without_a_phase_is_refused_with_the_correct_call(phase):
    with pytest.raises(TypeError, match=r"caffe\.TRAIN or caffe\.TEST, not .*: caffe\.Net\(net, weights, caffe\.TEST\)"):
        caffe.Net("absent.prototxt", *phase)


@pytest.mark.parametrize("kind", [str, Path, os.fsencode])
def test_paths_may_be_str_path_or_bytes(write, tmp_path, kind):
    net = write("net.prototxt", 'input: "x" input_shape { dim: 2 } layer { name: "e" type: "Exp" bottom: "x" top: "y" }')
    solver = caffe.get_solver(
        kind(write("solver.prototxt", f'train_net: "{net}" lr_policy: "fixed" snapshot_prefix: "{tmp_path}/s"'))
    )
    solver.snapshot()
    solver.restore(kind(str(tmp_path / "s_iter_0.solverstate")))
    weights = kind(str(tmp_path / "a.caffemodel"))
    solver.net.save(weights)
    assert caffe.Net(kind(net), weights, caffe.TEST).outputs == ["y"]


@pytest.mark.parametrize("mean", [np.array([104, 117, 123], np.uint8), np.array([104.5, 117, 123]), np.full((3, 4, 4), 0.1)])
def test_a_preprocessed_image_is_float32_whatever_the_dtype_of_the_mean(mean):
    transformer = caffe.io.Transformer({"data": (1, 3, 4, 4)})
    transformer.set_transpose("data", (2, 0, 1))
    transformer.set_mean("data", mean)
    transformer.set_input_scale("data", 0.017)
    image = np.full((4, 4, 3), 200, np.float32)
    ready = transformer.preprocess("data", image)
    assert ready.dtype == np.float32
    want = (200 - mean.reshape(3, -1)[:, 0].astype(float)).astype(np.float32) * np.float32(0.017)
    np.testing.assert_array_equal(ready[:, 0, 0], want)
    assert (image == 200).all()


def test_blobs_and_records_become_arrays_of_pycaffes_dtypes():
    values = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    blob = caffe.io.array_to_blobproto(values, diff=2 * values)
    for stored, array in ((False, values), (True, 2 * values)):
        read = caffe.io.blobproto_to_array(blob, stored)
        assert read.dtype == np.float64
        np.testing.assert_array_equal(read, array)
    string = caffe.io.arraylist_to_blobprotovecor_str([values, values[:1]])
    assert [array.shape for array in caffe.io.blobprotovector_str_to_arraylist(string)] == [(2, 3), (1, 3)]
    record = caffe.io.array_to_datum(np.full((1, 2, 2), 7, np.uint8), 3)
    pixels = caffe.io.datum_to_array(record)
    pixels[0, 0, 0] = 9  # does not change the record
    assert (pixels.dtype, pixels.sum(), caffe.io.datum_to_array(record).sum()) == (np.uint8, 30, 28)
    assert caffe.io.datum_to_array(caffe.io.array_to_datum(values[None])).dtype == np.float64


def test_net_spec_has_keys_vals_and_update_as_in_ssd():
    n = caffe.NetSpec()
    n.data, n["label"] = L.DummyData(ntop=2)
    n.conv = L.Convolution(n.data, num_output=4, param=[{"lr_mult": 1}])
    assert n.keys() == ["data", "label", "conv"]
    assert n.vals() == [n.data, n.label, n.conv]
    n.update(n.keys()[-1], {"param": [{"lr_mult": 0}], "num_output": 8})
    (layer,) = (layer for layer in n.to_proto().layer if layer.name == "conv")
    assert (layer.param[0].lr_mult, layer.convolution_param.num_output) == (0, 8)

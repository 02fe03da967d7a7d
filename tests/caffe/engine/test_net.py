"""caffe.Net as in pycaffe: NumPy views, partial passes, weights by name, and errors for a net that cannot work."""

import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

import caffe
from caffe import glog
from caffe.engine import machine
from caffe.engine.parameter import Parameter

NET = """
name: "small"
force_backward: true
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } } }
layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 2 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


@pytest.fixture
def net(write):
    caffe.set_random_seed(3)
    net = caffe.Net(write("net.prototxt", NET), caffe.TRAIN)
    net.blobs["data"].data[...] = np.random.default_rng(0).normal(size=(2, 3, 8, 8))
    net.blobs["label"].data[...] = [1, 4]
    return net


def test_a_blob_view_stays_current_and_writable(net):
    data, scores = net.blobs["data"].data, net.blobs["ip"].data
    net.forward()
    first = scores.copy()
    assert first.any()
    data[...] *= 2
    net.forward()
    assert not np.allclose(scores, first)
    np.testing.assert_array_equal(scores, net.blobs["ip"].data)


def test_an_in_place_edit_of_a_parameter_takes_effect(net):
    net.forward()
    net.params["ip"][0].data[...] = 0
    net.params["ip"][1].data[...] = [0, 0, 0, 0, 9]
    np.testing.assert_allclose(net.forward(blobs=["ip"])["ip"], [[0, 0, 0, 0, 9]] * 2)


def test_a_forward_in_two_parts_equals_a_whole_one(net):
    whole = net.forward()["loss"].copy()
    net.forward(end="relu")
    np.testing.assert_allclose(net.forward(start="ip")["loss"], whole, rtol=1e-6)


def test_the_second_part_of_a_forward_reads_an_edited_blob(net):
    net.forward(end="relu")
    net.blobs["conv"].data[...] = 0
    np.testing.assert_allclose(net.forward(start="ip", blobs=["ip"])["ip"], [net.params["ip"][1].data] * 2)


def test_a_backward_in_two_parts_equals_a_whole_one(net):
    net.forward()
    whole = net.backward()["data"].copy()
    weights = net.params["conv"][0].diff.copy()
    assert whole.any()
    net.clear_param_diffs()
    net.backward(end="ip")
    np.testing.assert_allclose(net.backward(start="relu")["data"], whole, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(net.params["conv"][0].diff, weights, rtol=1e-5, atol=1e-8)


def test_gradients_agree_with_finite_differences(net):
    net.forward()
    gradient = net.backward()["data"].copy()
    data = net.blobs["data"].data
    for index in [(0, 0, 3, 3), (1, 2, 5, 1), (0, 1, 7, 7)]:
        values = []
        for step in (1e-2, -1e-2):
            data[index] += step
            values.append(float(net.forward()["loss"]))
            data[index] -= step
        assert (values[0] - values[1]) / 2e-2 == pytest.approx(float(gradient[index]), rel=0.05, abs=2e-4)


def test_parameter_gradients_accumulate_until_cleared(net):
    net.forward()
    net.backward()
    once = net.params["conv"][0].diff.copy()
    net.backward()
    np.testing.assert_allclose(net.params["conv"][0].diff, 2 * once, rtol=1e-5, atol=1e-7)
    net.clear_param_diffs()
    assert not net.params["conv"][0].diff.any()


def test_the_batch_size_of_a_net_can_change(net):
    net.blobs["data"].reshape(5, 3, 8, 8)
    net.blobs["label"].reshape(5)
    net.reshape()
    assert net.blobs["ip"].shape == (5, 5)
    assert net.forward(blobs=["ip"])["ip"].shape == (5, 5)


def test_weights_round_trip_through_caffemodel_and_hdf5(net, tmp_path, write):
    saved = {name: [blob.data.copy() for blob in blobs] for name, blobs in net.params.items()}
    net.save(tmp_path / "a.caffemodel")
    net.save_hdf5(tmp_path / "a.caffemodel.h5")
    for name in ("a.caffemodel", "a.caffemodel.h5"):
        other = caffe.Net(write("other.prototxt", NET), caffe.TEST, weights=str(tmp_path / name))
        for layer, blobs in saved.items():
            for blob, values in zip(other.params[layer], blobs, strict=True):
                np.testing.assert_array_equal(blob.data, values)


NAMESAKES = """
layer { name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param { shape { dim: 4 dim: 3 } shape { dim: 4 }
  data_filler { type: "gaussian" } data_filler { value: 1 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "a"
  inner_product_param { num_output: 6 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "ReLU" bottom: "a" top: "a" }
layer { name: "ip" type: "InnerProduct" bottom: "a" top: "b"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { type: "SoftmaxWithLoss" bottom: "a" bottom: "label" top: "first" }
layer { type: "SoftmaxWithLoss" bottom: "b" bottom: "label" top: "second" }
"""


def test_layers_that_share_a_name_are_all_trained_tested_saved_and_loaded(write, tmp_path):
    text = 'base_lr: 0.5 lr_policy: "fixed" max_iter: 2 test_iter: 1 test_interval: 9 solver_mode: CPU'
    solver = caffe.get_solver(write("solver.prototxt", f'net: "{write("net.prototxt", NAMESAKES)}" {text}'))
    learned = [blob for layer in solver.net.layers for blob in layer.blobs]
    before = [blob.data.copy() for blob in learned]
    solver.step(2)
    assert all((blob.data != values).any() for blob, values in zip(learned, before, strict=True))
    assert solver.net.outputs == ["first", "second"]
    assert [blob.shape for blob in solver.net.params["ip"]] == [(5, 6), (5,)]  # as in pycaffe: those of the last layer
    solver.net.save(tmp_path / "a.caffemodel")
    solver.net.save_hdf5(tmp_path / "a.caffemodel.h5")
    loaded = [caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST, weights=str(path)) for path in tmp_path.glob("a.*")]
    assert len(loaded) == 2
    for net in (*solver.test_nets, *loaded):
        blobs = [blob for layer in net.layers for blob in layer.blobs]
        for blob, mine in zip(blobs, learned, strict=True):
            np.testing.assert_array_equal(blob.data, mine.data)


@pytest.mark.parametrize("shape", [(0,), (1,), (31, 1), (4, 3, 50)])
def test_a_blob_is_serialised_to_the_bytes_that_protobuf_writes(shape):
    blob = caffe.Blob(shape)
    blob.data[...] = np.random.default_rng(0).normal(size=shape)
    blob.diff[...] = 1
    expected = caffe.proto.caffe_pb2.BlobProto(data=blob.data.ravel(), diff=blob.diff.ravel())
    expected.shape.dim.extend(shape)
    assert blob.to_proto(with_diff=True).SerializeToString() == expected.SerializeToString()


def test_layers_that_only_the_net_or_only_the_file_has_are_left_alone(net, tmp_path, write):
    net.save(tmp_path / "a.caffemodel")
    renamed = caffe.Net(write("renamed.prototxt", NET.replace('name: "ip"', 'name: "ip_new"')), caffe.TRAIN)
    before = renamed.params["ip_new"][0].data.copy()
    report = renamed.copy_from(tmp_path / "a.caffemodel")
    assert (report.copied, report.ignored, report.untouched) == (["conv"], ["ip"], ["ip_new"])
    np.testing.assert_array_equal(renamed.params["ip_new"][0].data, before)


def test_weights_of_another_shape_are_refused_with_advice_to_rename_the_layer(net, tmp_path, write):
    net.save(tmp_path / "a.caffemodel")
    other = caffe.Net(write("other.prototxt", NET.replace("num_output: 5", "num_output: 7")), caffe.TRAIN)
    before = other.params["conv"][0].data.copy()
    with pytest.raises(caffe.WeightsError) as error:
        other.copy_from(tmp_path / "a.caffemodel")
    assert 'layer "ip"' in error.value.where
    assert "new name" in error.value.do
    np.testing.assert_array_equal(other.params["conv"][0].data, before)


def test_all_layers_with_mismatched_shapes_are_named_and_may_be_skipped(net, tmp_path, write):
    net.save(tmp_path / "a.caffemodel")
    text = NET.replace("num_output: 5", "num_output: 7").replace("num_output: 4", "num_output: 6")
    other = caffe.Net(write("other.prototxt", text), caffe.TRAIN)
    before = {name: [blob.data.copy() for blob in blobs] for name, blobs in other.params.items()}
    with pytest.raises(caffe.WeightsError) as error:
        other.copy_from(tmp_path / "a.caffemodel")
    assert list(error.value.layers) == ["conv", "ip"]
    assert 'layer "conv": parameter 0' in error.value.found
    assert pickle.loads(pickle.dumps(error.value)).layers == error.value.layers
    report = other.copy_from(tmp_path / "a.caffemodel", skip=["conv", "ip"])
    assert (report.copied, report.untouched) == ([], ["conv", "ip"])
    assert report.skipped["ip"].startswith("parameter 0 has shape (5, ")
    for name, blobs in other.params.items():
        for blob, values in zip(blobs, before[name], strict=True):
            np.testing.assert_array_equal(blob.data, values)


BROKEN = [
    (
        "an unknown type",
        NET.replace('"ReLU"', '"Relu"'),
        'net.prototxt:8: layer "relu"',
        'unknown type "Relu"',
        'did you mean "ReLU"',
    ),
    (
        "a bottom without a producer",
        NET.replace('bottom: "conv" top: "ip"', 'bottom: "fc7" top: "ip"'),
        ':9: layer "ip"',
        '"fc7"',
        '"conv"',
    ),
    ("an unknown field", NET.replace("kernel_size", "kernelsize"), "net.prototxt:7", '"kernelsize"', '"kernel_size"'),
    (
        "a wrong number of bottoms",
        NET.replace('bottom: "ip" bottom: "label"', 'bottom: "ip"'),
        ':11: layer "loss"',
        "1 bottom",
        "",
    ),
    ("no num_output", NET.replace("num_output: 4", ""), ':6: layer "conv"', "num_output", ""),
    ("a kernel that does not fit", NET.replace("kernel_size: 3", "kernel_size: 11"), ':6: layer "conv"', "kernel (11, 11)", ""),
    ("a stride of zero", NET.replace("kernel_size: 3", "kernel_size: 3 stride: 0"), ':6: layer "conv"', "stride 0", ""),
]


@pytest.mark.parametrize(("text", "where", "found", "do"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_an_invalid_net_is_refused_with_its_line_and_layer(write, text, where, found, do):
    with pytest.raises(caffe.Error) as error:
        caffe.Net(write("net.prototxt", text), caffe.TRAIN)
    assert where in error.value.where
    assert found in error.value.found
    assert do in error.value.do


def test_a_label_out_of_range_names_the_layer_and_the_range(net):
    net.blobs["label"].data[...] = [1, 5]
    with pytest.raises(caffe.LayerError) as error:
        net.forward()
    assert error.value.found == "label 5"
    assert "0 to 4" in error.value.expected


def test_a_message_names_blobs_as_the_prototxt_does(write):
    accuracy = 'layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" }'
    net = caffe.Net(write("net.prototxt", NET + accuracy), caffe.TRAIN)
    assert net.bottom_names["loss"] == ["ip_ip_0_split_0", "label_label_0_split_0"]
    net.blobs["label"].data[...] = 5
    with pytest.raises(caffe.LayerError) as error:
        net.forward()
    assert error.value.expected == 'there are 5 classes (0 to 4) in "ip"'


def test_gpu_mode_without_a_gpu_is_answered_for_python(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(caffe.Error) as error:
        caffe.set_mode_gpu()
    assert error.value.do == "call caffe.set_mode_cpu()"


def test_a_folder_for_snapshots_that_cannot_be_made_is_named_before_training(write, tmp_path):
    write("net.prototxt", NET)
    text = SOLVER.format(rate=0).replace("net.prototxt", f"{tmp_path}/net.prototxt")
    with pytest.raises(caffe.SolverError) as error:
        caffe.get_solver(write("solver.prototxt", text.replace('"x"', f'"{tmp_path}/net.prototxt/here/x"')))
    assert error.value.expected == f"{tmp_path}/net.prototxt is a file, not a folder"


def test_weights_are_not_restored_as_a_solver_state(write, tmp_path):
    write("net.prototxt", NET)
    text = SOLVER.format(rate=0).replace("net.prototxt", f"{tmp_path}/net.prototxt")
    solver = caffe.get_solver(write("solver.prototxt", text.replace('"x"', f'"{tmp_path}/x"')))
    with pytest.raises(caffe.FileError) as error:
        solver.restore(solver.snapshot())
    assert error.value.expected == "a solver state is a .solverstate"
    assert "solver.net.copy_from" in error.value.do


def test_a_folder_for_snapshots_or_weights_that_is_not_there_is_made(write, tmp_path):
    write("net.prototxt", NET)
    text = SOLVER.format(rate=0).replace("net.prototxt", f"{tmp_path}/net.prototxt")
    solver = caffe.get_solver(write("solver.prototxt", text.replace('"x"', f'"{tmp_path}/new/deeper/x"')))
    assert solver.snapshot() == f"{tmp_path}/new/deeper/x_iter_0.caffemodel"
    solver.net.save(tmp_path / "other/x.caffemodel")
    solver.net.save_hdf5(tmp_path / "more/x.caffemodel.h5")
    assert all((tmp_path / path).exists() for path in ("other/x.caffemodel", "more/x.caffemodel.h5"))


def test_names_that_need_no_pytorch_do_not_load_it():
    code = "import sys, caffe; caffe.proto.caffe_pb2; caffe.NetSpec; caffe.layers; caffe.io; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_reshape_predicts_the_shapes_that_forward_computes(write):
    pyramid = 'layer { name: "spp" type: "SPP" bottom: "conv" top: "spp" spp_param { pyramid_height: 3 } }'
    net = caffe.Net(write("net.prototxt", NET.split('layer { name: "ip"')[0] + pyramid), caffe.TEST)
    for side in (13, 8, 21):
        net.blobs["data"].reshape(1, 3, side, side)
        net.reshape()
        said = {name: blob.shape for name, blob in net.blobs.items()}
        assert said["spp"] == (1, 4 * 21)
        net.forward()
        assert {name: blob.shape for name, blob in net.blobs.items()} == said


def test_training_does_not_load_pytorchs_compiler(write):
    """Loading it would cost each step of a workflow a second."""
    solver = f'net: "{write("net.prototxt", NET)}" type: "SGD" base_lr: 0.1 lr_policy: "fixed"'
    code = "import sys, caffe; caffe.get_solver(sys.argv[1]).step(2); print({'torch._dynamo', 'sympy'} & {*sys.modules})"
    command = [sys.executable, "-c", code, write("solver.prototxt", solver)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_generated_schema_is_up_to_date_with_the_proto_file(tmp_path):
    from tests.conftest import ROOT

    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--python_out={tmp_path}", "caffe/proto/caffe.proto"]
    subprocess.run(command, cwd=ROOT, check=True)
    assert (tmp_path / "caffe/proto/caffe_pb2.py").read_bytes() == (ROOT / "caffe/proto/caffe_pb2.py").read_bytes()


def test_a_pass_may_begin_at_an_in_place_layer(net):
    net.forward()
    whole = net.blobs["loss"].data.copy()
    net.forward(end="conv")
    before = net.blobs["conv"].data.copy()
    net.forward(start="relu")
    np.testing.assert_array_equal(net.blobs["conv"].data, np.maximum(before, 0))
    assert net.blobs["loss"].data == whole
    net.backward()
    assert net.params["conv"][0].diff.any()


def test_per_layer_callbacks_do_not_change_results(net):
    net.forward()
    net.backward()
    loss, gradient = net.blobs["loss"].data.copy(), net.params["conv"][0].diff.copy()
    seen = []
    net.before_forward(lambda index: seen.append(("before", index)))
    net.after_forward(lambda index: seen.append(("after", index)))
    net.after_backward(lambda index: seen.append(("back", index)))
    net.clear_param_diffs()
    net.forward()
    net.backward()
    layers = range(len(net.layers))
    assert seen == [(moment, index) for index in layers for moment in ("before", "after")] + [
        ("back", i) for i in reversed(layers)
    ]
    assert net.blobs["loss"].data == loss
    np.testing.assert_allclose(net.params["conv"][0].diff, gradient, rtol=1e-5)


def test_debug_info_logs_the_magnitudes_of_every_layer(write, tmp_path):
    net = caffe.Net(write("net.prototxt", "debug_info: true" + NET), caffe.TRAIN)
    net.blobs["data"].data[...] = 1
    with glog.log_to_file(tmp_path / "log"):
        net.forward()
        net.backward()
    log = (tmp_path / "log").read_text()
    assert "    [Forward] Layer data, top blob data data: 1\n" in log
    assert "    [Forward] Layer ip, param blob 1 data: 0\n" in log
    assert "    [Backward] Layer loss, bottom blob ip diff: " in log
    assert "    [Backward] All net params (data, diff): L1 norm = (" in log


SOLVER = """net: "net.prototxt" base_lr: {rate} lr_policy: "fixed" max_iter: 100 snapshot_prefix: "x"
"""


def test_a_nan_loss_stops_training_and_names_the_first_layer_with_nan(write, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write("net.prototxt", NET)
    solver = caffe.get_solver(write("solver.prototxt", SOLVER.format(rate=0.5)))
    solver.net.blobs["label"].data[...] = [1, 4]
    solver.net.blobs["data"].data[...] = 1
    solver.step(1)
    solver.net.blobs["data"].data[0, 0, 0, 0] = np.nan
    with pytest.raises(caffe.Error) as raised:
        solver.step(1)
    found = raised.value.found
    assert "the loss is nan at iteration 1" in found
    assert 'first in layer "data": top "data", the data' in found
    assert "labels 1 to 4 for 5 classes" in found
    assert "learning rate 0.5" in found
    assert not list(tmp_path.glob("*.caffemodel"))


def test_a_saturated_softmax_loss_is_explained_once(write, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write("net.prototxt", NET)
    solver = caffe.get_solver(write("solver.prototxt", SOLVER.format(rate=0)))
    solver.net.params["ip"][1].data[...] = [0, 0, 1000, 0, 0]
    with glog.log_to_file(tmp_path / "log"):
        solver.step(2)
    log = (tmp_path / "log").read_text()
    assert log.count("87.3365 is -log(FLT_MIN)") == 1
    assert f"roastery preflight {tmp_path}/solver.prototxt" in log


TESTED = """net: "net.prototxt" base_lr: 0.5 lr_policy: "fixed" max_iter: 6 test_iter: 2 test_interval: 2 display: 3
random_seed: 1 snapshot_prefix: "x" snapshot_after_train: false
"""
MEASURES = """
layer { name: "top2" type: "Accuracy" bottom: "ip" bottom: "label" top: "top2" accuracy_param { top_k: 2 }
  include { phase: TEST } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" top: "each" include { phase: TEST } }
layer { name: "extra" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "extra" loss_weight: 0.25
  include { phase: TEST } }
"""
MEASURED = ["iteration", "seconds", "loss", "learning_rate", "test_loss", "test_accuracy", "test_extra", "test_top2"]


@pytest.fixture
def solver(write, monkeypatch, tmp_path):
    """A solver whose test net has two accuracies, one of them also per class, and two losses."""
    monkeypatch.chdir(tmp_path)
    write("net.prototxt", NET + MEASURES)
    solver = caffe.get_solver(write("solver.prototxt", TESTED))
    for net in (solver.net, *solver.test_nets):
        net.blobs["data"].data[...] = np.random.default_rng(0).normal(size=(2, 3, 8, 8))
        net.blobs["label"].data[...] = [1, 4]
    return solver


def test_metrics_have_every_output_of_the_test_net(solver):
    rows = []
    solver.on_metrics(rows.append)
    solver.solve()
    assert solver.metrics == MEASURED
    assert all(list(row) == MEASURED for row in rows)
    assert [(row["iteration"], row["loss"] is None, row["test_loss"] is None) for row in rows] == [
        *[(0, False, False), (2, True, False), (3, False, True), (4, True, False), (6, False, False)]
    ]
    for row in rows:
        if row["test_loss"] is not None:
            assert row["test_extra"] == pytest.approx(0.25 * row["test_loss"])
            assert row["test_top2"] >= row["test_accuracy"]


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_a_manual_update_equals_a_solver_iteration(solver, kind):
    solver.param.type, solver.param.lr_policy, solver.param.gamma, solver.param.stepsize = kind, "step", 0.1, 2
    stepped, by_hand = (caffe.get_solver("solver.prototxt", solver.param) for _ in range(2))  # with the same seed
    for other in (stepped, by_hand):
        for name in ("data", "label"):
            other.net.blobs[name].data[...] = solver.net.blobs[name].data
    stepped.step(4)
    for _ in range(4):
        by_hand.net.clear_param_diffs()
        by_hand.net.forward()
        by_hand.net.backward()
        by_hand.apply_update()
    assert by_hand.iter == stepped.iter == 4
    for mine, other in zip(by_hand.net.learnable_params(), stepped.net.learnable_params(), strict=True):
        np.testing.assert_allclose(mine.data, other.data, rtol=1e-5, atol=1e-7)


def test_a_test_iter_of_0_gives_no_test_metrics(solver):
    rows = []
    solver.param.test_iter[0] = 0
    solver.on_metrics(rows.append)
    solver.solve()
    assert [row["iteration"] for row in rows] == [0, 3, 6]
    assert all(row["test_loss"] is row["test_accuracy"] is None for row in rows)


def test_a_test_callback_sees_the_tested_weights_and_may_stop_training(solver, tmp_path):
    seen, rows = [], []

    def tested(row):
        net = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST)
        for name, blobs in solver.net.params.items():
            for mine, blob in zip(net.params[name], blobs, strict=True):
                mine.data[...] = blob.data
        net.blobs["data"].data[...] = solver.net.blobs["data"].data
        net.blobs["label"].data[...] = [1, 4]
        assert float(net.forward()["loss"]) == pytest.approx(row["test_loss"], rel=1e-5)
        seen.append(row["iteration"])
        if row["iteration"] == 4:
            solver.request("stop")

    solver.on_test(tested)
    solver.on_metrics(rows.append)
    solver.solve()
    assert (seen, solver.iter) == ([0, 2, 4], 4)
    assert rows[-1]["iteration"] == 4
    assert rows[-1]["test_loss"] is not None


def test_a_diff_view_follows_training(write, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write("net.prototxt", NET)
    solver = caffe.get_solver(write("solver.prototxt", SOLVER.format(rate=0)))
    solver.net.blobs["data"].data[...] = 1
    diff = solver.net.blobs["ip"].diff
    assert not diff.any()
    solver.step(1)
    assert diff.any()


@pytest.mark.parametrize("shape", [(2, 2), (7,), (3, 2), (0,)])
def test_a_reshaped_blob_keeps_its_first_values_and_fills_up_with_zeros(shape):
    count = int(np.prod(shape))
    for blob in (caffe.Blob((2, 3)), Parameter((2, 3))):
        blob.data[...] = np.arange(1, 7).reshape(2, 3)
        blob.reshape(*shape)
        assert blob.data.shape == shape
        assert blob.data.flatten().tolist() == [*range(1, 7), 0][:count]


def test_gradients_after_an_update_add_to_it_in_the_diff_until_cleared(solver):
    weights = solver.net.params["ip"][0]
    before = weights.data.copy()
    solver.step(1)
    update = before - weights.data
    solver.net.forward()
    solver.net.backward()
    both = weights.diff.copy()
    solver.net.clear_param_diffs()
    solver.net.forward()
    solver.net.backward()
    np.testing.assert_allclose(both, update + weights.diff, rtol=1e-4, atol=1e-6)
    assert abs(update).max() > 1e-4


def test_a_parameter_that_is_reshaped_after_an_update_has_no_diff(solver):
    solver.step(1)
    weights = solver.net.params["ip"][0]
    weights.reshape(2, 3)
    assert weights.diff.shape == (2, 3)
    assert not weights.diff.any()


def test_first_reading_a_discarded_diff_warns_and_later_diffs_are_kept(net, tmp_path):
    net.forward()
    net.backward()
    net.forward()
    with glog.log_to_file(tmp_path / "log"):
        diff = net.blobs["ip"].diff
        assert not diff.any()
        net.backward()
        net.forward()
        assert net.blobs["ip"].diff is not None
    assert diff.any()
    log = (tmp_path / "log").read_text()
    assert log.count("The diff of a blob of shape (2, 5) was not kept") == 1


def test_denormals_are_flushed_to_zero_only_within_a_pass(net):
    data = net.blobs["data"].data
    data[...] = 1e-39
    net.params["conv"][0].data[...] = 1
    net.params["conv"][1].data[...] = 0
    net.forward()
    assert not net.blobs["conv"].data.any()
    assert (data * 1).all()


def test_mkl_kernels_are_selected_before_threads_call_them():
    """All functions that PyTorch's header delegates to MKL, except trunc, whose results are exact."""
    header = (Path(torch.__file__).parent / "include/ATen/cpu/vml.h").read_text()
    functions = {*re.findall(r"^IMPLEMENT_VML_MKL\((\w+),", header, re.MULTILINE)} - {"trunc"}
    called = set()

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, _types, args=(), kwargs=None):
            if args and isinstance(args[0], torch.Tensor):
                called.add((function.__name__, args[0].dtype, args[0].numel()))
            return function(*args, **(kwargs or {}))

    with Watch():
        machine.prepare.__wrapped__()
    assert len(functions) > 10
    assert {(name, kind, 1) for name in functions for kind in (torch.float32, torch.float64)} <= called


def test_force_backward_reaches_the_tops_of_data_layers(write):
    text = """
force_backward: true
layer { name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param { shape { dim: 2 dim: 3 } shape { dim: 2 }
  data_filler { type: "gaussian" } data_filler { type: "constant" } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" param { lr_mult: 0 }
  inner_product_param { num_output: 4 bias_term: false weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
    net = caffe.Net(write("net.prototxt", text), caffe.TRAIN)
    net.forward()
    net.backward()
    expected = net.blobs["ip"].diff @ net.params["ip"][0].data
    assert expected.any()
    np.testing.assert_allclose(net.blobs["data"].diff, expected, rtol=1e-5, atol=1e-8)
    assert not net.blobs["label"].diff.any()


PART = """
force_backward: true
input: "data" input_shape { dim: 2 dim: 3 }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 4
  weight_filler { type: "gaussian" } bias_filler { type: "constant" value: 1 } } }
layer { name: "relu" type: "ReLU" bottom: "ip" top: "relu" }
"""


def test_a_backward_without_a_forward_takes_blobs_as_they_are(write):
    net = caffe.Net(write("net.prototxt", PART), caffe.TRAIN)
    net.blobs["ip"].data[...] = [[1, -1, 2, -2]] * 2
    net.blobs["relu"].diff[...] = 3
    net.blobs["data"].data[...] = 2
    net.backward()
    np.testing.assert_array_equal(net.blobs["ip"].diff, [[3, 0, 3, 0]] * 2)
    np.testing.assert_allclose(net.blobs["data"].diff, net.blobs["ip"].diff @ net.params["ip"][0].data, rtol=1e-6)
    np.testing.assert_allclose(net.params["ip"][0].diff, net.blobs["ip"].diff.T @ net.blobs["data"].data, rtol=1e-6)
    np.testing.assert_array_equal(net.blobs["ip"].data, [[1, -1, 2, -2]] * 2)
    assert not net.blobs["relu"].data.any()


def test_parameters_are_copied_from_another_net_and_stay_its_own(write):
    path = write("net.prototxt", PART)
    net, other = caffe.Net(path, caffe.TRAIN), caffe.Net(path, caffe.TRAIN)
    before = other.params["ip"][0].data.copy()
    assert (net.params["ip"][0].data != before).all()
    assert net.copy_from(other).copied == ["ip"]
    net.params["ip"][0].data[...] += 1
    np.testing.assert_array_equal(other.params["ip"][0].data, before)
    np.testing.assert_array_equal(net.params["ip"][0].data, before + 1)


@pytest.mark.parametrize("load", [caffe.Net.load_hdf5, caffe.Net.copy_from])
def test_an_hdf5_file_is_read_whatever_its_name(write, tmp_path, load):
    path = write("net.prototxt", PART)
    net, other = caffe.Net(path, caffe.TRAIN), caffe.Net(path, caffe.TRAIN)
    net.save_hdf5(tmp_path / "weights")
    load(other, tmp_path / "weights")
    np.testing.assert_array_equal(net.params["ip"][0].data, other.params["ip"][0].data)


def test_tops_of_constant_fillers_keep_what_the_user_wrote(write):
    text = """layer { name: "d" type: "DummyData" top: "a" top: "b" dummy_data_param { shape { dim: 2 dim: 3 }
      data_filler { type: "constant" value: 7 } data_filler { type: "uniform" min: 1 max: 2 } } }
    layer { name: "p" type: "Power" bottom: "a" top: "p" }"""
    net = caffe.Net(write("net.prototxt", text), caffe.TEST)
    assert (net.blobs["a"].data == 7).all()
    net.forward()
    assert (net.blobs["p"].data == 7).all()
    first = net.blobs["b"].data.copy()
    net.blobs["a"].data[...] = 5
    net.forward()
    assert (net.blobs["p"].data == 5).all()
    assert (net.blobs["b"].data != first).all()
    net.blobs["a"].reshape(4, 3)
    net.blobs["a"].data[...] = 6
    net.forward()
    assert net.blobs["p"].data.shape == (4, 3)
    assert (net.blobs["p"].data == 6).all()


def test_a_loss_without_a_top_may_have_a_weight(write):
    text = """layer { name: "d" type: "DummyData" top: "x" top: "y" dummy_data_param { shape { dim: 2 dim: 3 }
      data_filler { type: "constant" value: 1 } data_filler { type: "constant" } } }
    layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param { num_output: 3
      bias_filler { type: "constant" value: 2 } } }
    layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "y" loss_weight: 3 }"""
    net = caffe.Net(write("net.prototxt", text), caffe.TRAIN)
    assert net._forward(0, 2) == pytest.approx(3 * 2 * 3 * 4 / 4)
    net.backward()
    np.testing.assert_allclose(net.params["ip"][1].diff, 3 * 2 / 2 * 2)


def test_a_layer_gives_its_tops_their_shapes(write):
    net = caffe.Net(write("net.prototxt", PART), caffe.TEST)
    bottom, top = caffe._caffe.RawBlobVec([caffe.Blob((5, 3))]), caffe._caffe.RawBlobVec([caffe.Blob()])
    net.layers[1].reshape(bottom, top)
    assert top[0].shape == (5, 4)


def test_scripts_find_the_functions_and_vectors_of_the_binding(write):
    from caffe import _caffe, pycaffe

    net = caffe.Net(write("net.prototxt", PART), caffe.TEST)
    assert set(pycaffe._Net_forward(net, data=np.ones((2, 3), np.float32))) == {"relu"}
    assert pycaffe._Net_blobs(net) is net.blobs
    assert pycaffe._Net_inputs(net) == ["data"]
    assert net._set_input_arrays.__func__ is caffe.Net.set_input_arrays
    for name in ("RawBlobVec", "LayerVec", "NetVec", "StringVec", "IntVec", "BoolVec", "DtypeVec"):
        assert getattr(_caffe, name)() == []

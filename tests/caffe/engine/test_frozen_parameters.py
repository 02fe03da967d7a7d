"""Parameters with lr_mult 0: never updated, no history in memory, and the same snapshots and diffs as in BVLC Caffe."""

from pathlib import Path

import h5py
import numpy as np
import pytest

import caffe
from caffe.proto import caffe_pb2

NET = """
FORCE
layer { name: "x" type: "DummyData" top: "x" top: "t" dummy_data_param {
  shape { dim: 4 dim: 3 dim: 5 dim: 5 } shape { dim: 4 dim: 2 }
  data_filler { type: "constant" value: 0.5 } data_filler { type: "constant" value: 1 } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "conv" param { lr_mult: LR } param { lr_mult: LR }
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "t" top: "loss" }
"""
SOLVER = 'base_lr: 0.05 weight_decay: 0.1 lr_policy: "fixed" max_iter: 9 solver_mode: CPU random_seed: 3 '
TYPES = {"SGD": "momentum: 0.9", "Nesterov": "momentum: 0.9", "AdaGrad": "", "RMSProp": "", "AdaDelta": "momentum: 0.9"}
TYPES["Adam"] = "momentum: 0.9 momentum2: 0.99"


@pytest.fixture
def solver_of(write, tmp_path, monkeypatch):
    """solver_of(text of the solver, lr_mult of conv) makes a solver."""
    monkeypatch.chdir(tmp_path)

    def make(text="", lr_mult=0, force=False):
        write("net.prototxt", NET.replace("LR", str(lr_mult)).replace("FORCE", "force_backward: true" if force else ""))
        return caffe.get_solver(write("solver.prototxt", f'net: "net.prototxt" snapshot_prefix: "run" {SOLVER} {text}'))

    return make


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", TYPES)
def test_frozen_parameters_keep_their_values_while_others_learn(solver_of, kind, force):
    solver = solver_of(f'type: "{kind}" {TYPES[kind]}', force=force)
    before = {name: [blob.data.copy() for blob in blobs] for name, blobs in solver.net.params.items()}
    solver.step(3)
    for blob, values in zip(solver.net.params["conv"], before["conv"], strict=True):
        np.testing.assert_array_equal(blob.data, values)
    assert (solver.net.params["ip"][0].data != before["ip"][0]).all()


@pytest.mark.parametrize("kind", TYPES)
def test_histories_of_frozen_parameters_take_no_memory(solver_of, kind):
    solver = solver_of(f'type: "{kind}" {TYPES[kind]}')
    solver.step(1)
    assert [tuple(array.shape) for array in solver.history] == [(4, 3, 3, 3), (4,), (2, 36), (2,)] * type(solver).histories
    for frozen in (*solver.history[:2], *solver.history[4:6]):
        assert frozen.untyped_storage().nbytes() == 4
        assert not frozen.any()


@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_solver_states_store_zero_histories_of_frozen_parameters_and_resume(solver_of, kind, form):
    text = f'type: "{kind}" {TYPES[kind]} snapshot_format: {form}'
    solver = solver_of(text)
    solver.step(3)
    path = solver.snapshot("run").replace("caffemodel", "solverstate")
    if form == "BINARYPROTO":
        state = caffe_pb2.SolverState.FromString(Path(path).read_bytes())
        arrays = [np.array(blob.data).reshape(tuple(blob.shape.dim)) for blob in state.history]
    else:
        with h5py.File(path) as file:
            arrays = [file["history"][str(index)][()] for index in range(len(file["history"]))]
    histories = type(solver).histories
    assert [array.shape for array in arrays] == [(4, 3, 3, 3), (4,), (2, 36), (2,)] * histories
    for index, array in enumerate(arrays):
        assert array.any() == (index % 4 > 1)
    solver.step(3)
    resumed = solver_of(text)
    resumed.restore(path)
    resumed.step(3)
    for mine, theirs in zip(solver.net.learnable_params(), resumed.net.learnable_params(), strict=True):
        np.testing.assert_array_equal(mine.data, theirs.data)


def test_a_solver_resumes_from_a_state_in_which_its_frozen_parameters_learned(solver_of):
    # BVLC writes such states too: weight decay enters the histories of frozen parameters in some rules.
    learning = solver_of("momentum: 0.9", lr_mult=1)
    learning.step(2)
    path = learning.snapshot("run").replace("caffemodel", "solverstate")
    frozen = solver_of("momentum: 0.9", lr_mult=0)
    frozen.restore(path)
    np.testing.assert_array_equal(frozen.history[2].cpu().numpy(), learning.history[2].cpu().numpy())
    kept = frozen.net.params["conv"][0].data.copy()
    np.testing.assert_array_equal(kept, learning.net.params["conv"][0].data)
    frozen.step(2)
    np.testing.assert_array_equal(frozen.net.params["conv"][0].data, kept)


def test_gradients_of_frozen_parameters_are_computed_only_with_force_backward(solver_of):
    for force in (False, True):
        net = solver_of(force=force).net
        for blob in net.params["conv"]:
            assert blob.diff.shape == blob.shape  # reading a diff before the pass makes the net keep diffs
        net.forward()
        net.backward()
        assert bool(net.params["conv"][0].diff.any()) == force
        assert net.params["ip"][0].diff.all()


def test_after_an_update_the_diff_of_a_frozen_parameter_is_zero(solver_of):
    solver = solver_of("momentum: 0.9", force=True)
    solver.step(2)
    assert not solver.net.params["conv"][0].diff.any()
    assert solver.net.params["ip"][0].diff.all()


@pytest.mark.parametrize("force", [False, True])
def test_gradient_clipping_counts_frozen_gradients_only_with_force_backward(solver_of, force):
    free = solver_of(force=True)
    before = free.net.params["ip"][0].data.copy()
    free.net.forward()
    free.net.backward()
    gradients = {name: [blob.diff.copy() for blob in blobs] for name, blobs in free.net.params.items()}
    counted = [*gradients["ip"], *(gradients["conv"] if force else [])]
    norm = np.sqrt(sum(np.square(gradient).sum() for gradient in counted))
    clipped = solver_of("clip_gradients: 0.01", force=force)
    clipped.step(1)
    step = gradients["ip"][0] * (0.01 / norm) + 0.1 * before
    np.testing.assert_allclose(clipped.net.params["ip"][0].data, before - 0.05 * step, rtol=1e-4, atol=1e-7)


DEEP = """
layer { name: "x" type: "DummyData" top: "x" top: "t" dummy_data_param {
  shape { dim: 4 dim: 3 dim: 5 dim: 5 } shape { dim: 4 dim: 2 }
  data_filler { type: "constant" value: 0.5 } data_filler { type: "constant" value: 1 } } }
layer { name: "below" type: "Convolution" bottom: "x" top: "below" BELOW
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "middle" type: "InnerProduct" bottom: "below" top: "middle" MIDDLE
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "top" type: "InnerProduct" bottom: "middle" top: "top"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "top" bottom: "t" top: "loss" }
"""
BOTH = "param { lr_mult: 0 } param { lr_mult: 0 }"


@pytest.mark.parametrize(
    ("below", "middle", "decay", "changed"),
    [
        ("", BOTH, 0, ["below 0", "below 1", "top 0", "top 1"]),
        ("", "param { lr_mult: 0 }", 0, ["below 0", "below 1", "middle 1", "top 0", "top 1"]),
        (BOTH, BOTH, 0.1, ["top 0", "top 1"]),
        ("", f"{BOTH} propagate_down: false", 0, ["top 0", "top 1"]),
        ("", f"{BOTH} propagate_down: false", 0.1, ["below 0", "top 0", "top 1"]),
    ],
)
def test_freezing_is_as_the_troubleshooting_page_says(write, tmp_path, monkeypatch, below, middle, decay, changed):
    """lr_mult 0 does not stop the gradient to the layers below; propagate_down does, but not the weight decay there."""
    monkeypatch.chdir(tmp_path)
    write("net.prototxt", DEEP.replace("BELOW", below).replace("MIDDLE", middle))
    text = SOLVER.replace("weight_decay: 0.1", f"weight_decay: {decay}")
    solver = caffe.get_solver(write("solver.prototxt", f'net: "net.prototxt" snapshot_prefix: "run" {text}'))
    before = {name: [blob.data.copy() for blob in blobs] for name, blobs in solver.net.params.items()}
    solver.step(3)
    now = [
        f"{name} {number}"
        for name, blobs in solver.net.params.items()
        for number, blob in enumerate(blobs)
        if (blob.data != before[name][number]).any()
    ]
    assert now == changed

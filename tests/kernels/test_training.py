"""Nets learn by the kernels what they learn by PyTorch's operations, in `fp32` and `fast`, with CUDA graphs and without."""

from collections import Counter

import numpy as np
import pytest
import torch

import caffe
from caffe import glog, kernels
from caffe.engine import cuda_graphs
from tests.gpu import pretend
from tests.gpu.test_captured import is_captured, is_update_captured, state
from tests.kernels import kernels_of

launching, update = kernels_of("launching", "update")

pytestmark = [
    pytest.mark.own_device,
    pytest.mark.filterwarnings("ignore:invalid value encountered"),  # a pretend graph is captured with any values
]

NET = """
layer { name: "x" type: "Input" top: "x" top: "label" input_param { shape { dim: 4 dim: 3 dim: 8 dim: 8 } shape { dim: 4 } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "conv"
  convolution_param { num_output: 8 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "first" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "norm" type: "LRN" bottom: "conv" top: "norm" lrn_param { local_size: WINDOW alpha: 0.1 } }
layer { name: "more" type: "Convolution" bottom: "norm" top: "more"
  convolution_param { num_output: 8 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "sum" type: "Eltwise" bottom: "norm" bottom: "more" top: "sum" }
layer { name: "second" type: "ReLU" bottom: "sum" top: "sum" }
layer { name: "scale" type: "Scale" bottom: "sum" top: "scale" scale_param { bias_term: true } }
layer { name: "third" type: "ReLU" bottom: "scale" top: "scale" }
layer { name: "alone" type: "Scale" bottom: "scale" top: "alone" }
layer { name: "ip" type: "InnerProduct" bottom: "alone" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" LOSS }
"""
KERNELS = {
    *(
        "response.lrn",
        "response.lrn_backward",
        "chains.sum_relu",
        "chains.relu_backward",
        "chains.scale",
        "chains.scale_backward",
    ),
    *("softmax.softmax_loss", "softmax.softmax_loss_backward"),
}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "failed", {})
    monkeypatch.setattr(kernels, "_works", {})
    monkeypatch.setattr(kernels, "_logged", set())


@pytest.fixture
def launched(monkeypatch):
    """Number of times that each kernel was started."""
    counts = Counter()
    launch = launching.launch

    def counting(function, *arguments, **options):
        counts[function.fn.__name__] += 1
        launch(function, *arguments, **options)

    for name in ("chains", "response", "softmax", "update"):
        monkeypatch.setattr(kernels_of(name)[0], "launch", counting)
    return counts


@pytest.fixture
def train(tmp_path, monkeypatch):
    """train(kernels, …) trains a net on a pretend GPU, with kernels or without; returns its solver."""
    monkeypatch.chdir(tmp_path)

    def run(uses_kernels, solver="momentum: 0.9", loss="", iterations=cuda_graphs.FIRST + 4, graphs=True, look="", window=3):
        monkeypatch.setenv(kernels.SWITCH, "1" if uses_kernels else "0")
        monkeypatch.setenv(cuda_graphs.SWITCH, "1" if graphs else "0")
        (tmp_path / "net.prototxt").write_text(NET.replace("LOSS", loss).replace("WINDOW", str(window)))
        (tmp_path / "solver.prototxt").write_text(
            f'net: "net.prototxt" base_lr: 0.02 lr_policy: "exp" gamma: 0.9 average_loss: 20 random_seed: 3 {solver} '
            "test_iter: 1 test_interval: 1000 test_initialization: false"
        )
        made = caffe.get_solver("solver.prototxt")
        for net in (made.net, *made.test_nets):
            net.blobs["x"].data[...] = np.random.default_rng(0).normal(size=(4, 3, 8, 8))
            net.blobs["label"].data[...] = [0, 1, 2, 1]
        if look:
            assert made.net.blobs[look].data is not None
        made.step(iterations)
        return made

    with pretend.gpus():
        caffe.set_mode_gpu()
        yield run
        caffe.set_mode_cpu()


def assert_alike(first, second, tolerance=1e-4):
    for mine, other in zip(state(first), state(second), strict=True):
        assert np.allclose(mine, other, rtol=tolerance, atol=tolerance)


def test_a_training_is_the_same_with_kernels(train, launched):
    solver = train(True)
    assert {key[0] for key in kernels._works} == {*KERNELS, "update.SGD"}
    assert all(kernels._works.values())
    assert is_captured(solver)
    assert is_update_captured(solver)
    seen = launched.copy()
    assert set(seen) == {
        *("_forward", "_backward", "_sum_relu", "_relu_backward", "_scale_relu", "_scale_relu_backward", "_update"),
    }
    assert_alike(solver, train(False))
    assert launched == seen


def test_a_training_is_the_same_with_graphs_of_kernels(train):
    solvers = [train(True, graphs=graphs) for graphs in (True, False)]
    for mine, other in zip(*map(state, solvers), strict=True):
        assert np.array_equal(mine, other)


@pytest.mark.parametrize(
    ("rule", "more"),
    [
        *((rule, "weight_decay: 0.01") for rule in update.RULES),
        ("SGD", 'weight_decay: 0.01 regularization_type: "L1" iter_size: 2'),
    ],
)
def test_each_update_rule_is_the_same_with_kernels(train, launched, rule, more):
    momentum = "" if rule in ("AdaGrad", "RMSProp") else "momentum: 0.9"
    given = f'type: "{rule}" delta: 1e-4 {momentum} {more}'
    solver = train(True, given, window=1)  # which is interpreted soonest
    assert launched["_update"]
    assert is_update_captured(solver)
    assert_alike(solver, train(False, given, window=1), 2e-3 if rule == "AdaDelta" else 3e-4)


@pytest.mark.parametrize(
    "loss",
    ["loss_param { ignore_label: 2 }", "softmax_param { axis: 1 } loss_param { normalization: BATCH_SIZE label_smoothing: 0.1 }"],
    ids=["one label ignored", "smoothed"],
)
def test_settings_of_the_loss_are_the_same_with_kernels(train, loss):
    assert_alike(train(True, loss=loss), train(False, loss=loss))


def test_in_fast_kernels_take_bfloat16(train):
    caffe.set_numerics("fast")
    try:
        solvers = [train(uses_kernels, iterations=3) for uses_kernels in (True, False)]
    finally:
        caffe.set_numerics("fp32")
    assert torch.bfloat16 in {key[2][0][0] for key in kernels._works if key[0] == "response.lrn"}
    assert [key for key, works in kernels._works.items() if not works] == []
    assert_alike(*solvers, 0.05)


def test_a_blob_that_is_looked_at_shows_the_same(train):
    """The values before a ReLU in place are nobody's, with kernels or without."""
    solvers = [train(uses_kernels, look="sum") for uses_kernels in (True, False)]
    seen = [solver.net.blobs[name].data for name in ("sum", "scale", "norm", "loss") for solver in solvers]
    for mine, other in zip(seen[::2], seen[1::2], strict=True):
        assert np.allclose(mine, other, rtol=1e-4, atol=1e-5)


def test_tests_and_single_layers_are_the_same_with_kernels(train):
    solvers = [train(uses_kernels) for uses_kernels in (True, False)]
    for name in ("sum", "scale", "loss"):
        values = []
        for solver in solvers:
            net = solver.test_nets[0]
            net.forward()
            values.append(net.blobs[name].data.copy())
            net.forward(start="sum", end="scale")
            net.blobs["scale"].diff[...] = 1
            net.backward(start="scale", end="norm")
            values[-1] = values[-1], net.blobs["norm"].diff.copy()
        for mine, other in zip(*values, strict=True):
            assert np.allclose(mine, other, rtol=1e-4, atol=1e-5)


def test_a_gradient_that_lies_otherwise_is_taken_by_pytorch(train, launched):
    solver = train(True, iterations=1)
    before = launched["_update"]
    weights = solver.net.layer_dict["conv"].blobs[0]
    hook = weights.leaf.register_post_accumulate_grad_hook(lambda leaf: setattr(leaf, "grad", leaf.grad.contiguous()))
    solver.step(1)
    assert launched["_update"] == before
    hook.remove()


def test_an_update_that_is_not_the_rules_is_computed_by_pytorch(train, launched, monkeypatch, capfd):
    monkeypatch.setattr(glog._State, "level", glog.WARNING)
    monkeypatch.setattr(glog._State, "stderr", True)
    compute = update.update.compute

    def wrong(values, *given):
        compute(values, *given)
        values[0].add_(0.1)

    monkeypatch.setattr(update.update, "compute", wrong)
    solver = train(True)
    assert (
        "The kernel update.SGD is not used on cuda:0: it gives other values than PyTorch's operations" in capfd.readouterr().err
    )
    assert_alike(solver, train(False))

"""Memory that runs out: one message with the layer, what was needed and had, and what to lower."""

import os
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import caffe
from caffe.engine import cuda_graphs, memory
from caffe.errors import OutOfMemoryError
from tests.gpu import pretend

pytestmark = pytest.mark.own_device

NET = """
layer { name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param {
  shape { dim: 4 dim: 3 dim: 8 dim: 8 } shape { dim: 4 } data_filler { type: "gaussian" } data_filler { value: 1 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "sig1" type: "Sigmoid" bottom: "conv1" top: "sig1" }
layer { name: "conv2" type: "Convolution" bottom: "sig1" top: "conv2"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "tanh2" type: "TanH" bottom: "conv2" top: "tanh2" }
layer { name: "ip" type: "InnerProduct" bottom: "tanh2" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


class _Full(TorchDispatchMode):
    """A card that has no memory left for one operation."""

    def __init__(self, operation):
        super().__init__()
        self.operation, self.on = operation, True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name == f"aten::{self.operation}" and self.on:
            text = "CUDA out of memory. Tried to allocate 1536.00 MiB. GPU 1 has a total capacity of 16.00 GiB."
            raise torch.OutOfMemoryError(text)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def solver(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "solver.prototxt").write_text('net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 9 momentum: 0.9')
    with pretend.gpus(2):
        caffe.set_device(1)
        caffe.set_mode_gpu()
        solver = caffe.get_solver("solver.prototxt")
        yield solver
        solver.close()
        caffe.set_device(0)
        caffe.set_mode_cpu()


@pytest.mark.parametrize(("operation", "layer"), [("sigmoid", "sig1"), ("tanh", "tanh2")])
def test_a_forward_pass_names_the_layer(solver, operation, layer):
    with _Full(operation), pytest.raises(OutOfMemoryError) as raised:
        solver.net.forward()
    text = str(raised.value)
    assert f'layer "{layer}"' in text
    assert "1.50 GiB more are needed" in text
    assert "GPU 1's 16.00 GiB, 0.50 GiB are free" in text
    assert "15.00 GiB are held" in text
    assert "lower batch_size" in text
    assert "\n" not in text


@pytest.mark.parametrize(("operation", "layer"), [("sigmoid_backward", "sig1"), ("tanh_backward", "tanh2")])
@pytest.mark.parametrize("alone", [True, False], ids=["pass", "iteration"])
def test_a_backward_pass_names_the_layer(solver, operation, layer, alone):
    solver.net.forward()
    with _Full(operation), pytest.raises(OutOfMemoryError, match=f'layer "{layer}"[^;]*, backward: out of memory: 1.50 GiB'):
        solver.net.backward() if alone else solver.step(1)


def test_an_update_says_so_too(solver):
    with _Full("_foreach_sub_"), pytest.raises(OutOfMemoryError, match=r"^out of memory: 1\.50 GiB more are needed"):
        solver.step(1)


def test_a_later_pass_says_that_it_is_the_backward_pass(solver):
    """A replayed one needs no new memory."""
    solver.step(cuda_graphs.FIRST)
    with _Full("tanh_backward"), pytest.raises(OutOfMemoryError, match=r"^backward: out of memory"):
        solver.step(1)


def test_a_net_without_parameters_says_it_too(tmp_path):
    path = tmp_path / "deploy.prototxt"
    path.write_text(
        'force_backward: true layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 3 } } } '
        'layer { name: "squashed" type: "TanH" bottom: "x" top: "y" }'
    )
    with pretend.gpus(2):
        caffe.set_device(1)
        caffe.set_mode_gpu()
        net = caffe.Net(str(path), caffe.TEST)
        net.forward()
        net.blobs["y"].diff[...] = 1
        with _Full("tanh_backward"), pytest.raises(OutOfMemoryError, match='layer "squashed", backward'):
            net.backward()
        caffe.set_device(0)
        caffe.set_mode_cpu()


@pytest.mark.parametrize("text", ["out of memory in my cache", "can't allocate memory for a reason of mine"])
def test_an_error_in_other_words_stays_as_it_is(text):
    assert memory.shortage(RuntimeError(text)) == ""


def test_training_goes_on_when_there_is_room_again(solver):
    with _Full("tanh_backward"), pytest.raises(OutOfMemoryError):
        solver.step(1)
    solver.step(2)
    assert solver.iter == 2


BIG = """
import resource, caffe
caffe.Net("small.prototxt", caffe.TEST)
here = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (here + (64 << 20), -1))
try:
    caffe.Net("big.prototxt", caffe.TEST).forward()
except caffe.errors.OutOfMemoryError as error:
    print(error)
"""


def test_a_shortage_of_the_machine_s_own_memory_is_told_alike(tmp_path):
    for name, size in (("small", 10), ("big", 10**9)):
        shape = f"input_param {{ shape {{ dim: 1 dim: {size} }} }}"
        layer = 'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 1 } }'
        (tmp_path / f"{name}.prototxt").write_text(f'layer {{ name: "data" type: "Input" top: "data" {shape} }} {layer}')
    environment = os.environ | {"GLOG_minloglevel": "2"}
    run = [sys.executable, "-c", BIG]
    said = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "GiB more are needed, and of this machine's" in said.stdout, said.stderr
    assert said.stdout.count("\n") == 1
    assert 'layer "' in said.stdout

"""What a host waits for: in a training iteration on a GPU only for its loss, while the backward pass is under way."""

import lmdb
import numpy as np
import pytest
import torch

import caffe
from caffe.engine.host_copy import HostCopy
from caffe.errors import LayerError
from caffe.proto import caffe_pb2
from caffe.training.diagnosis import DivergenceError
from tests.gpu import pretend

pytestmark = pytest.mark.own_device

NET = """
layer { name: "data" type: "Data" top: "data" top: "label" data_param { source: "records" backend: LMDB batch_size: 4 }
  transform_param { crop_size: 8 mirror: true scale: 0.01 mean_value: 100 } include { phase: TRAIN } }
layer { name: "data" type: "Data" top: "data" top: "label" data_param { source: "records" backend: LMDB batch_size: 4 }
  transform_param { crop_size: 8 scale: 0.01 mean_value: 100 } include { phase: TEST } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "bn" }
layer { name: "scale" type: "Scale" bottom: "bn" top: "bn" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "bn" top: "bn" }
layer { name: "pool" type: "Pooling" bottom: "bn" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "norm" type: "LRN" bottom: "pool" top: "norm" }
layer { name: "drop" type: "Dropout" bottom: "norm" top: "norm" }
layer { name: "ip" type: "InnerProduct" bottom: "norm" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" LOSS }
"""
SOLVER = """net: "net.prototxt" base_lr: 0.01 lr_policy: "fixed" weight_decay: 0.01 random_seed: 1 test_iter: 5
test_interval: 1000 test_initialization: false snapshot_prefix: "run" """


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """gpu(labels, loss="", solver="") makes a solver on a pretend GPU, fed with pictures that have these labels."""
    monkeypatch.chdir(tmp_path)
    solvers = []
    with pretend.gpus():
        caffe.set_device(0)
        caffe.set_mode_gpu()

        def make(labels, loss="", solver=""):
            draw = np.random.default_rng(1)
            with lmdb.open("records", map_size=1 << 24) as environment, environment.begin(write=True) as records:
                for number, label in enumerate(labels):
                    datum = caffe_pb2.Datum(channels=3, height=12, width=12, label=label, data=draw.bytes(432))
                    records.put(b"%d" % number, datum.SerializeToString())
            (tmp_path / "net.prototxt").write_text(NET.replace("LOSS", loss))
            (tmp_path / "solver.prototxt").write_text(SOLVER + solver)
            solvers.append(caffe.get_solver("solver.prototxt"))
            return solvers[-1]

        yield make
        for solver in solvers:
            solver.close()
        caffe.set_mode_cpu()


@pytest.mark.parametrize("loss", ["", "loss_param { ignore_label: 2 }"], ids=["all labels", "one ignored"])
@pytest.mark.parametrize("rule", ["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"])
def test_a_training_iteration_waits_for_nothing_but_a_copy_of_the_loss(gpu, rule, loss):
    momentum = "" if rule in ("AdaGrad", "RMSProp") else " momentum: 0.9"
    solver = gpu([0, 1, 2, 1], loss, f'type: "{rule}"{momentum}')
    solver.step(3)
    pretend.waited.clear()
    solver.step(5)
    assert +pretend.waited == {}


def test_a_test_waits_once_for_each_output(gpu):
    solver = gpu([0, 1, 2, 1])
    solver.test_all()
    pretend.waited.clear()
    solver.test_all()
    once = +pretend.waited
    solver.param.test_iter[0] = 50
    pretend.waited.clear()
    solver.test_all()
    assert +pretend.waited == once
    assert sum(once.values()) <= 4


def test_a_label_out_of_range_is_named_after_the_iteration_that_has_met_it(gpu):
    solver = gpu([0, 1, 2, 3])
    with pytest.raises(LayerError, match=r'"loss".*label 3.*3 classes \(0 to 2\)'):
        solver.step(1)
    with pytest.raises(LayerError, match="label 3"):
        solver.test_all()
    with pytest.raises(LayerError, match="label 3"):
        solver.net.forward()
    assert not any(layer.doubts for layer in solver.net.layers)


def test_an_ignored_label_may_be_out_of_range(gpu):
    gpu([0, 1, 2, 255], "loss_param { ignore_label: 255 }").step(2)


def test_a_loss_that_is_nan_is_reported_with_its_iteration_and_layer_before_weights_change(gpu):
    solver = gpu([0, 1, 2, 1])
    solver.step(2)
    bias = solver.net.params["conv"][1].data
    bias[...] = np.nan
    weights = solver.net.params["ip"][0].data.copy()
    with pytest.raises(DivergenceError, match=r'loss is nan at iteration 2.*first in layer "conv": its parameter 1'):
        solver.step(2)
    assert np.array_equal(solver.net.params["ip"][0].data, weights)


def test_a_copy_on_the_host_is_of_the_moment():
    value = torch.tensor(3.0)
    assert HostCopy(value).wait().data_ptr() == value.data_ptr()
    with pretend.gpus():
        on_gpu = value.to("cuda:0")
        copy = HostCopy(on_gpu)
        on_gpu.add_(1)
        assert not copy.wait().is_cuda
        assert float(copy.wait()) == 3

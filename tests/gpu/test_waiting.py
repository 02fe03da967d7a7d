"""What a host waits for: in a training iteration on a GPU only for its loss, while the backward pass is under way."""

import lmdb
import numpy as np
import pytest
import torch

import caffe
from caffe.errors import LayerError
from caffe.proto import caffe_pb2
from caffe.training.diagnosis import DivergenceError
from caffe.transfers import LateCopy
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
    solver.step(5)  # the fourth is captured, and compared with a computed one
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
    assert not any(layer.deferred for net in (solver.net, *solver.test_nets) for layer in net.layers)


def test_labels_that_were_mended_raise_nothing_more(gpu):
    """Two layers have met the label out of range; the first raises."""
    solver = gpu([0, 1, 2, 3])
    net = solver.test_nets[0]
    for _ in range(2):
        with pytest.raises(LayerError, match="label 3"):
            net.forward()
    for name in net.blobs:
        if name.startswith("label"):  # and its splits
            net.blobs[name].data[...] = 1
    net.forward(start="conv")


def test_the_loss_that_is_displayed_at_the_end_is_of_labels_within_range(gpu):
    with pytest.raises(LayerError, match="label 3"):
        gpu([0, 1, 2, 3], solver=" max_iter: 0 display: 1").solve()


def test_passes_that_nobody_looks_at_keep_few_labels(gpu):
    net = gpu([0, 1, 2, 1]).net
    for _ in range(70):
        net.forward_loss()
    assert 0 < max(len(layer.deferred) for layer in net.layers) <= 64


def test_a_batch_without_images_has_no_label_out_of_range(tmp_path):
    """That a Filter has left."""
    inputs = "".join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}'
        for name, dims in {"scores": "dim: 2 dim: 3", "label": "dim: 2", "chosen": "dim: 2"}.items()
    )
    (tmp_path / "net.prototxt").write_text(
        inputs + 'layer { name: "filter" type: "Filter" bottom: "scores" bottom: "label" bottom: "chosen"'
        ' top: "some" top: "labels" }'
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "some" bottom: "labels" top: "loss" }'
    )
    with pretend.gpus():
        caffe.set_mode_gpu()
        net = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST)
        assert float(net.forward()["loss"]) == 0
        caffe.set_mode_cpu()


def test_losses_of_an_iteration_are_kept_apart_though_somebody_holds_a_view(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.prototxt").write_text(
        'layer { name: "data" type: "DummyData" top: "data"'
        'dummy_data_param { shape { dim: 9 } data_filler { type: "gaussian" } } }'
        'layer { name: "loss" type: "Reduction" bottom: "data" top: "loss" loss_weight: 1 }'
    )
    (tmp_path / "solver.prototxt").write_text('net: "net.prototxt" lr_policy: "fixed" base_lr: 1 iter_size: 2 random_seed: 3')
    losses = []
    for looks in (False, True):
        solver = caffe.get_solver("solver.prototxt")
        held = solver.net.blobs["loss"].data if looks else None
        solver.step(1)
        losses.append(solver._losses.values())
        assert held is None or held.shape == ()
    assert losses[0] == losses[1]


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
    copy = LateCopy(value)
    value.add_(1).sub_(1)
    assert float(copy.wait()) == 3
    with pretend.gpus():
        on_gpu = value.to("cuda:0")
        copy = LateCopy(on_gpu)
        on_gpu.add_(1)
        assert not copy.wait().is_cuda
        assert float(copy.wait()) == 3

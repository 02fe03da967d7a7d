"""`reproducible` on a GPU: operations that CUDA computes by others than the CPU, and the copies of batches."""

import lmdb
import numpy as np
import pytest
import torch

import caffe
from caffe.numerics import scope
from caffe.proto import caffe_pb2
from tests.gpu import pretend

pytestmark = pytest.mark.own_device

NET = """
layer { name: "data" type: "Data" top: "data" top: "label" data_param { source: "records" backend: LMDB batch_size: 3 }
  transform_param { crop_size: 8 mirror: true scale: 0.01 mean_value: 100 } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
LAYER
layer { name: "pool" type: "Pooling" bottom: "out" top: "pool" pooling_param { pool: POOL kernel_size: 2 stride: 2 } }
layer { name: "drop" type: "Dropout" bottom: "pool" top: "pool" }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
LAYERS = {
    "BatchNorm": 'layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "out" }'
    'layer { name: "scale" type: "Scale" bottom: "out" top: "out" scale_param { bias_term: true } }',
    "NVIDIA's BatchNorm": 'layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "out" '
    "batch_norm_param { scale_bias: true } }",
    "Interp": 'layer { name: "out" type: "Interp" bottom: "conv" top: "out" interp_param { height: 9 width: 9 } }',
    "stored statistics": 'layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "out" '
    "batch_norm_param { scale_bias: true use_global_stats: true } }",
}


@pytest.mark.parametrize("pool", ["MAX", "STOCHASTIC"])
@pytest.mark.parametrize("layer", LAYERS)
def test_weights_are_those_of_the_cpu(tmp_path, monkeypatch, numerics_restored, layer, pool):
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(1)
    with lmdb.open("records", map_size=1 << 24) as environment, environment.begin(write=True) as records:
        for number in range(6):
            datum = caffe_pb2.Datum(channels=3, height=12, width=12, label=number % 3, data=draw.bytes(432))
            records.put(b"%d" % number, datum.SerializeToString())
    (tmp_path / "net.prototxt").write_text(NET.replace("LAYER", LAYERS[layer]).replace("POOL", pool))
    (tmp_path / "solver.prototxt").write_text(
        'net: "net.prototxt" base_lr: 0.001 lr_policy: "fixed" momentum: 0.9 random_seed: 1 numerics: "reproducible"'
    )

    def trained():
        solver = caffe.get_solver("solver.prototxt")
        solver.step(5)
        solver.close()
        return [blob.data.tobytes() for each in solver.net.layers for blob in each.blobs]

    on_cpu = trained()
    with pretend.gpus():
        caffe.set_mode_gpu()
        try:
            assert trained() == on_cpu
        finally:
            caffe.set_mode_cpu()


@pytest.fixture
def numerics_restored():
    yield
    caffe.set_numerics("fp32")


@pytest.mark.parametrize("numerics", ["reproducible", "fp32", "fast"])
def test_pytorchs_older_settings_can_be_read_in_a_pass_and_are_restored(numerics):
    """User code and PyTorch's compiler read them."""
    before = torch.backends.cudnn.allow_tf32, torch._C._get_cublas_allow_tf32(), torch.backends.cudnn.enabled
    with scope.computing(numerics):
        with torch.backends.cudnn.flags():
            pass
        torch._C._get_cublas_allow_tf32()
    assert (torch.backends.cudnn.allow_tf32, torch._C._get_cublas_allow_tf32(), torch.backends.cudnn.enabled) == before


@pytest.mark.parametrize("numerics", ["reproducible", "fp32", "fast"])
def test_settings_of_the_users_are_kept(numerics, monkeypatch):
    """Of the newer kind, which the older ones then contradict; and cuDNN turned off."""
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = "tf32"
    try:
        with scope.computing(numerics):
            assert torch.ones(2).sum() == 2
        assert products.fp32_precision == "tf32"
        assert not torch.backends.cudnn.enabled
    finally:
        products.fp32_precision = before


def test_a_net_that_user_code_runs_in_a_backward_pass_does_not_make_the_numerics_twice():
    """A GPU's backward pass is in a thread of its own."""
    with scope.computing("reproducible"):
        scope._active.is_inside = False
        with scope.computing("reproducible"):
            assert torch.ones(3).double().float().sum() == 3
        scope._active.is_inside = True

"""Frozen layers of every type keep all of their blobs byte-identical in training: weights, biases, running statistics."""

import numpy as np
import pytest
from google.protobuf import text_format

import caffe
from caffe.proto import caffe_pb2
from pipeline.nets.models import Built
from pipeline.nets.strategies import freeze, frozen

SHAPE = (6, 4, 5, 5)
"""Shape of the blob `data`; recurrent layers take it as 6 steps of 4 sequences."""
ONES = "param { lr_mult: 1 decay_mult: 1 } "
BEFORE = """
layer { name: "marks" type: "DummyData" top: "marks"
        dummy_data_param { shape { dim: 6 dim: 4 } data_filler { value: 1 } } }
layer { name: "static" type: "DummyData" top: "static"
        dummy_data_param { shape { dim: 4 dim: 2 } data_filler { type: "gaussian" std: 1 } } }
layer { name: "offsets" type: "DummyData" top: "offsets" top: "masks"
        dummy_data_param { shape { dim: 6 dim: 18 dim: 3 dim: 3 } shape { dim: 6 dim: 9 dim: 3 dim: 3 }
                           data_filler { type: "uniform" } } }
layer { name: "images" type: "DummyData" top: "images"
        dummy_data_param { shape { dim: 6 dim: 3 dim: 5 dim: 5 } data_filler { type: "uniform" max: 9 } } }
layer { name: "index" type: "Threshold" bottom: "data" top: "index" }
layer { name: "volumes" type: "Reshape" bottom: "data" top: "volumes" reshape_param { axis: 1 num_axes: 0 shape { dim: 1 } } }
"""
"""Other bottoms: continuation marks, a static input, offsets and masks, images, indices of 0 and 1, volumes of one channel."""
CASES = {
    "Convolution": "convolution_param { num_output: 3 kernel_size: 3 }",
    "Convolution, no bias": "convolution_param { num_output: 3 kernel_size: 3 bias_term: false }",
    "Convolution, given multipliers": f"{ONES * 2} convolution_param {{ num_output: 3 kernel_size: 3 }}",
    "DepthwiseConvolution": "convolution_param { num_output: 4 kernel_size: 3 }",
    "ConvolutionDepthwise": "convolution_param { num_output: 4 kernel_size: 3 bias_term: false }",
    "Deconvolution": "convolution_param { num_output: 3 kernel_size: 2 stride: 2 }",
    "InnerProduct": "inner_product_param { num_output: 3 }",
    "Scale": "scale_param { bias_term: true }",
    "Scale, no bias": "",
    "Scale, a second bottom": 'bottom: "data" scale_param { axis: 0 bias_term: true }',
    "Bias": "",
    "PReLU": "",
    "Normalize": "norm_param { across_spatial: false }",
    "BatchNorm": "",
    "BatchNorm, three params": "param { lr_mult: 0 } " * 3,
    "BatchNorm, batch statistics": "batch_norm_param { use_global_stats: false }",
    "BatchNorm, NVIDIA's": "batch_norm_param { scale_bias: true }",
    "BatchNorm, NVIDIA's, given multipliers": f"{ONES * 5} batch_norm_param {{ scale_bias: true }}",
    "BN": "",
    "BN, given multipliers": ONES * 4,
    "BN, SegNet's": 'bn_param { scale_filler { type: "constant" value: 1 } }',
    "LSTM": 'bottom: "marks" recurrent_param { num_output: 3 }',
    "LSTM, a static input": 'bottom: "marks" bottom: "static" recurrent_param { num_output: 3 }',
    "RNN": 'bottom: "marks" recurrent_param { num_output: 3 }',
    "RNN, a static input": 'bottom: "marks" bottom: "static" recurrent_param { num_output: 3 }',
    "Embed": "embed_param { input_dim: 2 num_output: 3 }",
    "Parameter": "parameter_param { shape { dim: 6 dim: 3 } }",
    "Convolution3D": "convolution3d_param { num_output: 3 kernel_size: 2 kernel_depth: 1 }",
    "Deconvolution3D": "convolution3d_param { num_output: 3 kernel_size: 2 kernel_depth: 1 }",
    "InnerDistance": "inner_distance_param { num_output: 3 }",
    "DeformableConvolution": 'bottom: "offsets" deformable_convolution_param { num_output: 3 kernel_size: 3 }',
    "ModulatedDeformableConvolution": (
        'bottom: "offsets" bottom: "masks" modulated_deformable_convolution_param { num_output: 3 kernel_size: 3 }'
    ),
    "Lstm": "lstm_param { num_output: 3 }",
    "MarginInnerProduct": 'bottom: "label" margin_inner_product_param { num_output: 3 type: DOUBLE }',
    "LargeMarginInnerProduct": 'bottom: "label" largemargin_inner_product_param { num_output: 3 type: DOUBLE }',
    "MultiStageMeanfield": 'bottom: "data" bottom: "images" multi_stage_meanfield_param { num_iterations: 2 }',
    "CenterLoss": 'bottom: "label" center_loss_param { num_output: 2 }',
    "Python": f'python_param {{ module: "{__name__}" layer: "Shifted" }}',
}
"""{a type, or "TYPE, variant": its settings, and the bottoms after the first}."""
NEVER_FROZEN = {"DataAugmentation", "DenseBlock"}
"""Types whose statistics change in each pass of training: their forks have no setting that keeps them."""


VOLUMES = {"Convolution3D", "Deconvolution3D"}
"""Types that take volumes."""


class Shifted(caffe.Layer):
    """y = x + b as a user's Python layer: the prototxt does not mention its two blobs."""

    def setup(self, bottom, top):
        for _ in range(2):
            self.blobs.add_blob(1)

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data + sum(blob.data[0] for blob in self.blobs)

    def backward(self, top, propagate_down, bottom):
        for blob in self.blobs:
            blob.diff[0] += top[0].diff.sum()
        if propagate_down[0]:
            bottom[0].diff[...] = top[0].diff


def kind_of(case):
    return case.split(",")[0]


def build(case):
    """A net of the layer `body` and a classifier `head` that reads it, or its bottom where it is a loss."""
    kind = kind_of(case)
    others = {"Embed": 'bottom: "index"', "Parameter": ""}
    bottom = 'bottom: "volumes"' if kind in VOLUMES else others.get(kind, 'bottom: "data"')
    net = caffe_pb2.NetParameter()
    text_format.Parse(f'{BEFORE} layer {{ name: "body" type: "{kind}" {bottom} top: "y" {CASES[case]} }}', net)
    head = net.layer.add(name="head", type="InnerProduct", bottom=["data" if kind == "CenterLoss" else "y"], top=["head"])
    head.inner_product_param.num_output = 2
    return Built(list(net.layer), [("head", 1.0)], {"head"})


def train(made, folder, seed):
    """Train for 4 iterations; returns {(layer, blob): (bytes as pretrained, bytes after training)}."""
    net = caffe_pb2.NetParameter()
    for top, shape, filler in (("data", SHAPE, {"type": "gaussian", "std": 1}), ("label", SHAPE[:1], {"value": 1})):
        layer = net.layer.add(name=top, type="DummyData", top=[top])
        layer.dummy_data_param.shape.add(dim=shape)
        layer.dummy_data_param.data_filler.add(**filler)
    net.layer.extend(made.layers)
    net.layer.add(name="loss", type="SoftmaxWithLoss", bottom=["head", "label"], top=["loss"])
    caffe.write_prototxt(folder / "net.prototxt", net)
    rng = np.random.default_rng(seed)
    pretrained = caffe.Net(str(folder / "net.prototxt"), caffe.TRAIN)
    for blobs in pretrained.params.values():
        for blob in blobs:
            blob.data[...] = rng.uniform(0.5, 1.5, blob.shape)
    pretrained.save(folder / "pretrained.caffemodel")
    rates = 'base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.1 max_iter: 4 snapshot: 0'
    (folder / "solver.prototxt").write_text(f'net: "{folder}/net.prototxt" {rates} random_seed: 1 solver_mode: CPU')
    solver = caffe.get_solver(str(folder / "solver.prototxt"))
    solver.net.copy_from(folder / "pretrained.caffemodel")

    def values():
        return {(name, i): blob.data.tobytes() for name, blobs in solver.net.params.items() for i, blob in enumerate(blobs)}

    before = values()
    solver.step(4)
    return {key: (before[key], after) for key, after in values().items()}


def test_every_layer_type_with_blobs_has_a_case():
    described = {name for name in caffe.layer_type_list() if {"blob_specs", "learns"} & vars_of(caffe.layer_type(name))}
    assert described == set(map(kind_of, CASES)) | NEVER_FROZEN
    assert not any(caffe.layer_type(name).has_statistics(caffe_pb2.LayerParameter(type=name)) for name in NEVER_FROZEN)


def vars_of(kind):
    """Names that a layer type's class and its bases define, without those of the common base."""
    return {name for base in kind.__mro__[:-2] for name in vars(base)}


@pytest.mark.parametrize("case", CASES)
def test_a_frozen_layer_keeps_its_bytes_while_the_head_learns(case, tmp_path):
    made = build(case)
    names = frozen(made, "last_layer", "")
    assert names == ["body"]
    freeze(made.layers, names, SHAPE)
    changed = {key for key, (before, after) in train(made, tmp_path, 1).items() if before != after}
    assert changed == {("head", 0), ("head", 1)}


@pytest.mark.parametrize("case", CASES)
def test_without_freezing_every_blob_of_the_type_changes(case, tmp_path):
    made = build(case)
    results = train(made, tmp_path, 1)
    fixed = {("body", 2)} if "NVIDIA's" in case else set()  # the factor of the averages, which NVIDIA's layer keeps at 1
    assert {key for key, (before, after) in results.items() if before == after} == fixed
    specs = caffe.layer_type(kind_of(case)).blob_specs(made.layers[-2])
    assert specs is None or len(specs) == len(results) - 2

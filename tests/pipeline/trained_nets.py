"""Nets with weights like trained ones: scaled so that values stay in range, and statistics other than 0 and 1."""

import gzip
import math

import numpy as np

import caffe
from pipeline.nets.models import TEMPLATES, Last
from tests.conftest import SHARED


def of_template(name: str, classes: int, *shape: int):
    """A template's deploy net for an input of this shape, as a message without fillers."""
    scores = Last(TEMPLATES[name].last, classes)
    built = TEMPLATES[name].built(scores, deploy=True)
    n = caffe.NetSpec()
    n.data = caffe.layers.Input(shape={"dim": list(shape)})
    net = n.to_proto()
    net.name = name
    net.layer.extend(built.layers)
    net.layer.add(name="prob", type="Softmax", bottom=[built.heads[-1][0]], top=["prob"])
    return remove_fillers(net)


def remove_fillers(net):
    """Remove the weight fillers of a net's message: filling takes longer than everything else."""
    for layer in net.layer:
        for field in ("convolution_param", "inner_product_param"):
            if layer.HasField(field):
                getattr(layer, field).ClearField("weight_filler")
    return net


def set_random_weights(net: caffe.Net, seed: int = 0) -> caffe.Net:
    """Set random weights; returns the net."""
    draw = np.random.default_rng(seed)
    for name, blobs in net.params.items():
        kind = net.layer_dict[name].type
        if kind == "BatchNorm":
            small = 1e-5 if len(blobs) > 3 else 1  # NVIDIA's: so small that the smallest eps matters
            values = [draw.normal(0, 0.6, blobs[0].shape), draw.uniform(1, 4, blobs[1].shape) * small, 2]
            values += [draw.uniform(0.5, 1.5, blob.shape) for blob in blobs[3:]]
        elif kind in ("BN", "Scale", "Bias", "PReLU", "Normalize"):
            values = [draw.uniform(0.5, 1.5, blob.shape) for blob in blobs]
        elif kind == "DenseBlock":
            values = [
                draw.uniform(0.5, 1.5, blob.shape) if blob.shape[0] == 1 else draw.normal(0, 0.2, blob.shape) for blob in blobs
            ]
        else:
            weight, *bias = (blob.shape for blob in blobs)
            values = [draw.standard_normal(weight, np.float32) / math.sqrt(max(1, math.prod(weight[1:])))]
            values += [draw.normal(0, 0.1, shape) for shape in bias]
        for blob, value in zip(blobs, values, strict=True):
            blob.data[...] = value
    return net


def net(write, text: str, seed: int = 0) -> caffe.Net:
    """The net of a prototxt's text, with random weights."""
    return set_random_weights(caffe.Net(write("net.prototxt", text), caffe.TEST), seed)


def layer(kind: str, name: str, *bottoms: str, top: str = "", more: str = "") -> str:
    """A layer as text; its top has its name unless it is given."""
    read = " ".join(f'bottom: "{bottom}"' for bottom in bottoms)
    return f'layer {{ name: "{name}" type: "{kind}" {read} top: "{top or name}" {more} }}\n'


def image(*dims: int, name: str = "data") -> str:
    """An Input layer as text."""
    return layer("Input", name, more="input_param { shape { " + " ".join(f"dim: {dim}" for dim in dims) + " } }")


def digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first digits of MNIST's test set as LeNet takes them, N × 1 × 28 × 28 of 0 to 1, and their labels."""
    images, labels = (
        gzip.decompress((SHARED / f"data/mnist/t10k-{name}-ubyte.gz").read_bytes()) for name in ("images-idx3", "labels-idx1")
    )
    pixels = np.frombuffer(images, np.uint8, count * 784, 16).reshape(count, 1, 28, 28)
    return pixels.astype(np.float32) / 256, np.frombuffer(labels, np.uint8, count, 8)

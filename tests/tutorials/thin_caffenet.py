"""CaffeNet with an eighth of its channels, written by NetSpec as BVLC's notebooks write it, and images for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import caffe
from caffe import layers as L
from caffe import params as P

THIN = 8
LEARNED = [{"lr_mult": 1, "decay_mult": 1}, {"lr_mult": 2, "decay_mult": 0}]
FROZEN = [{"lr_mult": 0}] * 2


def convolution(bottom: Any, kernel: int, outputs: int, param: Sequence[dict], **settings: Any) -> tuple[Any, Any]:
    """A convolution and its ReLU, in place."""
    filler = {"type": "msra"}
    made = L.Convolution(bottom, kernel_size=kernel, num_output=outputs // THIN, param=param, weight_filler=filler, **settings)
    return made, L.ReLU(made, in_place=True)


def inner_product(bottom: Any, outputs: int, param: Sequence[dict]) -> tuple[Any, Any]:
    """An inner product and its ReLU, in place."""
    made = L.InnerProduct(bottom, num_output=outputs // THIN, param=param, weight_filler={"type": "msra"})
    return made, L.ReLU(made, in_place=True)


def max_pool(bottom: Any) -> Any:
    return L.Pooling(bottom, pool=P.Pooling.MAX, kernel_size=3, stride=2)


def add_layers(n: caffe.NetSpec, param: Sequence[dict] = FROZEN, drop: bool = True) -> Any:
    """Add the layers from n.data to fc7; returns what the classifier reads."""
    n.conv1, n.relu1 = convolution(n.data, 11, 96, param, stride=4)
    n.pool1 = max_pool(n.relu1)
    n.norm1 = L.LRN(n.pool1, local_size=5, alpha=1e-4, beta=0.75)
    n.conv2, n.relu2 = convolution(n.norm1, 5, 256, param, pad=2, group=2)
    n.pool2 = max_pool(n.relu2)
    n.norm2 = L.LRN(n.pool2, local_size=5, alpha=1e-4, beta=0.75)
    n.conv3, n.relu3 = convolution(n.norm2, 3, 384, param, pad=1)
    n.conv4, n.relu4 = convolution(n.relu3, 3, 384, param, pad=1, group=2)
    n.conv5, n.relu5 = convolution(n.relu4, 3, 256, param, pad=1, group=2)
    n.pool5 = max_pool(n.relu5)
    n.fc6, n.relu6 = inner_product(n.pool5, 4096, param)
    below = n.relu6
    if drop:
        n.drop6 = below = L.Dropout(below, in_place=True)
    n.fc7, n.relu7 = inner_product(below, 4096, param)
    below = n.relu7
    if drop:
        n.drop7 = below = L.Dropout(below, in_place=True)
    return below


def deploy(folder: Path, classes: int = 1000, batch: int = 10) -> tuple[str, str]:
    """Write deploy.prototxt and caffenet.caffemodel, with random weights; returns their paths."""
    n = caffe.NetSpec()
    n.data = L.Input(shape={"dim": [batch, 3, 227, 227]})
    n.fc8 = L.InnerProduct(add_layers(n), num_output=classes, weight_filler={"type": "msra"})
    n.prob = L.Softmax(n.fc8)
    prototxt, weights = folder / "deploy.prototxt", folder / "caffenet.caffemodel"
    prototxt.write_text(str(n.to_proto()))
    caffe.set_random_seed(1)
    net = caffe.Net(str(prototxt), caffe.TEST)
    net.params["conv1"][0].data[...] *= 0.01  # its input are pixels
    net.save(str(weights))
    return str(prototxt), str(weights)


def photograph(path: Path, hue: int, size: tuple[int, int] = (300, 260), seed: int = 0) -> str:
    """Write a smooth image of one hue, 0 to 179; returns its path."""
    draw = np.random.default_rng(seed)
    pixels = cv2.resize(draw.uniform(0.5, 1, (5, 6)), size, interpolation=cv2.INTER_CUBIC).clip(0, 1)
    colours = np.stack([np.full_like(pixels, hue), np.full_like(pixels, 200), 255 * pixels], 2).astype(np.uint8)
    cv2.imwrite(str(path), cv2.cvtColor(colours, cv2.COLOR_HSV2BGR))
    return str(path)

"""Fully convolutional nets (Long, Shelhamer & Darrell 2015): a score for every class at every pixel, for images of any size.

The layers of a classifier, its fully connected ones as convolutions of the same names, give scores every 32 pixels. These are
upsampled in one step (fcn32s, fcn_alexnet), or in between added to scores from the fourth pooling (fcn16s) and the third (fcn8s).
The first convolution pads by 100, so that small images have scores, too; the excess is cropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

import caffe
from caffe import layers as L
from caffe import params as P
from caffe.coord_map import crop
from caffe.net_spec import NetSpec, Top
from caffe.proto import caffe_pb2
from pipeline.nets.models import alexnet, vgg
from pipeline.nets.models.blocks import dropped, rates

PAD = 100


def vgg16(stride: int) -> Callable[[NetSpec, int], None]:
    """VGG-16, whose last step of upsampling is by 32, 16 or 8."""

    def build(n: NetSpec, outputs: int) -> None:
        top = vgg.convolutions(n, 16, PAD, param=rates())
        top = _scored(n, top, outputs, 7, param=rates())
        joined = {16: [4], 8: [4, 3]}.get(stride, [])
        for pool in joined:
            name = "upscore2" if pool == 4 else "upscore_pool4"
            n[name] = _upsampled(top, outputs, 4, 2)
            n[f"score_pool{pool}"] = L.Convolution(n[f"pool{pool}"], num_output=outputs, kernel_size=1, param=rates())
            n[f"score_pool{pool}c"] = crop(n[f"score_pool{pool}"], n[name])
            top = n[f"fuse_pool{pool}"] = L.Eltwise(n[name], n[f"score_pool{pool}c"], operation=P.Eltwise.SUM)
        name = f"upscore{stride}" if joined else "upscore"
        n[name] = _upsampled(top, outputs, 2 * stride, stride)
        n.score = crop(n[name], n.data)

    return build


def caffenet(n: NetSpec, outputs: int) -> None:
    """CaffeNet, whose scores are upsampled in one step."""
    top = alexnet.convolutions(n, pool_first=True, more=lambda number: {"pad": PAD} if number == 1 else {})
    n.upscore = _upsampled(_scored(n, top, outputs, 6), outputs, 63, 32)
    n.score = crop(n.upscore, n.data)


def _scored(n: NetSpec, bottom: Top, outputs: int, kernel: int, **learned: Any) -> Top:
    """Convolutions for the fully connected layers, the first `kernel` × `kernel`, and a score for each class."""
    for number, size in ((6, kernel), (7, 1)):
        bottom = dropped(n, number, L.Convolution(bottom, num_output=4096, kernel_size=size, **learned))
    n.score_fr = L.Convolution(bottom, num_output=outputs, kernel_size=1, param=rates())
    return n.score_fr


def _upsampled(bottom: Top, outputs: int, kernel: int, stride: int) -> Top:
    """A frozen deconvolution; see `set_upsampling`."""
    shape = {"num_output": outputs, "kernel_size": kernel, "stride": stride, "bias_term": False}
    top: Top = L.Deconvolution(bottom, convolution_param=shape, param=[{"lr_mult": 0}])
    return top


NETS = {"fcn32s": vgg16(32), "fcn16s": vgg16(16), "fcn8s": vgg16(8), "fcn_alexnet": caffenet}
"""build(n, outputs) adds the layers from `n.data` to `n.score`, outputs × the height and width of the image."""


def layers(name: str, outputs: int) -> list[caffe_pb2.LayerParameter]:
    """The layers of one of NETS, from `data` to `score`."""
    n = caffe.NetSpec()
    n.data = L.Input()
    NETS[name](n, outputs)
    return list(n.to_proto().layer)[1:]


def set_upsampling(net: caffe.Net, names: Iterable[str]) -> None:
    """Set the weights of deconvolutions to bilinear interpolation, separately for each class."""
    for name in names:
        (weights,) = net.params[name]
        size = weights.data.shape[-1]
        axis = 1 - np.abs(np.arange(size) - (size - 1) / 2) / ((size + 1) // 2)
        weights.data[...] = np.eye(len(weights.data))[:, :, None, None] * np.outer(axis, axis)

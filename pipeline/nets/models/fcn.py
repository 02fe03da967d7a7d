"""Fully convolutional nets (Long, Shelhamer & Darrell 2015): a score for every class at every pixel, for images of any size.

The layers of a classifier, its fully connected ones as convolutions of the same names, give scores every 32 pixels. These are
upsampled in one step (fcn32s, fcn_alexnet), or joined with scores from the fourth pooling (fcn16s) and the third (fcn8s) on the
way. The first convolution pads by 100, so that small images have scores, too; what is too much is cropped.
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
from pipeline.nets.models import vgg

LEARNED = [{"lr_mult": 1, "decay_mult": 1}, {"lr_mult": 2, "decay_mult": 0}]
PAD = 100


def vgg16(stride: int) -> Callable[[NetSpec, int], Top]:
    """VGG-16, whose last step of upsampling is by 32, 16 or 8."""

    def build(n: NetSpec, outputs: int) -> Top:
        top = n.data
        for stage, (count, width) in enumerate(zip(vgg.CONVOLUTIONS[16], vgg.OUTPUTS, strict=True), 1):
            for number in range(1, count + 1):
                pad = PAD if (stage, number) == (1, 1) else 1
                top = _convolved(n, top, f"{stage}_{number}", num_output=width, kernel_size=3, pad=pad, param=LEARNED)
            top = n[f"pool{stage}"] = L.Pooling(top, pool=P.Pooling.MAX, kernel_size=2, stride=2)
        _scored(n, top, outputs, 7, param=LEARNED)
        top = n.score_fr
        joined = {16: [4], 8: [4, 3]}.get(stride, [])
        for pool in joined:
            name = "upscore2" if pool == 4 else "upscore_pool4"
            n[name] = _upsampled(top, outputs, 4, 2)
            n[f"score_pool{pool}"] = L.Convolution(n[f"pool{pool}"], num_output=outputs, kernel_size=1, param=LEARNED)
            n[f"score_pool{pool}c"] = crop(n[f"score_pool{pool}"], n[name])
            top = n[f"fuse_pool{pool}"] = L.Eltwise(n[name], n[f"score_pool{pool}c"], operation=P.Eltwise.SUM)
        name = f"upscore{stride}" if joined else "upscore"
        n[name] = _upsampled(top, outputs, 2 * stride, stride)
        n.score = crop(n[name], n.data)
        return n.score

    return build


def alexnet(n: NetSpec, outputs: int) -> Top:
    """CaffeNet, which pools before it normalises."""
    window = {"pool": P.Pooling.MAX, "kernel_size": 3, "stride": 2}
    top = n.data
    for number, shape in enumerate(
        (
            {"num_output": 96, "kernel_size": 11, "stride": 4, "pad": PAD},
            {"num_output": 256, "kernel_size": 5, "pad": 2, "group": 2},
            {"num_output": 384, "kernel_size": 3, "pad": 1},
            {"num_output": 384, "kernel_size": 3, "pad": 1, "group": 2},
            {"num_output": 256, "kernel_size": 3, "pad": 1, "group": 2},
        ),
        1,
    ):
        top = _convolved(n, top, str(number), **shape)
        if number in (1, 2):
            n[f"pool{number}"] = L.Pooling(top, **window)
            top = n[f"norm{number}"] = L.LRN(n[f"pool{number}"], local_size=5, alpha=1e-4, beta=0.75)
    n.pool5 = L.Pooling(top, **window)
    _scored(n, n.pool5, outputs, 6)
    n.upscore = _upsampled(n.score_fr, outputs, 63, 32)
    n.score = crop(n.upscore, n.data)
    return n.score


def _convolved(n: NetSpec, bottom: Top, name: str, **shape: Any) -> Top:
    n[f"conv{name}"] = L.Convolution(bottom, **shape)
    n[f"relu{name}"] = L.ReLU(n[f"conv{name}"], in_place=True)
    return n[f"relu{name}"]


def _scored(n: NetSpec, bottom: Top, outputs: int, kernel: int, **learned: Any) -> None:
    """What were fully connected layers, over so many places a side, and a score for each class."""
    for number, size in ((6, kernel), (7, 1)):
        n[f"fc{number}"] = L.Convolution(bottom, num_output=4096, kernel_size=size, **learned)
        n[f"relu{number}"] = L.ReLU(n[f"fc{number}"], in_place=True)
        bottom = n[f"drop{number}"] = L.Dropout(n[f"relu{number}"], dropout_ratio=0.5, in_place=True)
    n.score_fr = L.Convolution(bottom, num_output=outputs, kernel_size=1, param=LEARNED)


def _upsampled(bottom: Top, outputs: int, kernel: int, stride: int) -> Top:
    """A deconvolution that is not learned; see `set_upsampling`."""
    shape = {"num_output": outputs, "kernel_size": kernel, "stride": stride, "bias_term": False}
    top: Top = L.Deconvolution(bottom, convolution_param=shape, param=[{"lr_mult": 0}])
    return top


NETS = {"fcn32s": vgg16(32), "fcn16s": vgg16(16), "fcn8s": vgg16(8), "fcn_alexnet": alexnet}
"""build(n, outputs) adds the layers from `n.data` to `n.score`, outputs × the height and width of the image."""


def layers(name: str, outputs: int) -> list[caffe_pb2.LayerParameter]:
    """The layers of one of NETS, from `data` to `score`."""
    n = caffe.NetSpec()
    n.data = L.Input()
    NETS[name](n, outputs)
    return list(n.to_proto().layer)[1:]


def set_upsampling(net: caffe.Net, names: Iterable[str]) -> None:
    """Let deconvolutions interpolate linearly between places, each class by itself."""
    for name in names:
        (weights,) = net.params[name]
        size = weights.data.shape[-1]
        axis = 1 - np.abs(np.arange(size) - (size - 1) / 2) / ((size + 1) // 2)
        weights.data[...] = np.eye(len(weights.data))[:, :, None, None] * np.outer(axis, axis)

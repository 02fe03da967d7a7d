"""VGG's nets of 16 and 19 layers (Simonyan & Zisserman 2014), with the names of the weights they published."""

from collections.abc import Callable
from typing import Any

from caffe import layers as L
from caffe import params as P
from caffe.net_spec import NetSpec, Top
from pipeline.nets.models.base import Last
from pipeline.nets.models.blocks import dropped, fillers, rates, rectified

LAST = "fc8"
CONVOLUTIONS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""3 × 3 convolutions of each stage, by the number of layers with weights."""
OUTPUTS = (64, 128, 256, 512, 512)


def convolutions(n: NetSpec, layers: int, first_pad: int = 1, **learned: Any) -> Top:
    """Five stages of 3 × 3 convolutions with these learning rates and fillers, each pooled."""
    top = n.data
    for stage, (count, outputs) in enumerate(zip(CONVOLUTIONS[layers], OUTPUTS, strict=True), 1):
        for number in range(1, count + 1):
            pad = first_pad if (stage, number) == (1, 1) else 1
            convolution = L.Convolution(top, num_output=outputs, pad=pad, kernel_size=3, **learned)
            top = rectified(n, f"conv{stage}_{number}", f"relu{stage}_{number}", convolution)
        top = n[f"pool{stage}"] = L.Pooling(top, pool=P.Pooling.MAX, kernel_size=2, stride=2)
    return top


def body(layers: int) -> Callable[[NetSpec, Last], None]:
    """The net of so many layers: five stages of convolutions, and three fully connected layers."""

    def build(n: NetSpec, last: Last) -> None:
        top = convolutions(n, layers, param=rates(), **fillers("gaussian", std=0.01))
        for number in (6, 7):
            top = dropped(n, number, L.InnerProduct(top, num_output=4096, param=rates(), **fillers("gaussian", std=0.005)))
        n[last.name] = L.InnerProduct(top, num_output=last.outputs, param=rates(last.lr_mult), **fillers("gaussian", std=0.01))

    return build

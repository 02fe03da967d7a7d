"""Residual nets of 18 to 152 layers (He et al. 2015), with the names of the weights that MSRA published for 50, 101 and 152."""

from collections.abc import Callable
from typing import Any

from caffe import layers as L
from caffe import params as P
from caffe.net_spec import NetSpec, Top
from pipeline.nets.models.base import Last
from pipeline.nets.models.blocks import fillers, normalised, rates, rectified

LAST = "fc1000"
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Blocks of each stage, by the number of layers with weights."""


def body(layers: int) -> Callable[[NetSpec, Last], None]:
    """The net of so many layers: four stages of blocks, each of which adds to its input, and one classifier."""
    wide = layers >= 50

    def build(n: NetSpec, last: Last) -> None:
        top = _normalised(n, n.data, "conv1", "_conv1", 64, 7, 2, bias=layers == 50)
        top = n.conv1_relu = L.ReLU(top, in_place=True)
        top = n.pool1 = L.Pooling(top, pool=P.Pooling.MAX, kernel_size=3, stride=2)
        inputs = 64
        for stage, count in enumerate(BLOCKS[layers], 2):
            outputs = 64 * 2 ** (stage - 2)
            for number in range(count):
                stride = 2 if number == 0 and stage > 2 else 1
                top = _block(n, top, f"{stage}{_letter(number, stage, layers)}", inputs, outputs, stride, wide)
                inputs = 4 * outputs if wide else outputs
        n.pool5 = L.Pooling(top, pool=P.Pooling.AVE, kernel_size=7, stride=1)
        n[last.name] = L.InnerProduct(n.pool5, num_output=last.outputs, param=rates(last.lr_mult), **fillers("msra"))

    return build


def _letter(number: int, stage: int, layers: int) -> str:
    """The name of a block: a, b, c …, or a, b1, b2 … in the long stages of the deepest nets."""
    if layers > 50 and stage in (3, 4):
        return "a" if number == 0 else f"b{number}"
    return "abcdef"[number]


def _block(n: NetSpec, bottom: Top, name: str, inputs: int, outputs: int, stride: int, wide: bool) -> Top:
    """Two 3 × 3 convolutions, or if `wide` 1 × 1, 3 × 3 and 1 × 1 with four times the outputs, added to the input."""
    last = 4 * outputs if wide else outputs
    shortcut = bottom
    if inputs != last or stride != 1:
        shortcut = _normalised(n, bottom, f"res{name}_branch1", f"{name}_branch1", last, 1, stride)
    shapes = [(outputs, 1, stride), (outputs, 3, 1), (last, 1, 1)] if wide else [(outputs, 3, stride), (last, 3, 1)]
    top = bottom
    branches = [f"{name}_branch2{letter}" for letter in "abc"[: len(shapes)]]
    for branch, shape in zip(branches, shapes, strict=True):
        top = _normalised(n, top, f"res{branch}", branch, *shape)
        if branch != branches[-1]:
            top = n[f"res{branch}_relu"] = L.ReLU(top, in_place=True)
    return rectified(n, f"res{name}", f"res{name}_relu", L.Eltwise(shortcut, top))


def _normalised(
    n: NetSpec, bottom: Top, name: str, suffix: str, outputs: int, kernel: int, stride: int, bias: bool = False
) -> Top:
    """A convolution with batch normalisation; the first of ResNet-50 has a bias, too."""
    fields: dict[str, Any] = {"num_output": outputs, "kernel_size": kernel, "pad": kernel // 2, "stride": stride}
    if bias:
        fields |= {"param": rates(), "bias_term": True}
    return normalised(n, bottom, (name, f"bn{suffix}", f"scale{suffix}"), **fields)

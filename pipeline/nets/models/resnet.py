"""Residual nets of 18 to 152 layers (He et al. 2015), with the names of the weights that MSRA published for 50, 101 and 152."""

from collections.abc import Callable
from typing import Any

from caffe import layers as L
from caffe import params as P
from caffe.net_spec import NetSpec, Top
from pipeline.nets.models.base import Last
from pipeline.nets.models.blocks import normalised

LAST = "fc1000"
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Blocks of each stage, by the number of layers with weights."""


def body(layers: int) -> Callable[[NetSpec, Last], Top]:
    """The net of so many layers: four stages of blocks, each of which adds to its input, and one classifier."""
    wide = layers >= 50

    def build(n: NetSpec, last: Last) -> Top:
        top = _normalised(n, n.data, "conv1", "_conv1", 64, 7, 3, 2, bias=layers == 50)
        n.conv1_relu = L.ReLU(top, in_place=True)
        top = n.pool1 = L.Pooling(n.conv1_relu, pool=P.Pooling.MAX, kernel_size=3, stride=2)
        inputs = 64
        for stage, count in enumerate(BLOCKS[layers], 2):
            outputs = 64 * 2 ** (stage - 2)
            for number in range(count):
                stride = 2 if number == 0 and stage > 2 else 1
                top = _block(n, top, f"{stage}{_letter(number, stage, layers)}", inputs, outputs, stride, wide)
                inputs = 4 * outputs if wide else outputs
        n.pool5 = L.Pooling(top, pool=P.Pooling.AVE, kernel_size=7, stride=1)
        n[last.name] = L.InnerProduct(
            n.pool5,
            num_output=last.outputs,
            param=[{"lr_mult": last.lr_mult, "decay_mult": 1}, {"lr_mult": 2 * last.lr_mult, "decay_mult": 0}],
            weight_filler={"type": "msra"},
            bias_filler={"type": "constant"},
        )
        return n[last.name]

    return build


def _letter(number: int, stage: int, layers: int) -> str:
    """What a block is called: a, b, c …, or a, b1, b2 … in the long stages of the deepest nets."""
    if layers > 50 and stage in (3, 4):
        return "a" if number == 0 else f"b{number}"
    return "abcdef"[number]


def _block(n: NetSpec, bottom: Top, name: str, inputs: int, outputs: int, stride: int, wide: bool) -> Top:
    """Two 3 × 3 convolutions, or one between two of 1 × 1 of which the last is four times as wide, added to the input."""
    last = 4 * outputs if wide else outputs
    shortcut = bottom
    if inputs != last or stride != 1:
        shortcut = _normalised(n, bottom, f"res{name}_branch1", f"{name}_branch1", last, 1, 0, stride)
    shapes = (
        [(outputs, 1, 0, stride), (outputs, 3, 1, 1), (last, 1, 0, 1)] if wide else [(outputs, 3, 1, stride), (last, 3, 1, 1)]
    )
    top = bottom
    for letter, shape in zip("abc", shapes, strict=False):
        top = _normalised(n, top, f"res{name}_branch2{letter}", f"{name}_branch2{letter}", *shape)
        if letter != "abc"[len(shapes) - 1]:
            top = n[f"res{name}_branch2{letter}_relu"] = L.ReLU(top, in_place=True)
    n[f"res{name}"] = L.Eltwise(shortcut, top)
    n[f"res{name}_relu"] = L.ReLU(n[f"res{name}"], in_place=True)
    return n[f"res{name}_relu"]


def _normalised(
    n: NetSpec, bottom: Top, name: str, suffix: str, outputs: int, kernel: int, pad: int, stride: int, bias: bool = False
) -> Top:
    """A convolution, normalised; the first of ResNet-50 learns a bias, too."""
    learned: dict[str, Any] = (
        {"param": [{"lr_mult": 1, "decay_mult": 1}, {"lr_mult": 2, "decay_mult": 0}], "bias_term": True} if bias else {}
    )
    shape: dict[str, Any] = {"num_output": outputs, "kernel_size": kernel, "pad": pad, "stride": stride}
    return normalised(n, bottom, (name, f"bn{suffix}", f"scale{suffix}"), **shape, **learned)

"""MobileNet (Howard et al. 2017) and MobileNetV2 (Sandler et al. 2018), with the names of the weights published for Caffe."""

from typing import Any

from caffe import layers as L
from caffe import params as P
from caffe.net_spec import NetSpec, Top
from pipeline.nets.models.base import Last
from pipeline.nets.models.blocks import normalised

LAST = "fc7"
SEPARABLE = [
    *[("2_1", 64, 1), ("2_2", 128, 2), ("3_1", 128, 1), ("3_2", 256, 2), ("4_1", 256, 1), ("4_2", 512, 2)],
    *[(f"5_{number}", 512, 1) for number in range(1, 6)],
    *[("5_6", 1024, 2), ("6", 1024, 1)],
]
"""Name, outputs and stride of the first net's blocks."""
INVERTED = [
    *[("2_1", 16, 1), ("2_2", 24, 2), ("3_1", 24, 1), ("3_2", 32, 2), ("4_1", 32, 1), ("4_2", 32, 1)],
    *[("4_3", 64, 1), ("4_4", 64, 1), ("4_5", 64, 1), ("4_6", 64, 1), ("4_7", 96, 2), ("5_1", 96, 1), ("5_2", 96, 1)],
    *[("5_3", 160, 2), ("6_1", 160, 1), ("6_2", 160, 1), ("6_3", 320, 1)],
]
"""Name, outputs and stride of the second net's blocks."""


def v1(n: NetSpec, last: Last) -> Top:
    """A convolution, and thirteen pairs of one within each channel and one across them."""
    top = _convolved(n, n.data, "conv1", "relu1", 32, 3, 1, 2)
    inputs = 32
    for name, outputs, stride in SEPARABLE:
        top = _convolved(n, top, f"conv{name}/dw", f"relu{name}/dw", inputs, 3, 1, stride, group=inputs)
        top = _convolved(n, top, f"conv{name}/sep", f"relu{name}/sep", outputs, 1, 0, 1)
        inputs = outputs
    return _classified(n, top, last)


def v2(n: NetSpec, last: Last) -> Top:
    """Blocks that widen sixfold, convolve within each channel and narrow again, added to their input where the shape is one."""
    top = _convolved(n, n.data, "conv1", "relu1", 32, 3, 1, 2, in_place=False)
    inputs = 32
    for name, outputs, stride in INVERTED:
        wide = inputs if name == "2_1" else 6 * inputs
        block = _convolved(n, top, f"conv{name}/expand", f"relu{name}/expand", wide, 1, 0, 1, in_place=False)
        shape: dict[str, Any] = {"group": wide, "in_place": False}
        block = _convolved(n, block, f"conv{name}/dwise", f"relu{name}/dwise", wide, 3, 1, stride, **shape)
        block = _convolved(n, block, f"conv{name}/linear", None, outputs, 1, 0, 1, in_place=False)
        if stride == 1 and inputs == outputs:
            block = n[f"block_{name}"] = L.Eltwise(top, block)
        top, inputs = block, outputs
    top = _convolved(n, top, "conv6_4", "relu6_4", 1280, 1, 0, 1, in_place=False)
    return _classified(n, top, last)


def _convolved(
    n: NetSpec,
    bottom: Top,
    name: str,
    relu: str | None,
    outputs: int,
    kernel: int,
    pad: int,
    stride: int,
    group: int = 1,
    in_place: bool = True,
) -> Top:
    """A convolution, normalised, and a ReLU where it has a name."""
    shape: dict[str, Any] = {"num_output": outputs, "kernel_size": kernel, "pad": pad, "stride": stride, "group": group}
    top = normalised(n, bottom, (name, f"{name}/bn", f"{name}/scale"), in_place, **shape)
    if relu is None:
        return top
    n[relu] = L.ReLU(top, in_place=True)
    return n[relu]


def _classified(n: NetSpec, bottom: Top, last: Last) -> Top:
    """The average over all places, and a 1 × 1 convolution as the classifier."""
    n.pool6 = L.Pooling(bottom, pool=P.Pooling.AVE, global_pooling=True)
    n[last.name] = L.Convolution(
        n.pool6,
        num_output=last.outputs,
        kernel_size=1,
        param=[{"lr_mult": last.lr_mult, "decay_mult": 1}, {"lr_mult": 2 * last.lr_mult, "decay_mult": 0}],
        weight_filler={"type": "msra"},
        bias_filler={"type": "constant"},
    )
    return n[last.name]

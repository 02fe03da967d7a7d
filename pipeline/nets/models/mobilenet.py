"""MobileNet (Howard et al. 2017) and MobileNetV2 (Sandler et al. 2018), with the names of the weights published for Caffe."""

from caffe import layers as L
from caffe import params as P
from caffe.net_spec import NetSpec, Top
from pipeline.nets.models.base import Last
from pipeline.nets.models.blocks import fillers, normalised, rates

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


def v1(n: NetSpec, last: Last) -> None:
    """A convolution, and thirteen pairs: one within each channel, one across channels."""
    top = _convolved(n, n.data, "conv1", 32, 3, 2)
    inputs = 32
    for name, outputs, stride in SEPARABLE:
        top = _convolved(n, top, f"conv{name}/dw", inputs, 3, stride, inputs)
        top = _convolved(n, top, f"conv{name}/sep", outputs)
        inputs = outputs
    _classified(n, top, last)


def v2(n: NetSpec, last: Last) -> None:
    """Blocks that widen sixfold, convolve within each channel and narrow again, added to their input if the shape is the same."""
    top = _convolved(n, n.data, "conv1", 32, 3, 2, in_place=False)
    inputs = 32
    for name, outputs, stride in INVERTED:
        wide = inputs if name == "2_1" else 6 * inputs
        block = _convolved(n, top, f"conv{name}/expand", wide, in_place=False)
        block = _convolved(n, block, f"conv{name}/dwise", wide, 3, stride, wide, in_place=False)
        block = _normalised(n, block, f"conv{name}/linear", outputs, in_place=False)
        if stride == 1 and inputs == outputs:
            block = n[f"block_{name}"] = L.Eltwise(top, block)
        top, inputs = block, outputs
    _classified(n, _convolved(n, top, "conv6_4", 1280, in_place=False), last)


def _convolved(
    n: NetSpec, bottom: Top, name: str, outputs: int, kernel: int = 1, stride: int = 1, group: int = 1, in_place: bool = True
) -> Top:
    """A convolution with batch normalisation, and its ReLU."""
    relu = name.replace("conv", "relu")
    n[relu] = L.ReLU(_normalised(n, bottom, name, outputs, kernel, stride, group, in_place), in_place=True)
    return n[relu]


def _normalised(
    n: NetSpec, bottom: Top, name: str, outputs: int, kernel: int = 1, stride: int = 1, group: int = 1, in_place: bool = True
) -> Top:
    shape = {"num_output": outputs, "kernel_size": kernel, "pad": kernel // 2, "stride": stride, "group": group}
    return normalised(n, bottom, (name, f"{name}/bn", f"{name}/scale"), in_place, **shape)


def _classified(n: NetSpec, bottom: Top, last: Last) -> None:
    """Average pooling over all positions, and a 1 × 1 convolution as the classifier."""
    n.pool6 = L.Pooling(bottom, pool=P.Pooling.AVE, global_pooling=True)
    learned = {"param": rates(last.lr_mult), **fillers("msra")}
    n[last.name] = L.Convolution(n.pool6, num_output=last.outputs, kernel_size=1, **learned)

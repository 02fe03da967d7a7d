"""GoogLeNet (Szegedy et al. 2014) as BVLC trained it: nine inception modules, and two auxiliary classifiers."""

from typing import Any

from caffe import layers as L
from caffe import params as P
from caffe.net_spec import NetSpec, Top
from pipeline.nets.models.base import Last, head_name
from pipeline.nets.models.blocks import fillers, rates, rectified

LAST = "loss3/classifier"
HELPERS = {"loss1/classifier": 0.3, "loss2/classifier": 0.3}
"""The auxiliary classifiers, and the weights of their losses."""
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
"""Outputs of a module's convolutions: 1 × 1, reduction before 3 × 3, 3 × 3, reduction before 5 × 5, 5 × 5, after pooling."""


def body(n: NetSpec, last: Last) -> None:
    """Three convolutions, nine modules in three groups with pooling between them, and average pooling."""
    window = {"pool": P.Pooling.MAX, "kernel_size": 3, "stride": 2}
    norm = {"local_size": 5, "alpha": 0.0001, "beta": 0.75}
    top = _convolved(n, n.data, "conv1", "7x7_s2", 64, kernel_size=7, pad=3, stride=2)
    n["pool1/3x3_s2"] = L.Pooling(top, **window)
    n["pool1/norm1"] = L.LRN(n["pool1/3x3_s2"], **norm)
    top = _convolved(n, n["pool1/norm1"], "conv2", "3x3_reduce", 64, kernel_size=1)
    top = _convolved(n, top, "conv2", "3x3", 192, kernel_size=3, pad=1)
    n["conv2/norm2"] = L.LRN(top, **norm)
    top = n["pool2/3x3_s2"] = L.Pooling(n["conv2/norm2"], **window)
    for name, outputs in INCEPTIONS.items():
        top = _inception(n, top, f"inception_{name}", *outputs)
        if name in ("3b", "4e"):
            top = n[f"pool{name[0]}/3x3_s2"] = L.Pooling(top, **window)
        if name in ("4a", "4d"):
            _helper(n, top, 1 if name == "4a" else 2, last)
    n["pool5/7x7_s1"] = L.Pooling(top, pool=P.Pooling.AVE, kernel_size=7, stride=1)
    n["pool5/drop_7x7_s1"] = L.Dropout(n["pool5/7x7_s1"], dropout_ratio=0.4, in_place=True)
    n[last.name] = L.InnerProduct(n["pool5/drop_7x7_s1"], num_output=last.outputs, **_learned(0, last.lr_mult))


def _learned(bias: float, lr_mult: float = 1.0) -> dict[str, Any]:
    return {"param": rates(lr_mult), **fillers("xavier", bias)}


def _convolved(n: NetSpec, bottom: Top, part: str, name: str, outputs: int, **shape: int) -> Top:
    """PART/NAME, a convolution, and its ReLU, PART/relu_NAME, which does not name the stride."""
    convolution = L.Convolution(bottom, num_output=outputs, **shape, **_learned(0.2))
    return rectified(n, f"{part}/{name}", f"{part}/relu_{name.removesuffix('_s2')}", convolution)


def _inception(
    n: NetSpec, bottom: Top, part: str, one: int, reduce3: int, three: int, reduce5: int, five: int, pooled: int
) -> Top:
    """Parallel 1 × 1, 3 × 3 and 5 × 5 convolutions, the larger ones on reduced channels, and one after pooling, concatenated."""
    sides = [_convolved(n, bottom, part, "1x1", one, kernel_size=1)]
    for size, reduced, outputs in ((3, reduce3, three), (5, reduce5, five)):
        top = _convolved(n, bottom, part, f"{size}x{size}_reduce", reduced, kernel_size=1)
        sides.append(_convolved(n, top, part, f"{size}x{size}", outputs, kernel_size=size, pad=size // 2))
    n[f"{part}/pool"] = L.Pooling(bottom, pool=P.Pooling.MAX, kernel_size=3, stride=1, pad=1)
    sides.append(_convolved(n, n[f"{part}/pool"], part, "pool_proj", pooled, kernel_size=1))
    n[f"{part}/output"] = L.Concat(*sides)
    return n[f"{part}/output"]


def _helper(n: NetSpec, bottom: Top, number: int, last: Last) -> None:
    """An auxiliary classifier, which brings a gradient to the layers below it."""
    part = f"loss{number}"
    n[f"{part}/ave_pool"] = L.Pooling(bottom, pool=P.Pooling.AVE, kernel_size=5, stride=3)
    top = _convolved(n, n[f"{part}/ave_pool"], part, "conv", 128, kernel_size=1)
    top = rectified(n, f"{part}/fc", f"{part}/relu_fc", L.InnerProduct(top, num_output=1024, **_learned(0.2)))
    n[f"{part}/drop_fc"] = L.Dropout(top, dropout_ratio=0.7, in_place=True)
    name = head_name(f"{part}/classifier", LAST, last.name)
    n[name] = L.InnerProduct(n[f"{part}/drop_fc"], num_output=last.outputs, **_learned(0, last.lr_mult))

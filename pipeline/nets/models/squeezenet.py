"""SqueezeNet 1.1 (Iandola et al. 2016): fire modules, and a convolution as the classifier."""

from typing import Any

from caffe import layers as L
from caffe import params as P
from caffe.net_spec import NetSpec, Top
from pipeline.nets.models.base import Last
from pipeline.nets.models.blocks import rectified

LAST = "conv10"
FIRES = {2: (16, 64), 3: (16, 64), 4: (32, 128), 5: (32, 128), 6: (48, 192), 7: (48, 192), 8: (64, 256), 9: (64, 256)}
"""Outputs of the squeeze convolution and of each of the two expand convolutions, by the module's number."""


def body(n: NetSpec, last: Last) -> None:
    """A convolution, eight fire modules, and the average of the scores at each position."""
    window = {"pool": P.Pooling.MAX, "kernel_size": 3, "stride": 2}
    filler = {"weight_filler": {"type": "xavier"}}
    top = rectified(n, "conv1", "relu_conv1", L.Convolution(n.data, num_output=64, kernel_size=3, stride=2, **filler))
    top = n.pool1 = L.Pooling(top, **window)
    for number, (squeezed, expanded) in FIRES.items():
        top = _fire(n, top, f"fire{number}", squeezed, expanded, filler)
        if number in (3, 5):
            top = n[f"pool{number}"] = L.Pooling(top, **window)
    n.drop9 = L.Dropout(top, dropout_ratio=0.5, in_place=True)
    learned = {"param": [{"lr_mult": last.lr_mult}, {"lr_mult": last.lr_mult}]} if last.lr_mult != 1 else {}
    gaussian = {"type": "gaussian", "mean": 0.0, "std": 0.01}
    scores = L.Convolution(n.drop9, num_output=last.outputs, kernel_size=1, weight_filler=gaussian, **learned)
    n.pool10 = L.Pooling(rectified(n, last.name, "relu_conv10", scores), pool=P.Pooling.AVE, global_pooling=True)


def _fire(n: NetSpec, bottom: Top, name: str, squeezed: int, expanded: int, filler: dict[str, Any]) -> Top:
    """A 1 × 1 convolution, then a 1 × 1 and a 3 × 3 convolution in parallel, concatenated."""

    def convolved(bottom: Top, kind: str, outputs: int, **shape: int) -> Top:
        convolution = L.Convolution(bottom, num_output=outputs, **shape, **filler)
        return rectified(n, f"{name}/{kind}", f"{name}/relu_{kind}", convolution)

    top = convolved(bottom, "squeeze1x1", squeezed, kernel_size=1)
    sides = (convolved(top, "expand1x1", expanded, kernel_size=1), convolved(top, "expand3x3", expanded, pad=1, kernel_size=3))
    n[f"{name}/concat"] = L.Concat(*sides)
    return n[f"{name}/concat"]

"""SqueezeNet 1.1 (Iandola et al. 2016): fire modules, and a convolution as the classifier."""

from typing import Any

from caffe import layers as L
from caffe import params as P
from caffe.net_spec import NetSpec, Top
from pipeline.nets.models.base import Last

LAST = "conv10"
FIRES = {2: (16, 64), 3: (16, 64), 4: (32, 128), 5: (32, 128), 6: (48, 192), 7: (48, 192), 8: (64, 256), 9: (64, 256)}
"""Outputs of the squeezing convolution and of each of the two that expand, by the module's number."""


def body(n: NetSpec, last: Last) -> Top:
    """A convolution, eight fire modules, and the average of a score for each place."""
    window = {"pool": P.Pooling.MAX, "kernel_size": 3, "stride": 2}
    filler = {"weight_filler": {"type": "xavier"}}
    n.conv1 = L.Convolution(n.data, num_output=64, kernel_size=3, stride=2, **filler)
    n.relu_conv1 = L.ReLU(n.conv1, in_place=True)
    top = n.pool1 = L.Pooling(n.relu_conv1, **window)
    for number, (squeezed, expanded) in FIRES.items():
        top = _fire(n, top, f"fire{number}", squeezed, expanded, filler)
        if number in (3, 5):
            top = n[f"pool{number}"] = L.Pooling(top, **window)
    n.drop9 = L.Dropout(top, dropout_ratio=0.5, in_place=True)
    learned = {"param": [{"lr_mult": last.lr_mult}, {"lr_mult": last.lr_mult}]} if last.lr_mult != 1 else {}
    gaussian = {"type": "gaussian", "mean": 0.0, "std": 0.01}
    n[last.name] = L.Convolution(n.drop9, num_output=last.outputs, kernel_size=1, weight_filler=gaussian, **learned)
    n.relu_conv10 = L.ReLU(n[last.name], in_place=True)
    n.pool10 = L.Pooling(n.relu_conv10, pool=P.Pooling.AVE, global_pooling=True)
    return n.pool10


def _fire(n: NetSpec, bottom: Top, name: str, squeezed: int, expanded: int, filler: dict[str, Any]) -> Top:
    """A 1 × 1 convolution, and one of 1 × 1 and one of 3 × 3 on top of it, side by side."""
    n[f"{name}/squeeze1x1"] = L.Convolution(bottom, num_output=squeezed, kernel_size=1, **filler)
    n[f"{name}/relu_squeeze1x1"] = L.ReLU(n[f"{name}/squeeze1x1"], in_place=True)
    sides = []
    for kind, shape in (("1x1", {"kernel_size": 1}), ("3x3", {"pad": 1, "kernel_size": 3})):
        expand = f"{name}/expand{kind}"
        n[expand] = L.Convolution(n[f"{name}/relu_squeeze1x1"], num_output=expanded, **shape, **filler)
        n[f"{name}/relu_expand{kind}"] = L.ReLU(n[expand], in_place=True)
        sides.append(n[f"{name}/relu_expand{kind}"])
    n[f"{name}/concat"] = L.Concat(*sides)
    return n[f"{name}/concat"]

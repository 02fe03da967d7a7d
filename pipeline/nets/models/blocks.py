"""What templates of several families are made of."""

from typing import Any

from caffe import layers as L
from caffe.net_spec import NetSpec, Top

STATISTICS = [{"lr_mult": 0, "decay_mult": 0}] * 3
"""Mean, variance and their weight are not learned by gradient."""


def normalised(n: NetSpec, bottom: Top, names: tuple[str, str, str], in_place: bool = True, **convolution: Any) -> Top:
    """A convolution, the normalisation of its batch, and a scale and a shift for each channel, by these names.

    in_place     whether the normalisation is written over the convolution's top; the scale is written over what it reads
    convolution  its fields; it learns no bias unless they say so
    """
    convolved, norm, scale = names
    learned = {"param": [{"lr_mult": 1, "decay_mult": 1}], "weight_filler": {"type": "msra"}, "bias_term": False}
    n[convolved] = L.Convolution(bottom, **(learned | convolution))
    n[norm] = L.BatchNorm(n[convolved], in_place=in_place, param=STATISTICS)
    n[scale] = L.Scale(n[norm], in_place=True, bias_term=True, param=[{"lr_mult": 1, "decay_mult": 0}] * 2)
    return n[scale]

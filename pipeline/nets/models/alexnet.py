"""AlexNet (Krizhevsky et al. 2012) as BVLC trained it, and CaffeNet, BVLC's variant that pools before it normalises."""

from collections.abc import Callable
from typing import Any

from caffe import layers as L
from caffe import params as P
from caffe.net_spec import NetSpec, Top
from pipeline.nets.models.base import Last
from pipeline.nets.models.blocks import dropped, fillers, rates, rectified

LAST = "fc8"
CONVOLUTIONS: list[dict[str, int]] = [
    {"num_output": 96, "kernel_size": 11, "stride": 4},
    {"num_output": 256, "pad": 2, "kernel_size": 5, "group": 2},
    {"num_output": 384, "pad": 1, "kernel_size": 3},
    {"num_output": 384, "pad": 1, "kernel_size": 3, "group": 2},
    {"num_output": 256, "pad": 1, "kernel_size": 3, "group": 2},
]


def alexnet(n: NetSpec, last: Last) -> None:
    """Normalisation before pooling, and small biases."""
    _body(n, last, pool_first=False, bias=0.1)


def caffenet(n: NetSpec, last: Last) -> None:
    """Pooling before normalisation, which makes less work, and biases of 1."""
    _body(n, last, pool_first=True, bias=1)


def convolutions(n: NetSpec, pool_first: bool, more: Callable[[int], dict[str, Any]]) -> Top:
    """Five convolutions; the first two are pooled and normalised, or the reverse, and the last is pooled.

    more  further fields of each convolution, by its number
    """
    window = {"pool": P.Pooling.MAX, "kernel_size": 3, "stride": 2}
    top = n.data
    for number, shape in enumerate(CONVOLUTIONS, 1):
        top = rectified(n, f"conv{number}", f"relu{number}", L.Convolution(top, **(shape | more(number))))
        if number <= 2:
            for kind in ("pool", "norm") if pool_first else ("norm", "pool"):
                pool = kind == "pool"
                top = L.Pooling(top, **window) if pool else L.LRN(top, local_size=5, alpha=0.0001, beta=0.75)
                n[f"{kind}{number}"] = top
    n.pool5 = L.Pooling(top, **window)
    return n.pool5


def _body(n: NetSpec, last: Last, pool_first: bool, bias: float) -> None:
    """Five convolutions, three fully connected layers with dropout between them."""

    def learned(number: int) -> dict[str, Any]:
        return {"param": rates(), **fillers("gaussian", bias if number in (2, 4, 5) else 0, std=0.01)}

    top = convolutions(n, pool_first, learned)
    for number in (6, 7):
        top = dropped(n, number, L.InnerProduct(top, num_output=4096, param=rates(), **fillers("gaussian", bias, std=0.005)))
    n[last.name] = L.InnerProduct(top, num_output=last.outputs, param=rates(last.lr_mult), **fillers("gaussian", 0, std=0.01))

"""AlexNet (Krizhevsky et al. 2012) as BVLC trained it, and CaffeNet, BVLC's variant that pools before it normalises."""

from typing import Any

from caffe import layers as L
from caffe import params as P
from caffe.net_spec import NetSpec, Top
from pipeline.nets.models.base import Last

LAST = "fc8"


def alexnet(n: NetSpec, last: Last) -> Top:
    """Normalisation before pooling, and small biases."""
    return _body(n, last, pool_first=False, bias=0.1)


def caffenet(n: NetSpec, last: Last) -> Top:
    """Pooling before normalisation, which makes less work, and biases of 1."""
    return _body(n, last, pool_first=True, bias=1)


def _learned(std: float, bias: float, lr_mult: float = 1.0) -> dict[str, Any]:
    return {
        "param": [{"lr_mult": lr_mult, "decay_mult": 1}, {"lr_mult": 2 * lr_mult, "decay_mult": 0}],
        "weight_filler": {"type": "gaussian", "std": std},
        "bias_filler": {"type": "constant", "value": bias},
    }


def _body(n: NetSpec, last: Last, pool_first: bool, bias: float) -> Top:
    """Five convolutions, three fully connected layers with dropout between them."""
    window = {"pool": P.Pooling.MAX, "kernel_size": 3, "stride": 2}

    def pooled_and_normalised(top: Top, number: int) -> Top:
        for kind in ("pool", "norm") if pool_first else ("norm", "pool"):
            pool = kind == "pool"
            top = L.Pooling(top, **window) if pool else L.LRN(top, local_size=5, alpha=0.0001, beta=0.75)
            n[f"{kind}{number}"] = top
        return top

    n.conv1 = L.Convolution(n.data, num_output=96, kernel_size=11, stride=4, **_learned(0.01, 0))
    n.relu1 = L.ReLU(n.conv1, in_place=True)
    top = pooled_and_normalised(n.relu1, 1)
    n.conv2 = L.Convolution(top, num_output=256, pad=2, kernel_size=5, group=2, **_learned(0.01, bias))
    n.relu2 = L.ReLU(n.conv2, in_place=True)
    top = pooled_and_normalised(n.relu2, 2)
    n.conv3 = L.Convolution(top, num_output=384, pad=1, kernel_size=3, **_learned(0.01, 0))
    n.relu3 = L.ReLU(n.conv3, in_place=True)
    n.conv4 = L.Convolution(n.relu3, num_output=384, pad=1, kernel_size=3, group=2, **_learned(0.01, bias))
    n.relu4 = L.ReLU(n.conv4, in_place=True)
    n.conv5 = L.Convolution(n.relu4, num_output=256, pad=1, kernel_size=3, group=2, **_learned(0.01, bias))
    n.relu5 = L.ReLU(n.conv5, in_place=True)
    n.pool5 = L.Pooling(n.relu5, **window)
    n.fc6 = L.InnerProduct(n.pool5, num_output=4096, **_learned(0.005, bias))
    n.relu6 = L.ReLU(n.fc6, in_place=True)
    n.drop6 = L.Dropout(n.relu6, dropout_ratio=0.5, in_place=True)
    n.fc7 = L.InnerProduct(n.drop6, num_output=4096, **_learned(0.005, bias))
    n.relu7 = L.ReLU(n.fc7, in_place=True)
    n.drop7 = L.Dropout(n.relu7, dropout_ratio=0.5, in_place=True)
    n[last.name] = L.InnerProduct(n.drop7, num_output=last.outputs, **_learned(0.01, 0, last.lr_mult))
    return n[last.name]

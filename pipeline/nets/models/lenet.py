"""LeNet as Caffe's MNIST example has it (after LeCun et al. 1998), for small gray images such as 28×28 digits."""

from typing import Any

from caffe import layers as L
from caffe import params as P
from caffe.net_spec import NetSpec
from pipeline.nets.models.base import Last
from pipeline.nets.models.blocks import fillers, rates

LAST = "ip2"


def learned(lr_mult: float = 1.0) -> dict[str, Any]:
    """Learning rates and fillers of a layer's weights and biases."""
    return {"param": rates(lr_mult, None), **fillers("xavier")}


def body(n: NetSpec, last: Last) -> None:
    """Two convolutions with pooling, a hidden layer of 500, the classifier."""
    n.conv1 = L.Convolution(n.data, num_output=20, kernel_size=5, stride=1, **learned())
    n.pool1 = L.Pooling(n.conv1, pool=P.Pooling.MAX, kernel_size=2, stride=2)
    n.conv2 = L.Convolution(n.pool1, num_output=50, kernel_size=5, stride=1, **learned())
    n.pool2 = L.Pooling(n.conv2, pool=P.Pooling.MAX, kernel_size=2, stride=2)
    n.ip1 = L.InnerProduct(n.pool2, num_output=500, **learned())
    n.relu1 = L.ReLU(n.ip1, in_place=True)
    n[last.name] = L.InnerProduct(n.relu1, num_output=last.outputs, **learned(last.lr_mult))

"""Caffe's larger net for CIFAR-10: cifar10_quick's convolutions with normalisation within channels, and one classifier."""

from caffe import layers as L
from caffe import params as P
from caffe.net_spec import NetSpec
from pipeline.nets.models.base import Last
from pipeline.nets.models.blocks import fillers, rates

LAST = "ip1"


def body(n: NetSpec, last: Last) -> None:
    """Three convolutions, normalised within channels after the first two; the classifier is held small by its decay."""
    window = {"kernel_size": 3, "stride": 2}
    shape = {"pad": 2, "kernel_size": 5, "stride": 1}
    norm = {"local_size": 3, "alpha": 5e-05, "beta": 0.75, "norm_region": P.LRN.WITHIN_CHANNEL}
    n.conv1 = L.Convolution(n.data, num_output=32, **shape, param=rates(decay_mult=None), **fillers("gaussian", std=0.0001))
    n.pool1 = L.Pooling(n.conv1, pool=P.Pooling.MAX, **window)
    n.relu1 = L.ReLU(n.pool1, in_place=True)
    n.norm1 = L.LRN(n.relu1, **norm)
    n.conv2 = L.Convolution(n.norm1, num_output=32, **shape, param=rates(decay_mult=None), **fillers("gaussian", std=0.01))
    n.relu2 = L.ReLU(n.conv2, in_place=True)
    n.pool2 = L.Pooling(n.relu2, pool=P.Pooling.AVE, **window)
    n.norm2 = L.LRN(n.pool2, **norm)
    n.conv3 = L.Convolution(n.norm2, num_output=64, **shape, **fillers("gaussian", std=0.01))
    n.relu3 = L.ReLU(n.conv3, in_place=True)
    n.pool3 = L.Pooling(n.relu3, pool=P.Pooling.AVE, **window)
    learned = {"param": rates(last.lr_mult, 250), **fillers("gaussian", std=0.01)}
    n[last.name] = L.InnerProduct(n.pool3, num_output=last.outputs, **learned)

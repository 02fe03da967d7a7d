"""cifar10_quick, the small net of Caffe's CIFAR-10 example (after Krizhevsky's cuda-convnet), for 32×32 colour images."""

from caffe import layers as L
from caffe import params as P
from caffe.net_spec import NetSpec
from pipeline.nets.models.base import Last
from pipeline.nets.models.blocks import fillers, rates

LAST = "ip2"


def body(n: NetSpec, last: Last) -> None:
    """Three convolutions, the first with max pooling before its ReLU and the others with average pooling after."""
    window = {"kernel_size": 3, "stride": 2}
    shape = {"pad": 2, "kernel_size": 5, "stride": 1, "param": rates(decay_mult=None)}
    n.conv1 = L.Convolution(n.data, num_output=32, **shape, **fillers("gaussian", std=0.0001))
    n.pool1 = L.Pooling(n.conv1, pool=P.Pooling.MAX, **window)
    n.relu1 = L.ReLU(n.pool1, in_place=True)
    n.conv2 = L.Convolution(n.relu1, num_output=32, **shape, **fillers("gaussian", std=0.01))
    n.relu2 = L.ReLU(n.conv2, in_place=True)
    n.pool2 = L.Pooling(n.relu2, pool=P.Pooling.AVE, **window)
    n.conv3 = L.Convolution(n.pool2, num_output=64, **shape, **fillers("gaussian", std=0.01))
    n.relu3 = L.ReLU(n.conv3, in_place=True)
    n.pool3 = L.Pooling(n.relu3, pool=P.Pooling.AVE, **window)
    n.ip1 = L.InnerProduct(n.pool3, num_output=64, param=rates(decay_mult=None), **fillers("gaussian", std=0.1))
    n[last.name] = L.InnerProduct(n.ip1, num_output=last.outputs, param=rates(last.lr_mult, None), **fillers("gaussian", std=0.1))

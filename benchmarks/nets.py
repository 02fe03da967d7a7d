"""The nets that the benchmarks measure: the project's templates at the batch size and the image size of the measurement."""

from dataclasses import dataclass

import caffe
from caffe import layers as L
from caffe.proto import caffe_pb2
from pipeline.nets import models
from pipeline.nets.models import Last

STD = 50.0
"""Standard deviation of the Gaussian images, near that of pixels from 0 to 255."""


@dataclass(frozen=True)
class Measured:
    """A template's batch size, image shape (channels, height, width) and number of classes."""

    batch: int
    image: tuple[int, int, int]
    classes: int = 1000

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of a batch."""
        return (self.batch, *self.image)


NETS = {
    "lenet": Measured(64, (1, 28, 28), 10),
    "cifar10_quick": Measured(100, (3, 32, 32), 10),
    "caffenet": Measured(64, (3, 227, 227)),
    "googlenet": Measured(32, (3, 224, 224)),
    "resnet50": Measured(16, (3, 224, 224)),
    "squeezenet": Measured(64, (3, 227, 227)),
    "mobilenet": Measured(32, (3, 224, 224)),
    "vgg16": Measured(8, (3, 224, 224)),
}


def training(name: str, measured: Measured, dropout: bool = True) -> caffe_pb2.NetParameter:
    """The net from its inputs `data` and `label` to its losses, those of auxiliary heads included.

    dropout  False: without Dropout, so that results can be compared
    """
    template = models.template(name)
    built = template.built(Last(template.last, measured.classes))
    n = caffe.NetSpec()
    n.data, n.label = L.Input(shape=[{"dim": measured.shape}, {"dim": measured.shape[:1]}], ntop=2)
    net = n.to_proto()
    net.name = name
    net.layer.extend(layer for layer in built.layers if dropout or layer.type != "Dropout")
    for number, (scores, weight) in enumerate(built.heads, 1):
        net.layer.add(
            name=f"loss{number}", type="SoftmaxWithLoss", bottom=[scores, "label"], top=[f"loss{number}"], loss_weight=[weight]
        )
    return net


def forward(name: str, measured: Measured) -> caffe_pb2.NetParameter:
    """The net from an input to its scores, as it is deployed: without auxiliary heads, with stored statistics."""
    template = models.template(name)
    built = template.built(Last(template.last, measured.classes), deploy=True)
    for layer in built.layers:
        caffe.layer_type(layer.type, f'layer "{layer.name}"').choose_statistics(layer, stored=True)
    n = caffe.NetSpec()
    n.data = L.Input(shape={"dim": measured.shape})
    net = n.to_proto()
    net.name = name
    net.layer.extend(built.layers)
    return net


def without_fillers(net: caffe_pb2.NetParameter) -> caffe_pb2.NetParameter:
    """Leave out the weights' fillers, which take seconds in large nets: for nets whose weights will be copied."""
    for layer in net.layer:
        for param in ("convolution_param", "inner_product_param"):
            if layer.HasField(param):
                getattr(layer, param).ClearField("weight_filler")
    return net

"""Network templates, one module a family, written with caffe.NetSpec; TEMPLATES finds them by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import caffe
from pipeline.models import alexnet, caffenet, cifar10_full, cifar10_quick, lenet, mobilenet, resnet, squeezenet, vgg


@dataclass(frozen=True)
class Last:
    """The classifier at the end of a net.

    name     its layer and blob; a name that pretrained weights do not have is learned from scratch
    outputs  number of classes
    lr_mult  multiplies the learning rates that the template gives it
    """

    name: str
    outputs: int
    lr_mult: float = 1.0


@dataclass(frozen=True)
class Template:
    """A published net.

    body        body(n, last) adds the layers from `n.data` to the classifier's scores, which it returns
    last        the classifier's name in the published net
    color       what it is made for; channels follow the dataset all the same
    crop_size   side of the square that training crops; 0 for the whole image
    mirror      whether training mirrors at random
    scale       what pixel values are multiplied by
    mean        whether the mean image is subtracted
    batch_size  images in a training batch
    """

    body: Callable[[caffe.NetSpec, Last], object]
    last: str
    crop_size: int = 0
    mirror: bool = False
    scale: float = 1.0
    mean: bool = True
    batch_size: int = 64

    def blobs(self, last: str) -> list[str]:
        """The blobs of which each image has its own values, with the classifier called `last`."""
        n = caffe.NetSpec()
        n.data = caffe.layers.Input()
        self.body(n, Last(last, 1))
        return list(dict.fromkeys(top for layer in n.to_proto().layer for top in layer.top))


_IMAGENET = {"crop_size": 224, "mirror": True}

TEMPLATES = {
    "lenet": Template(lenet.body, lenet.LAST, scale=1 / 256, mean=False, batch_size=64),
    "cifar10_quick": Template(cifar10_quick.body, cifar10_quick.LAST, batch_size=100),
    "cifar10_full": Template(cifar10_full.body, cifar10_full.LAST, batch_size=100),
    "alexnet": Template(alexnet.body, alexnet.LAST, crop_size=227, mirror=True, batch_size=256),
    "caffenet": Template(caffenet.body, caffenet.LAST, crop_size=227, mirror=True, batch_size=256),
    **{f"vgg{layers}": Template(vgg.body(layers), vgg.LAST, **_IMAGENET, batch_size=32) for layers in vgg.CONVOLUTIONS},
    **{f"resnet{layers}": Template(resnet.body(layers), resnet.LAST, **_IMAGENET, batch_size=32) for layers in resnet.BLOCKS},
    "squeezenet": Template(squeezenet.body, squeezenet.LAST, crop_size=227, mirror=True, batch_size=32),
    "mobilenet": Template(mobilenet.v1, mobilenet.LAST, **_IMAGENET, scale=0.017, batch_size=64),
    "mobilenet_v2": Template(mobilenet.v2, mobilenet.LAST, **_IMAGENET, scale=0.017, batch_size=64),
}

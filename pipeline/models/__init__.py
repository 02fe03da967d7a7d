"""Network templates, one module a family, written with caffe.NetSpec; TEMPLATES finds them by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import caffe
from pipeline.models import caffenet, cifar10_quick, lenet


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


TEMPLATES = {
    "lenet": Template(lenet.body, lenet.LAST, scale=1 / 256, mean=False, batch_size=64),
    "cifar10_quick": Template(cifar10_quick.body, cifar10_quick.LAST, batch_size=100),
    "caffenet": Template(caffenet.body, caffenet.LAST, crop_size=227, mirror=True, batch_size=256),
}

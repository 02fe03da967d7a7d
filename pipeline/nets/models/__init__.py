"""Network templates by name, TEMPLATES, one module per family, written with caffe.NetSpec; `template` also reads a user's net."""

import functools
from pathlib import Path
from typing import Any

import caffe
from pipeline.errors import InputError
from pipeline.nets.models import (
    adapted,
    alexnet,
    cifar10_full,
    cifar10_quick,
    googlenet,
    lenet,
    mobilenet,
    resnet,
    siamese,
    squeezenet,
    vgg,
)
from pipeline.nets.models.base import Built, Last, Published, Template, unfit
from pipeline.nets.models.siamese import SECOND

__all__ = ["SECOND", "TEMPLATES", "Built", "Last", "Template", "is_file", "template", "unfit"]

_IMAGENET: dict[str, Any] = {"crop_size": 224, "mirror": True}

TEMPLATES = {
    "lenet": Published(lenet.LAST, lenet.body, scale=1 / 256, mean=False, batch_size=64),
    "mnist_siamese": Published(siamese.LAST, siamese.body, pairs=True, scale=1 / 256, mean=False, batch_size=64),
    "cifar10_quick": Published(cifar10_quick.LAST, cifar10_quick.body, batch_size=100),
    "cifar10_full": Published(cifar10_full.LAST, cifar10_full.body, batch_size=100),
    "alexnet": Published(alexnet.LAST, alexnet.alexnet, crop_size=227, mirror=True, batch_size=256),
    "caffenet": Published(alexnet.LAST, alexnet.caffenet, crop_size=227, mirror=True, batch_size=256),
    "googlenet": Published(
        googlenet.LAST, googlenet.body, googlenet.HELPERS, **_IMAGENET, mean_values=(104, 117, 123), batch_size=32
    ),
    **{f"vgg{layers}": Published(vgg.LAST, vgg.body(layers), **_IMAGENET, batch_size=32) for layers in vgg.CONVOLUTIONS},
    **{f"resnet{layers}": Published(resnet.LAST, resnet.body(layers), **_IMAGENET, batch_size=32) for layers in resnet.BLOCKS},
    "squeezenet": Published(squeezenet.LAST, squeezenet.body, crop_size=227, mirror=True, batch_size=32),
    "mobilenet": Published(mobilenet.LAST, mobilenet.v1, **_IMAGENET, scale=0.017, batch_size=64),
    "mobilenet_v2": Published(mobilenet.LAST, mobilenet.v2, **_IMAGENET, scale=0.017, batch_size=64),
}


def is_file(model: str) -> bool:
    """Whether a model is a prototxt's path, not a template's name."""
    return "/" in model or model.endswith((".prototxt", ".pbtxt", ".txt"))


@functools.cache
def template(model: str) -> Template:
    """The template of this name, or of a user's prototxt. Raises an error if there is none, or the prototxt cannot be adapted."""
    if is_file(model):
        return adapted.read(Path(model))
    if model not in TEMPLATES:
        raise InputError("model", f'"{model}"', f"there are {', '.join(TEMPLATES)}", caffe.nearest(model, TEMPLATES))
    return TEMPLATES[model]

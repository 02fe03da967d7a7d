"""Network templates, one module a family, written with caffe.NetSpec: TEMPLATES, by name; `template` also takes a user's net."""

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
from pipeline.nets.models.adapted import Adapted
from pipeline.nets.models.base import Built, Last, Template, unfit
from pipeline.nets.models.siamese import SECOND

__all__ = ["SECOND", "TEMPLATES", "Built", "Last", "Template", "is_file", "template", "unfit"]

_IMAGENET: dict[str, Any] = {"crop_size": 224, "mirror": True}

TEMPLATES = {
    "lenet": Template(lenet.body, lenet.LAST, scale=1 / 256, mean=False, batch_size=64),
    "mnist_siamese": Template(siamese.body, siamese.LAST, pairs=True, scale=1 / 256, mean=False, batch_size=64),
    "cifar10_quick": Template(cifar10_quick.body, cifar10_quick.LAST, batch_size=100),
    "cifar10_full": Template(cifar10_full.body, cifar10_full.LAST, batch_size=100),
    "alexnet": Template(alexnet.alexnet, alexnet.LAST, crop_size=227, mirror=True, batch_size=256),
    "caffenet": Template(alexnet.caffenet, alexnet.LAST, crop_size=227, mirror=True, batch_size=256),
    "googlenet": Template(
        googlenet.body, googlenet.LAST, googlenet.HELPERS, **_IMAGENET, mean_values=(104, 117, 123), batch_size=32
    ),
    **{f"vgg{layers}": Template(vgg.body(layers), vgg.LAST, **_IMAGENET, batch_size=32) for layers in vgg.CONVOLUTIONS},
    **{f"resnet{layers}": Template(resnet.body(layers), resnet.LAST, **_IMAGENET, batch_size=32) for layers in resnet.BLOCKS},
    "squeezenet": Template(squeezenet.body, squeezenet.LAST, crop_size=227, mirror=True, batch_size=32),
    "mobilenet": Template(mobilenet.v1, mobilenet.LAST, **_IMAGENET, scale=0.017, batch_size=64),
    "mobilenet_v2": Template(mobilenet.v2, mobilenet.LAST, **_IMAGENET, scale=0.017, batch_size=64),
}


def is_file(model: str) -> bool:
    """Whether a model is a prototxt's path, not a template's name."""
    return "/" in model or model.endswith((".prototxt", ".pbtxt", ".txt"))


@functools.cache
def template(model: str) -> Template | Adapted:
    """The template of that name, or a user's net. Raises an error where there is none, or the prototxt cannot be adapted."""
    if is_file(model):
        return adapted.read(Path(model))
    if model not in TEMPLATES:
        raise InputError("model", f'"{model}"', f"there are {', '.join(TEMPLATES)}", caffe.nearest(model, TEMPLATES))
    return TEMPLATES[model]

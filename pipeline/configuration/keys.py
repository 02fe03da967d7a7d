"""Questions about a config that checks, rules and steps share."""

from collections.abc import Iterable
from typing import Any

import caffe
from pipeline.nets import models
from pipeline.options.config import Source
from pipeline.options.dataset import Channels, ResizeOptions, ShardSize

KINDS = Source.kinds
"""Kinds of source: where images come from."""
ORIGINS = ("experiment", "file", "url")
"""Where weights come from."""
OF_IMAGES = tuple(key for model in (ShardSize, ResizeOptions, Channels) for key in model.model_fields)
"""Keys of a dataset that determine its images."""
OF_LISTS = ("split", "duplicates", "augmentation", "seed")
"""Keys of a dataset that determine how lists and databases are made of its images."""
EXPORTS = {
    "onnx": "model.onnx",
    "safetensors": "model.safetensors",
    "merged": "merged.caffemodel",
    "convolutional": "convolutional.caffemodel",
    "crop": "cropped.caffemodel",
    "average": "averaged.caffemodel",
}
"""The file that each key of an experiment's `export` asks for; a .caffemodel has its prototxt beside it."""


def exports(experiment: dict[str, Any]) -> list[str]:
    """The files that an experiment's `export` asks for, without the prototxts beside them."""
    return [file for key, file in EXPORTS.items() if experiment["export"].get(key)]


def kind_of(source: dict[str, Any]) -> str | None:
    """The kind of a dataset's source: the first of KINDS that it gives."""
    return next((kind for kind in KINDS if kind in source), None)


def origins(experiment: dict[str, Any]) -> list[dict[str, Any]]:
    """The weights that an experiment starts from, in the order in which they are copied; empty if it starts from scratch."""
    given = experiment.get("weights")
    if isinstance(given, list):
        return [mapping(item) for item in given]
    return [mapping(given)] if mapping(given) else []


def last_layer(experiment: dict[str, Any]) -> str:
    """The name of an experiment's classifier: its template's, with the dataset's name as suffix if it is renamed."""
    last = models.template(experiment["model"]).last
    return f"{last}_{experiment['dataset']}" if experiment["rename_last"] else last


def mapping(value: object) -> dict[str, Any]:
    """`value` if it is a mapping, else an empty one: the schema reports it."""
    return value if isinstance(value, dict) else {}


def mappings(value: object) -> dict[str, dict[str, Any]]:
    """`value`, in which an empty mapping replaces everything that is not a mapping."""
    return {name: mapping(inner) for name, inner in mapping(value).items()}


def unknown(name: str, known: Iterable[str]) -> list[str]:
    """An error if a name is not one of the known ones, with the most similar one."""
    if name in known:
        return []
    names = list(map(str, known))
    hint = caffe.nearest(name, names)
    return [f"{name!r} is not one of {', '.join(names)}" + (f"; {hint}" if hint else "")]

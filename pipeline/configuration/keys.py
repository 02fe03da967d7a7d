"""What a config's keys say: the parts of it that checks, rules and steps ask for alike."""

from collections.abc import Iterable
from typing import Any

import caffe
from pipeline.nets import models
from pipeline.options.dataset import Channels, ResizeOptions, ShardSize

KINDS = ("list", "folder", "published", "database", "dataset")
"""What images can come from."""
ORIGINS = ("experiment", "file", "url")
"""What weights can come from."""
OF_IMAGES = tuple(key for model in (ShardSize, ResizeOptions, Channels) for key in model.model_fields)
"""Keys of a dataset that say how its images are made."""
OF_LISTS = ("split", "duplicates", "augmentation", "seed")
"""Keys of a dataset that say how its lists and databases are made of its images."""
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
    """What a dataset's images come from, the first of KINDS that is given."""
    return next((kind for kind in KINDS if kind in source), None)


def origins(experiment: dict[str, Any]) -> list[dict[str, Any]]:
    """The weights that an experiment starts from, in the order in which they are copied; none where it starts from scratch."""
    given = experiment.get("weights")
    return [mapping(one) for one in given] if isinstance(given, list) else [given] if given and isinstance(given, dict) else []


def last_layer(experiment: dict[str, Any]) -> str:
    """The name of an experiment's classifier: its template's, or with the dataset's name behind it where it is renamed."""
    last = models.template(experiment["model"]).last
    return f"{last}_{experiment['dataset']}" if experiment["rename_last"] else last


def mapping(value: object) -> dict[str, Any]:
    """A mapping; an empty one for what is none, which the schema has found."""
    return value if isinstance(value, dict) else {}


def mappings(value: object) -> dict[str, dict[str, Any]]:
    """{name: mapping}, with an empty mapping for what is none."""
    return {name: mapping(inner) for name, inner in mapping(value).items()}


def unknown(name: str, known: Iterable[str]) -> list[str]:
    """What is wrong with a name that is none of the known ones."""
    if name in known:
        return []
    names = [str(one) for one in known]
    hint = caffe.nearest(name, names)
    return [f"{name!r} is not one of {', '.join(names)}" + (f"; {hint}" if hint else "")]

"""Mistakes in a config's datasets that its schema cannot express."""

import csv
from pathlib import Path
from typing import Any

from pipeline.configuration.keys import KINDS, OF_IMAGES, OF_LISTS, kind_of, mapping, unknown
from pipeline.formats.text import table_header
from pipeline.options.dataset import FetchOptions, Source
from pipeline.sources import folders

USED_WITH = {
    "copy": ("published",),
    "root": ("list",),
    "allow_outside_root": ("list",),
    "val_labels": ("folder",),
    **dict.fromkeys((*FetchOptions.model_fields, "sample", "seed", "columns"), Source.kinds),
}
"""Keys of a source, and the kinds of source that use them."""
DETERMINED_BY = {
    "published": (*OF_IMAGES, *OF_LISTS, "encode"),
    "database": tuple(key for key in (*OF_IMAGES, *OF_LISTS) if key != "channels"),  # it describes the records
    "dataset": OF_IMAGES,
}
"""Kinds of source, and the keys of a dataset that have no effect with them."""


def without_effect(name: str, dataset: dict[str, Any]) -> list[str]:
    """Keys without effect because of others, a line each; to be called before defaults are filled in."""
    source, split = mapping(dataset.get("source")), mapping(dataset.get("split"))
    found = []
    if kind := kind_of(source):
        needed = {key: kinds for key, kinds in USED_WITH.items() if key in source and kind not in kinds}
        found += [f"source.{key}: no effect without {' or '.join(kinds)}" for key, kinds in needed.items()]
        found += [f"{key}: no effect, it is the {kind}'s" for key in DETERMINED_BY.get(kind, ()) if key in dataset]
    if kind == "list" and source.get("allow_outside_root") and "root" not in source:
        found.append("source.allow_outside_root: no effect without root")
    by = split.get("by", "fraction")
    for key, way in (("val", "fraction"), ("folds", "fold"), ("fold", "fold")):
        if key in split and by != way:
            found.append(f"split.{key}: {split[key]} has no effect with by: {by}; remove it, or use by: {way}")
    return [f"datasets.{name}.{problem}" for problem in found]


def problems(name: str, datasets: dict[str, dict[str, Any]]) -> list[str]:
    """Mistakes in one dataset, a line each; defaults are filled in."""
    dataset = datasets[name]
    found = [f"source{problem}" for problem in _source_problems(dataset.get("source"), datasets)]
    found += [f"split{problem}" for problem in _split_problems(mapping(dataset.get("split")))]
    return [f"datasets.{name}.{problem}" for problem in found + _column_problems(dataset)]


def _source_problems(source: object, datasets: dict[str, Any]) -> list[str]:
    if not isinstance(source, dict):
        return []
    kinds = [kind for kind in KINDS if kind in source]
    if len(kinds) != 1:
        return [f": {' and '.join(kinds) or 'none'} given; it has one of {', '.join(KINDS[:-1])} and {KINDS[-1]}"]
    other = source.get("dataset")
    if not isinstance(other, str):
        return []
    if other not in datasets:
        return [f".dataset: {problem}" for problem in unknown(other, datasets)]
    if (kind := kind_of(mapping(datasets[other].get("source")))) not in (*Source.kinds, None):
        origin = "another dataset" if kind == "dataset" else kind
        return [f".dataset: {other!r} comes from {origin}; name a dataset with a list or a folder"]
    return []


def _split_problems(split: dict[str, Any]) -> list[str]:
    if split.get("by") != "fold":
        return []
    missing = [key for key in ("folds", "fold") if key not in split]
    if missing:
        return [f": {missing[0]} is missing; by: fold needs folds, their number, and fold, the one for validation, from 0"]
    if isinstance(split["folds"], int) and isinstance(split["fold"], int) and split["fold"] >= split["folds"]:
        return [f".fold: {split['fold']} is not one of 0 to {split['folds'] - 1}"]
    return []


def _column_problems(dataset: dict[str, Any]) -> list[str]:
    if mapping(dataset.get("split")).get("by") == "column" and known_splits(dataset) == {""}:
        source = dataset["source"]
        lacking = "no train/ and val/" if "folder" in source else "no column of splits"
        return [f"split.by: column, but {source.get('folder') or source['list']} has {lacking}; use by: fraction"]
    return []


def known_splits(dataset: dict[str, Any]) -> set[str] | None:
    """The splits of a dataset's images, {""} if they have none; None if only reading them can tell."""
    source = mapping(dataset.get("source"))
    folder, path = (Path(source[key]) if isinstance(source.get(key), str) else None for key in ("folder", "list"))
    if folder and folder.is_dir():
        return folders.splits(folder)
    if path is None or not path.is_file():
        return None
    if path.suffix.lower() in (".txt", ""):
        return {""}
    if not {".csv", ".tsv"} & set(path.suffixes):
        return None
    try:
        delimiter, header = table_header(path)
    except (OSError, EOFError):  # the shards step reports it
        return None
    if not header.strip():
        return None
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
    return None if mapping(source.get("columns")).get("split", "split") in names else {""}

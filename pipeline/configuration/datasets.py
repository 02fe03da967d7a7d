"""What is wrong with a config's datasets that no schema can say."""

import csv
from pathlib import Path
from typing import Any

from pipeline.configuration.keys import KINDS, OF_IMAGES, OF_LISTS, kind_of, mapping, unknown
from pipeline.formats.text import table_header
from pipeline.options.dataset import FetchOptions
from pipeline.sources import folders


def without_effect(name: str, dataset: dict[str, Any]) -> list[str]:
    """Keys that are given where what they say is settled by others; before defaults are filled in."""
    problems = []
    source, split = mapping(dataset.get("source")), mapping(dataset.get("split"))
    kind = kind_of(source)
    wanted: dict[str, tuple[str, ...]] = {
        "copy": ("published",),
        "root": ("list",),
        "allow_outside_root": ("list",),
        "val_labels": ("folder",),
    }
    wanted |= dict.fromkeys((*FetchOptions.model_fields, "sample", "seed", "columns"), ("list", "folder"))
    for key, kinds in wanted.items():
        if key in source and kind and kind not in kinds:
            problems.append(f"datasets.{name}.source.{key}: no effect without {' or '.join(kinds)}")
    if kind == "list" and source.get("allow_outside_root") and "root" not in source:
        problems.append(f"datasets.{name}.source.allow_outside_root: no effect without root")
    images: tuple[str, ...] = {"list": (), "folder": (), "dataset": OF_IMAGES}.get(kind, (*OF_IMAGES, *OF_LISTS))
    images = (*images, "encode") if kind == "published" else images
    for key in images:
        if key in dataset and (kind, key) != ("database", "channels"):  # what is said of records, not made of them
            problems.append(f"datasets.{name}.{key}: no effect, it is the {kind}'s")
    by = split.get("by", "fraction")
    for key, ways in (("val", ("fraction",)), ("folds", ("fold",)), ("fold", ("fold",))):
        if key in split and by not in ways:
            problems.append(
                f"datasets.{name}.split.{key}: {split[key]} has no effect with by: {by}; remove it, or use by: {ways[0]}"
            )
    return problems


def problems(name: str, datasets: dict[str, dict[str, Any]]) -> list[str]:
    """What is wrong with one dataset, in a line each; defaults are filled in."""
    dataset = datasets[name]
    found = _of_source(name, datasets) if isinstance(dataset.get("source"), dict) else []
    divided = _of_split(mapping(dataset.get("split"))) + _of_column(dataset)
    return [f"datasets.{name}.{key}{one}" for key, ones in (("source", found), ("split", divided)) for one in ones]


def _of_source(name: str, datasets: dict[str, Any]) -> list[str]:
    """What is wrong with where a dataset's images come from, each with the rest of its key before it."""
    source = datasets[name]["source"]
    kinds = [kind for kind in KINDS if kind in source]
    if len(kinds) != 1:
        return [f": {' and '.join(kinds) or 'none'} given; it has one of {', '.join(KINDS[:-1])} and {KINDS[-1]}"]
    other = source.get("dataset")
    if not isinstance(other, str):
        return []
    if other not in datasets:
        return [f".dataset: {problem}" for problem in unknown(other, datasets)]
    if (kind := kind_of(mapping(datasets[other].get("source")))) not in ("list", "folder", None):
        return [f".dataset: {other!r} comes from {'another dataset' if kind == 'dataset' else kind}; name one of images"]
    return []


def _of_split(split: dict[str, Any]) -> list[str]:
    """What is wrong with how a dataset is divided, each with the rest of its key before it."""
    if split.get("by") != "fold":
        return []
    missing = [key for key in ("folds", "fold") if key not in split]
    if missing:
        return [f": {missing[0]} is missing; by: fold wants folds, how many there are, and fold, the one for validation, from 0"]
    if isinstance(split["folds"], int) and isinstance(split["fold"], int) and split["fold"] >= split["folds"]:
        return [f".fold: {split['fold']} is not one of 0 to {split['folds'] - 1}"]
    return []


def _of_column(dataset: dict[str, Any]) -> list[str]:
    """What is wrong with images that are to be divided as their list or folder says, which does not say it."""
    if mapping(dataset.get("split")).get("by") == "column" and known_splits(dataset) == {""}:
        source = dataset["source"]
        lacking = "no train/ and val/" if "folder" in source else "no column of splits"
        return [f".by: column, but {source.get('folder') or source['list']} has {lacking}; use by: fraction"]
    return []


def known_splits(dataset: dict[str, Any]) -> set[str] | None:
    """The splits that a dataset's images have, {""} where they have none; None where that is not known before they are read."""
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
    except (OSError, EOFError):  # the shards step says what is wrong with it
        return None
    if not header.strip():
        return None
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
    return None if mapping(source.get("columns")).get("split", "split") in names else {""}

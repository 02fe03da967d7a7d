"""A dataset from records that are there: databases, their manifests, and the lists that other datasets get from their images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import caffe
from pipeline.files import written_whole
from pipeline.formats import lists as image_lists
from pipeline.formats.records import Batches, write_database


def write(parts: dict[str, Batches], names: list[str], target: Path, threads: int, channels: str = "BGR") -> dict[str, dict]:
    """Write lmdb/PART, lmdb/PART.manifest.json and lists/ below `target`, each whole; return the manifests.

    parts     the records of "train" and of "val"
    names     the classes' names by number
    channels  the order of their channels: BGR or RGB
    """
    manifests, labels, sizes = {}, {}, Counter()
    with written_whole(target / "lists") as lists:
        lists.mkdir()
        for part, batches in parts.items():
            entries: list[tuple[str, int]] = []
            with written_whole(target / f"lmdb/{part}.manifest.json") as manifest:
                manifests[part] = write_database(_noted(batches, entries), target / f"lmdb/{part}", len(names), threads, channels)
                manifest.write_text(json.dumps(manifests[part], indent=1) + "\n")
            image_lists.write_lines(lists / f"{part}.txt", [f"{key} {number}" for key, number in entries])
            labels[part] = [number for _, number in entries]
            sizes[tuple(manifests[part]["shape"][1:])] += len(entries)
        image_lists.write_lines(lists / "test.txt", [])
        image_lists.write_names(lists, names)
        image_lists.write_classes(lists, names, labels)
        image_lists.write_sizes(lists, sizes)
        image_lists.write_duplicates(lists, [])
    return manifests


def _noted(batches: Batches, entries: list[tuple[str, int]]) -> Iterator[list[tuple[bytes, bytes, bytes]]]:
    """The same batches; their keys and labels are added to `entries`."""
    for batch in batches:
        entries += [(key.decode(errors="replace"), caffe.parse_datum(value).label) for key, value, _ in batch]
        yield batch

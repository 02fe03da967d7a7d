"""A dataset from records that are there: databases, their manifests, and the lists that other datasets get from their images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from caffe.datum import parse
from pipeline import database, label
from pipeline.files import written_whole

Batches = Iterable[list[tuple[bytes, bytes, bytes]]]
"""Key, record and digest of both, in the order of keys, some at a time."""


def write(parts: dict[str, Batches], names: list[str], target: Path, threads: int, channels: str = "BGR") -> dict[str, dict]:
    """Write lmdb/PART, lmdb/PART.manifest.json and lists/ below `target`, each whole; return the manifests.

    parts     the records of "train" and of "val"
    names     the classes' names by number
    channels  the order of their channels: BGR or RGB
    """
    manifests, labels, sizes = {}, {}, Counter()
    options = database.Options(len(names), threads=threads, channels=channels)
    with written_whole(target / "lists") as lists:
        lists.mkdir()
        for part, batches in parts.items():
            entries: list[tuple[str, int]] = []
            with written_whole(target / f"lmdb/{part}.manifest.json") as manifest:
                manifests[part] = database.write(_noted(batches, entries), target / f"lmdb/{part}", options)
                manifest.write_text(json.dumps(manifests[part], indent=1) + "\n")
            label.write_lines(lists / f"{part}.txt", [f"{key} {number}" for key, number in entries])
            labels[part] = [number for _, number in entries]
            sizes[tuple(manifests[part]["shape"][1:])] += len(entries)
        label.write_lines(lists / "test.txt", [])
        label.write_names(lists, names)
        label.write_classes(lists, names, labels)
        label.write_sizes(lists, sizes)
        label.write_duplicates(lists, [])
    return manifests


def _noted(batches: Batches, entries: list[tuple[str, int]]) -> Iterator[list[tuple[bytes, bytes, bytes]]]:
    """The same batches; their keys and labels are added to `entries`."""
    for batch in batches:
        entries += [(key.decode(errors="replace"), parse(value).label) for key, value, _ in batch]
        yield batch

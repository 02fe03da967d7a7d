"""Write a dataset of existing records: databases, their manifests, and the same lists as for datasets of images."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import caffe
from pipeline.files import written_whole
from pipeline.formats.lists import write_list_folder
from pipeline.formats.records import Batches, Manifest, manifest_path, write_database, write_manifest


def write_dataset(
    parts: Mapping[str, Batches], names: list[str], target: Path, threads: int, channels: str
) -> dict[str, Manifest]:
    """Write lmdb/PART, lmdb/PART.manifest.json and lists/ below `target`, each whole; return the manifests.

    parts     the records of "train" and of "val"
    names     class names, by label
    channels  channel order of the records: BGR or RGB
    """
    manifests: dict[str, Manifest] = {}
    lists: dict[str, list[tuple[str, int]]] = {}
    sizes: Counter[tuple[int, int]] = Counter()
    for part, batches in parts.items():
        lists[part] = []
        with written_whole(manifest_path(target / "lmdb" / part)) as manifest:
            batches = _with_labels(batches, lists[part])
            manifests[part] = write_database(batches, target / f"lmdb/{part}", len(names), threads, channels)
            write_manifest(manifest, manifests[part])
        _, height, width = manifests[part]["shape"]
        sizes[height, width] += manifests[part]["images"]
    write_list_folder(target / "lists", lists, names, sizes)
    return manifests


def _with_labels(batches: Batches, entries: list[tuple[str, int]]) -> Batches:
    """The same batches; appends their keys and labels to `entries`."""
    for batch in batches:
        entries += [(key.decode(errors="replace"), caffe.parse_datum(value).label) for key, value, _ in batch]
        yield batch

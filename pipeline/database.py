"""Build an LMDB of Caffe's Datum records from an image list, and a manifest of what is in it.

Records are raw pixels, channels × height × width, uint8, BGR or gray; keys are `%08d_path`, as convert_imageset writes them.
The manifest (JSON: images, classes, shape, sha256 of all keys and records) is what later steps depend on: Snakemake does not see
a change inside a database.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import lmdb
import numpy as np
from tqdm import tqdm

from caffe.proto import caffe_pb2
from pipeline.command import run
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.images import read_image

BATCH = 1000
"""Records put in one transaction."""
MAP_SIZE = 1 << 28
"""Bytes that a database may have at first."""


@dataclass(frozen=True)
class Options:
    """How to build: the number of classes, BGR or gray, images decoded at once."""

    classes: int
    color: bool = True
    threads: int = 1


def read_image_list(path: Path, classes: int | None = None) -> list[tuple[str, int]]:
    """(path, label) of every line of a list in Caffe's form; labels are checked against the number of classes."""
    if not path.is_file():
        raise InputError(path, "no such image list", do="build it first, or correct its path")
    entries = []
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, 1):
        name, _, label = line.rstrip().rpartition(" ")
        if not name or not re.fullmatch("-?[0-9]+", label):
            raise InputError(f"{path}:{number}", f'"{line}"', "a path, a space and a label are wanted")
        if classes is not None and not 0 <= int(label) < classes:
            raise InputError(
                f"{path}:{number}",
                f"label {label}",
                f"there are {classes} classes (0–{classes - 1})",
                "Caffe's labels start from 0",
            )
        entries.append((name, int(label)))
    if not entries:
        raise InputError(path, "the list is empty")
    return entries


def read_labels(path: Path) -> list[str]:
    """The class names of a labels.txt, by number."""
    if not path.is_file():
        raise InputError(path, "no such file of class names", do="build it first, or correct its path")
    names = path.read_text(encoding="utf-8").splitlines()
    if not names:
        raise InputError(path, "no class names", "there is one a line")
    return names


def batches(source: Path, root: Path, options: Options) -> Iterator[list[tuple[bytes, bytes]]]:
    """Keys and records of a list, in its order, BATCH at a time; all images have the first one's size."""
    entries, shape = read_image_list(source, options.classes), None
    with ThreadPoolExecutor(options.threads) as pool:
        for start in range(0, len(entries), BATCH):
            chunk, batch = entries[start : start + BATCH], []
            images = pool.map(lambda entry: read_image(root / entry[0], options.color), chunk)
            for number, ((name, label), image) in enumerate(zip(chunk, images, strict=True), start):
                where = f"{source}:{number + 1}"
                if image is None:
                    raise InputError(
                        where, f"{root / name} cannot be read as an image", do="remove the line, or restore the file"
                    )
                pixels = image.transpose(2, 0, 1) if options.color else image[None]
                shape = shape or pixels.shape
                if pixels.shape != shape:
                    found = f"{name} is {pixels.shape[1]}×{pixels.shape[2]}"
                    raise InputError(where, found, f"the first image is {shape[1]}×{shape[2]}", "resize them alike first")
                batch.append((f"{number:08d}_{name}".encode(errors="surrogateescape"), record(pixels, label)))
            yield batch


def record(pixels: np.ndarray, label: int) -> bytes:
    """Pixels, channels × height × width, uint8, as a serialised Datum, with the fields that Caffe sets."""
    datum = caffe_pb2.Datum(
        channels=pixels.shape[0], height=pixels.shape[1], width=pixels.shape[2], data=pixels.tobytes(), label=label, encoded=False
    )
    return datum.SerializeToString()


def build(source: Path, root: Path, database: Path, options: Options) -> dict:
    """Write the images of the list `source`, found under `root`, to `database`, whole; return the manifest.

    What was written is read back and compared by hash before the database takes its name.
    """
    meant, count = hashlib.sha256(), 0
    with written_whole(database) as part:
        with closing(lmdb.open(str(part), map_size=MAP_SIZE, sync=False)) as environment:
            with tqdm(unit=" images", desc=database.name, disable=None) as bar:
                for batch in batches(source, root, options):
                    _put(environment, batch)
                    for key, value in batch:
                        meant.update(key + value)
                    count += len(batch)
                    bar.update(len(batch))
            environment.sync(True)
            written = hashlib.sha256()
            with environment.begin() as transaction:
                for key, value in transaction.cursor():
                    written.update(key + value)
            datum = caffe_pb2.Datum.FromString(value)
        if written.digest() != meant.digest():
            raise InputError(database, "what was read back is not what was written", do="check the disk, then build it again")
        shape = [datum.channels, datum.height, datum.width]
    return {"images": count, "classes": options.classes, "shape": shape, "sha256": meant.hexdigest()}


def _put(environment: lmdb.Environment, batch: list[tuple[bytes, bytes]]) -> None:
    """Put records in one transaction, in a map that is doubled as often as it is full."""
    while True:
        try:
            with environment.begin(write=True) as transaction:
                for key, value in batch:
                    transaction.put(key, value, append=True)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(environment.info()["map_size"] * 2)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path, help="train.txt or val.txt")
    parser.add_argument("root", type=Path, help="folder that the list's paths begin from")
    parser.add_argument("database", type=Path, help="the LMDB; replaced if it exists")
    parser.add_argument("--labels", type=Path, required=True, help="labels.txt")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--color", choices=["color", "gray"], default="color")
    parser.add_argument("--threads", type=int, default=1, help="images decoded at once (default: %(default)s)")
    a = parser.parse_args(argv)
    with written_whole(a.manifest) as part:
        options = Options(len(read_labels(a.labels)), a.color == "color", a.threads)
        manifest = build(a.list, a.root, a.database, options)
        part.write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"{a.database}: {manifest['images']} records of {'×'.join(map(str, manifest['shape']))}, {manifest['classes']} classes")


if __name__ == "__main__":
    run(main)

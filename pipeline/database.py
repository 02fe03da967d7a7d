"""Build an LMDB of Caffe's Datum records from an image list, and a manifest of what is in it.

Records are raw pixels, channels × height × width, uint8, BGR or gray; keys are `%08d_path`, as convert_imageset writes them.
The manifest (JSON: images, classes, shape, sha256 of all keys and records) is what later steps depend on: Snakemake does not see
a change inside a database.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import lmdb
import numpy as np
from tqdm import tqdm

from caffe.proto import caffe_pb2
from pipeline.command import run
from pipeline.errors import InputError
from pipeline.files import written_whole

BATCH = 1000
"""Records put in one transaction."""


def read_image_list(path: Path, classes: int | None = None) -> list[tuple[str, int]]:
    """(path, label) of every line of a list in Caffe's form; labels are checked against the number of classes."""
    if not path.exists():
        raise InputError(path, "no such image list", do="build it first, or correct its path")
    entries = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        name, _, label = line.rstrip().rpartition(" ")
        if not name or not label.lstrip("-").isdigit():
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
    if not path.exists():
        raise InputError(path, "no such file of class names")
    return path.read_text().splitlines()


def records(entries: list[tuple[str, int]], root: Path, color: bool, source: Path) -> Iterator[tuple[bytes, caffe_pb2.Datum]]:
    """Keys and records in the list's order; all images have the first one's size."""
    shape = None
    for number, (name, label) in enumerate(entries):
        image = cv2.imread(str(root / name), cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE)
        where = f"{source}:{number + 1}"
        if image is None:
            raise InputError(where, f"{root / name} cannot be read as an image", do="remove the line, or restore the file")
        pixels = image.transpose(2, 0, 1) if color else image[None]
        shape = shape or pixels.shape
        if pixels.shape != shape:
            raise InputError(where, f"{name} has shape {pixels.shape}", f"the first image has {shape}", "resize them alike first")
        datum = caffe_pb2.Datum(
            channels=shape[0], height=shape[1], width=shape[2], label=label, data=np.ascontiguousarray(pixels).tobytes()
        )
        yield f"{number:08d}_{name}".encode(), datum


def build(source: Path, root: Path, database: Path, color: bool, labels: Path) -> dict:
    """Write the images of the list `source`, found under `root`, to `database`, whole; return the manifest.

    What was written is read back and compared by hash before the database takes its name.
    """
    classes = len(read_labels(labels))
    entries = read_image_list(source, classes)
    digest = hashlib.sha256()
    with written_whole(database) as part:
        environment = lmdb.open(str(part), map_size=1 << 28, sync=False)
        pending: list[tuple[bytes, bytes]] = []
        shape: list[int] = []
        for key, datum in tqdm(
            records(entries, root, color, source), total=len(entries), unit=" images", desc=database.name, disable=None
        ):
            shape = [datum.channels, datum.height, datum.width]
            pending.append((key, datum.SerializeToString()))
            digest.update(key + pending[-1][1])
            if len(pending) == BATCH:
                _put(environment, pending)
                pending = []
        _put(environment, pending)
        environment.sync(True)
        written = hashlib.sha256()
        with environment.begin() as transaction:
            for key, value in transaction.cursor():
                written.update(key + value)
        environment.close()
        if written.digest() != digest.digest():
            raise InputError(database, "what was read back is not what was written", do="check the disk, then build it again")
        (part / "lock.mdb").unlink(missing_ok=True)
    return {"images": len(entries), "classes": classes, "shape": shape, "sha256": digest.hexdigest()}


def _put(environment: lmdb.Environment, pending: list[tuple[bytes, bytes]]) -> None:
    """Put records in one transaction, in a map that is doubled as often as it is full."""
    while True:
        try:
            with environment.begin(write=True) as transaction:
                for key, value in pending:
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
    a = parser.parse_args(argv)
    with written_whole(a.manifest) as part:
        manifest = build(a.list, a.root, a.database, a.color == "color", a.labels)
        part.write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"{a.database}: {manifest['images']} records of {'×'.join(map(str, manifest['shape']))}, {manifest['classes']} classes")


if __name__ == "__main__":
    run(main)

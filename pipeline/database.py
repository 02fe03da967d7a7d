"""Build an LMDB of Caffe's Datum records from an image list, and a manifest of what is in it.

Records are raw pixels, channels × height × width, uint8, BGR or gray, or PNG or JPEG files; keys are `%08d_path`. Both are as
convert_imageset writes them; channels may be RGB instead, as those of CIFAR's own databases. Changed copies of the images follow
them, all of the first, then all of the second: an epoch each. The manifest (JSON: images, classes, shape, the sha256 of all keys'
and records' digests, and channels where they are RGB) is what later steps depend on: Snakemake sees no change inside a database.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import lmdb
import numpy as np

from caffe.datum import parse, pixels_of
from caffe.proto import caffe_pb2
from pipeline.augmentation import changed, parsed
from pipeline.command import run
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.images import Files, Resized, below
from pipeline.progress import progress
from pipeline.roots import Root

BATCH = 32
"""Records put in one transaction."""
LONGEST_NAME = 511 - len("000000000000_")
"""Bytes of a path: LMDB's keys have 511, and one begins with the image's number, of 12 digits at most."""
MAP_SIZE = 1 << 28
"""Bytes that a database may have at first."""


@dataclass(frozen=True)
class Options:
    """How to build.

    classes       their number; labels are below it
    color         BGR or gray
    threads       images worked on at once
    encode        "raw" pixels, or files: "png", or "jpg" (lossy, of OpenCV's quality, 95)
    copies        changed copies of each image
    augmentation  how those are changed
    seed          what the changes are drawn by
    channels      the records' order: BGR or RGB
    """

    classes: int
    color: bool = True
    threads: int = 1
    encode: str = "raw"
    copies: int = 0
    augmentation: caffe_pb2.AugmentationParameter | None = None
    seed: int = 1
    channels: str = "BGR"


def read_image_list(path: Path, classes: int | None = None) -> list[tuple[str, int]]:
    """(path, label) of every line of a list in Caffe's form; labels are checked against the number of classes."""
    return list(entries_of(path, classes))


def entries_of(path: Path, classes: int | None = None, root: Root | None = None) -> Iterator[tuple[str, int]]:
    """`read_image_list`, a line after the other; a path that leads out of `root`, where it is given, is an error."""
    if not path.is_file():
        raise InputError(path, "no such image list", do="build it first, or correct its path")
    number = 0
    for number, line in enumerate(_lines(path), 1):
        name, _, label = line.rstrip().rpartition(" ")
        if not name or not re.fullmatch("-?[0-9]+", label):
            raise InputError(f"{path}:{number}", f'"{line.rstrip()}"', "a path, a space and a label are wanted")
        if classes is not None and not 0 <= int(label) < classes:
            raise InputError(
                f"{path}:{number}",
                f"label {label}",
                f"there are {classes} classes (0–{classes - 1})",
                "Caffe's labels start from 0",
            )
        if root is not None:
            root.path_of(name, f"{path}:{number}", "correct the line, or give a folder that has all of the list's files")
        yield name, int(label)
    if not number:
        do = "name some in the source's split; where it names none for val, those for testing are taken for it"
        raise InputError(path, "the list is empty", do=do if path.name == "test.txt" else "")


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text, ends of line and all; names that are not UTF-8 are kept."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        yield from file


def read_labels(path: Path) -> list[str]:
    """The class names of a labels.txt, by number."""
    if not path.is_file():
        raise InputError(path, "no such file of class names", do="build it first, or correct its path")
    names = path.read_text(encoding="utf-8").splitlines()
    if not names:
        raise InputError(path, "no class names", "there is one a line")
    return names


def records(source: Path, images: Resized | Files, options: Options) -> Iterator[list[tuple[bytes, bytes | memoryview, bytes]]]:
    """Key, record and the digest of both for every line of a list, in its order, BATCH at a time; all of the first one's size.

    Records are good until the next batch is asked for.
    """
    first, _ = next(entries_of(source, options.classes))
    _check(source, images, options)
    first = images[first]
    shape = None if first is None else first.shape
    # Two batches at once: the one that is put and the one that is made.
    room = np.empty((2, BATCH, 64 + first.size if first is not None and options.encode == "raw" else 0), np.uint8)

    def one(entry: tuple[int, tuple[int, int, str, int]]) -> tuple[bytes, bytes | memoryview, bytes]:
        number, (copy, line, name, label) = entry
        where, image = f"{source}:{line}", images[name]
        if image is None:
            raise InputError(where, f"{images.root / name} cannot be read as an image", do="remove the line, or restore the file")
        if shape and image.shape != shape:
            found = f"{name} is {'×'.join(map(str, image.shape))}"
            raise InputError(where, found, f"the first image is {'×'.join(map(str, shape))}", "resize them alike first")
        if copy:
            image = changed(image, options.augmentation, (options.seed, number))
        if options.channels == "RGB" and image.ndim == 3:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        key = f"{number:08d}_{name}".encode(errors="surrogateescape")
        value = record(image, label, options.encode, room[number // BATCH % 2, number % BATCH])
        return key, value, digest(key, value)

    entries = enumerate(
        (copy, line, *entry)
        for copy in range(1 + options.copies)
        for line, entry in enumerate(entries_of(source, options.classes), 1)
    )
    with ThreadPoolExecutor(options.threads) as pool:
        following = pool.map(one, list(itertools.islice(entries, BATCH)))
        while batch := list(following):
            following = pool.map(one, list(itertools.islice(entries, BATCH)))  # made while this one is put
            yield batch


def _check(source: Path, images: Resized | Files, options: Options) -> None:
    """Look at every line of a list, so that one that is wrong is named before hours of work."""
    root = Root(images.root) if isinstance(images, Files) else None
    for line, (name, _) in enumerate(entries_of(source, options.classes, root), 1):
        size = len(name.encode(errors="surrogateescape"))
        if size > LONGEST_NAME:
            expected = f"LMDB's keys, NUMBER_PATH, have room for {LONGEST_NAME}"
            raise InputError(f"{source}:{line}", f"a path of {size} bytes", expected, "give the file a shorter name")


def record(image: np.ndarray, label: int, encode: str = "raw", room: np.ndarray | None = None) -> bytes | memoryview:
    """Pixels, uint8, height × width × 3 (BGR) or height × width, as a serialised Datum, with the fields that Caffe sets.

    room  bytes that a raw record may be put into; without them, or where they are too few, it gets its own

    A raw message is put together around the pixels, which it would copy twice: its fields stand in the order of their numbers.
    """
    if encode != "raw":
        _, content = cv2.imencode(f".{encode}", image)
        return caffe_pb2.Datum(data=content.tobytes(), label=label, encoded=True).SerializeToString()
    shape = (1 if image.ndim == 2 else image.shape[2], *image.shape[:2])
    before, after = _before(*shape), _after(label)
    end = len(before) + image.size
    size = end + len(after)
    if room is None or room.size < size:
        room = np.empty(size, np.uint8)
    room[: len(before)], room[end:size] = before, after
    planes = room[len(before) : end].reshape(shape)
    if image.ndim == 3:
        cv2.split(image, list(planes))
    else:
        planes[0] = image
    return room[:size].data


@functools.cache
def _before(channels: int, height: int, width: int) -> np.ndarray:
    """What stands before the pixels: the shape, the field's number, and that a length follows."""
    shape = caffe_pb2.Datum(channels=channels, height=height, width=width).SerializeToString()
    field = caffe_pb2.Datum.DATA_FIELD_NUMBER << 3 | 2
    return np.frombuffer(bytes([*shape, field, *_varint(channels * height * width)]), np.uint8)


@functools.cache
def _after(label: int) -> np.ndarray:
    """What stands behind the pixels."""
    return np.frombuffer(caffe_pb2.Datum(label=label, encoded=False).SerializeToString(), np.uint8)


def _varint(value: int) -> list[int]:
    """A number as Protocol Buffers write it: seven bits a byte, the lowest first."""
    digits = []
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return [*digits, value]


def digest(key: bytes, value: bytes) -> bytes:
    """The SHA-256 of a key and its record."""
    both = hashlib.sha256(key)
    both.update(value)
    return both.digest()


def build(source: Path, images: Resized | Files, database: Path, options: Options) -> dict:
    """Write the images of the list `source` to `database`, whole; return the manifest."""
    with _without_fused_additions(options.copies > 0):
        return write(records(source, images, options), database, options)


@contextmanager
def _without_fused_additions(wanted: bool) -> Iterator[None]:
    """Let OpenCV compute without AVX2 in the block, in all threads: else its affine warps round some pixels by the processor."""
    before = cv2.useOptimized()
    cv2.setUseOptimized(before and not wanted)
    try:
        yield
    finally:
        cv2.setUseOptimized(before)


def write(batches: Iterable[list[tuple[bytes, bytes, bytes]]], database: Path, options: Options) -> dict:
    """Write batches of key, record and digest, in the order of keys, to `database`, whole; return the manifest.

    What was written is read back and compared by hash before the database takes its name.
    """
    meant, count = hashlib.sha256(), 0
    with written_whole(database) as part:
        with closing(lmdb.open(str(part), map_size=MAP_SIZE, sync=False)) as environment:
            with progress(desc=database.name) as bar:
                for batch in batches:
                    _put(environment, batch)
                    meant.update(b"".join(one for _, _, one in batch))
                    count += len(batch)
                    bar.update(len(batch))
            with ThreadPoolExecutor(1) as disk:  # its memory is read back while it goes to the disk
                on_disk = disk.submit(environment.sync, True)
                shapes, written = _read_back(environment, database, options)
                on_disk.result()
        if written != meant.hexdigest():
            raise InputError(database, "what was read back is not what was written", do="check the disk, then build it again")
        if len(shapes) > 1:
            found = " and ".join("×".join(map(str, shape)) for shape in sorted(shapes))
            raise InputError(database, f"records of {found}", "all have one shape", "resize the images alike")
    shape = list(shapes.pop())
    manifest = {"images": count, "classes": options.classes, "shape": shape, "sha256": meant.hexdigest()}
    return manifest | {"channels": "RGB"} if options.channels == "RGB" else manifest


def channels_of(database: Path) -> str:
    """The order of the channels of a database's records, by the manifest beside it: BGR, which is Caffe's, or RGB."""
    manifest = database.with_name(f"{database.name}.manifest.json")
    return json.loads(manifest.read_text()).get("channels", "BGR") if manifest.exists() else "BGR"


def _read_back(environment: lmdb.Environment, database: Path, options: Options) -> tuple[set[tuple[int, ...]], str]:
    """The shapes of all records, each of which decodes and has a label in range, and the hash of all digests."""
    written, shapes = hashlib.sha256(), set()

    def one(key: bytes, value: memoryview) -> tuple[tuple[int, ...], bytes]:
        where = f"{database}: {bytes(key).decode(errors='replace')}"
        datum = parse(value)
        if not 0 <= datum.label < options.classes:
            raise InputError(where, f"label {datum.label}", f"there are {options.classes} classes (0–{options.classes - 1})")
        return pixels_of(datum, None, where).shape, digest(key, value)

    with environment.begin(buffers=True) as transaction, ThreadPoolExecutor(options.threads) as pool:
        records = iter(transaction.cursor())
        while batch := list(itertools.islice(records, BATCH)):
            found, digests = zip(*pool.map(one, *zip(*batch, strict=True)), strict=True)
            written.update(b"".join(digests))
            shapes.update(found)
    return shapes, written.hexdigest()


def _put(environment: lmdb.Environment, batch: list[tuple[bytes, bytes, bytes]]) -> None:
    """Put records in one transaction, in a map that is doubled as often as it is full."""
    while True:
        try:
            with environment.begin(write=True) as transaction:
                for key, value, _ in batch:
                    transaction.put(key, value, append=True)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(environment.info()["map_size"] * 2)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path, help="train.txt or val.txt")
    parser.add_argument("root", type=Path, help="folder that the list's paths begin from: what pipeline.resize wrote, or images")
    parser.add_argument("database", type=Path, help="the LMDB; replaced if it exists")
    parser.add_argument("--labels", type=Path, required=True, help="labels.txt")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--color", choices=["color", "gray"], default="color")
    parser.add_argument("--channels", choices=["BGR", "RGB"], default="BGR", help="their order in records (default: %(default)s)")
    parser.add_argument("--encode", choices=["raw", "png", "jpg"], default="raw", help="pixels or files (default: %(default)s)")
    parser.add_argument("--copies", type=int, default=0, help="changed copies of each image")
    parser.add_argument("--augmentation", type=parsed, help="how copies are changed: AugmentationParameter's fields as JSON")
    parser.add_argument("--seed", type=int, default=1, help="what the changes are drawn by")
    parser.add_argument("--threads", type=int, default=1, help="images worked on at once (default: %(default)s)")
    a = parser.parse_args(argv)
    if a.copies and a.augmentation is None:
        raise InputError("--copies", str(a.copies), "copies are changed", "say how with --augmentation")
    with written_whole(a.manifest) as part:
        color = a.color == "color"
        options = Options(len(read_labels(a.labels)), color, a.threads, a.encode, a.copies, a.augmentation, a.seed, a.channels)
        manifest = build(a.list, below(a.root, options.color), a.database, options)
        part.write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"{a.database}: {manifest['images']} records of {'×'.join(map(str, manifest['shape']))}, {manifest['classes']} classes")


if __name__ == "__main__":
    run(main)

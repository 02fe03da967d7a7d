"""Databases of Datum records: records serialised, written with their hash, and read back."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import cv2
import lmdb
import numpy as np

import caffe
from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.progress import progress

BATCH = 32
"""Records put in one transaction."""
MAP_SIZE = 1 << 28
"""Bytes that a database may have at first."""
Batches = Iterable[list[tuple[bytes, bytes, bytes]]]
"""Key, record and digest of both, in the order of keys, some at a time."""


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


def write_database(batches: Batches, database: Path, classes: int, threads: int = 1, channels: str = "BGR") -> dict:
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
                shapes, written = _read_back(environment, database, classes, threads)
                on_disk.result()
        if written != meant.hexdigest():
            raise InputError(database, "what was read back is not what was written", do="check the disk, then build it again")
        if len(shapes) > 1:
            found = " and ".join("×".join(map(str, shape)) for shape in sorted(shapes))
            raise InputError(database, f"records of {found}", "all have one shape", "resize the images alike")
    shape = list(shapes.pop())
    manifest = {"images": count, "classes": classes, "shape": shape, "sha256": meant.hexdigest()}
    return manifest | {"channels": "RGB"} if channels == "RGB" else manifest


def channels_of(database: Path) -> str:
    """The order of the channels of a database's records, by the manifest beside it: BGR, which is Caffe's, or RGB."""
    manifest = database.with_name(f"{database.name}.manifest.json")
    return json.loads(manifest.read_text()).get("channels", "BGR") if manifest.exists() else "BGR"


def _read_back(environment: lmdb.Environment, database: Path, classes: int, threads: int) -> tuple[set[tuple[int, ...]], str]:
    """The shapes of all records, each of which decodes and has a label in range, and the hash of all digests."""
    written, shapes = hashlib.sha256(), set()

    def one(key: bytes, value: memoryview) -> tuple[tuple[int, ...], bytes]:
        where = f"{database}: {bytes(key).decode(errors='replace')}"
        datum = caffe.parse_datum(value)
        if not 0 <= datum.label < classes:
            raise InputError(where, f"label {datum.label}", f"there are {classes} classes (0–{classes - 1})")
        return caffe.pixels_of(datum, None, where).shape, digest(key, value)

    with environment.begin(buffers=True) as transaction, ThreadPoolExecutor(threads) as pool:
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

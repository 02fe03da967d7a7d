"""Databases of Datum records: serialise, write and read back, checked by hash."""

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NotRequired, TypedDict, TypeVar, cast

import cv2
import lmdb
import numpy as np

import caffe
from caffe.db import LevelDB, LMDBFile
from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.formats import digests
from pipeline.formats.tables import read_json
from pipeline.progress import progress

BATCH = 16
"""Records per transaction: few, so that they are still in the processor's cache when they are written to the file."""
COMPARED = 16
"""Of so many records that are read back, one is compared by hash with what was written."""
MAP_SIZE = 1 << 28
"""Initial size of a database's map, in bytes; doubled when it is full."""
Entry = tuple[bytes, bytes | memoryview, bytes]
"""Key, record, and a digest that changes with either of them."""
Batches = Iterable[list[Entry]]
"""Entries in the order of their keys, a batch at a time."""
Item = TypeVar("Item")
Result = TypeVar("Result")


class Manifest(TypedDict):
    """A database: numbers of images and classes, shape of an image, hash of all digests; channels if they are RGB; and the digest
    of the file itself."""

    images: int
    classes: int
    shape: list[int]
    sha256: str
    channels: NotRequired[str]
    data_mdb: NotRequired[str]


def encode_datum(image: np.ndarray, label: int, encode: str = "raw", room: np.ndarray | None = None) -> bytes | memoryview:
    """Pixels, uint8, height × width × 3 (BGR) or height × width, as a serialised Datum, with the fields that Caffe sets.

    room  buffer for a raw record; without it, or if it is too small, one is allocated

    A raw Datum is serialised by hand, in the order of field numbers: Protocol Buffers would copy the pixels twice.
    """
    if encode != "raw":
        _, content = cv2.imencode(f".{encode}", image)
        return bytes(caffe_pb2.Datum(data=content.tobytes(), label=label, encoded=True).SerializeToString())
    shape = (1 if image.ndim == 2 else image.shape[2], *image.shape[:2])
    prefix, suffix = _prefix(*shape), _suffix(label)
    end = len(prefix) + image.size
    size = end + len(suffix)
    if room is None or room.size < size:
        room = np.empty(size, np.uint8)
    room[: len(prefix)], room[end:size] = prefix, suffix
    planes = room[len(prefix) : end].reshape(shape)
    if image.ndim == 3:
        cv2.split(image, list(planes))
    else:
        planes[0] = image
    return room[:size].data


@functools.cache
def _prefix(channels: int, height: int, width: int) -> np.ndarray:
    """Serialised prefix of a Datum: shape fields, then tag and length of `data`."""
    size = channels * height * width
    datum = caffe_pb2.Datum(channels=channels, height=height, width=width, data=bytes(size))
    return np.frombuffer(datum.SerializeToString()[:-size], np.uint8)


@functools.cache
def _suffix(label: int) -> np.ndarray:
    """Serialised suffix of a Datum: label and encoded."""
    return np.frombuffer(caffe_pb2.Datum(label=label, encoded=False).SerializeToString(), np.uint8)


def digest(key: bytes | memoryview, value: bytes | memoryview) -> bytes:
    """SHA-256 of a key and its record."""
    both = hashlib.sha256(key)
    both.update(value)
    return both.digest()


def map_batches(convert: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Generator[list[Result], None, None]:
    """`convert` of every item, in their order, BATCH at a time; the next batch is converted while one is used."""
    items = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        following = pool.map(convert, list(itertools.islice(items, BATCH)))
        while batch := list(following):
            following = pool.map(convert, list(itertools.islice(items, BATCH)))
            yield batch


def write_database(batches: Batches, database: Path, classes: int, threads: int = 1, channels: str = "BGR") -> Manifest:
    """Write batches to `database`, whole; return the manifest.

    The records are read back before the database is moved to its path: each is parsed, one of COMPARED is compared by hash.
    """
    expected, sample, count = hashlib.sha256(), hashlib.sha256(), 0
    with written_whole(database) as part:
        with closing(lmdb.open(str(part), map_size=MAP_SIZE, sync=False)) as environment:
            with progress(desc=database.name) as bar:
                for batch in batches:
                    _put(environment, batch)
                    expected.update(b"".join(digest for _, _, digest in batch))
                    for key, value, _ in batch[-count % COMPARED :: COMPARED]:
                        sample.update(digest(key, value))
                    count += len(batch)
                    bar.update(len(batch))
            with ThreadPoolExecutor(2) as beside:  # read back from memory while it is written to disk
                on_disk = beside.submit(environment.sync, True)
                fingerprint = beside.submit(digests.fingerprint, part / "data.mdb")
                shapes, *written = _read_back(environment, database, classes, threads)
                on_disk.result()
        if written != [count, sample.digest()]:
            raise InputError(database, "records read back differ from those written", do="check the disk, then build it again")
        if len(shapes) > 1:
            found = " and ".join("×".join(map(str, shape)) for shape in sorted(shapes))
            raise InputError(database, f"records of {found}", "all must have one shape", "resize the images alike")
    shape = list(shapes.pop())
    manifest: Manifest = {"images": count, "classes": classes, "shape": shape, "sha256": expected.hexdigest()}
    manifest["data_mdb"] = fingerprint.result()
    if channels == "RGB":
        manifest["channels"] = "RGB"
    return manifest


def manifest_path(database: Path) -> Path:
    """Where the manifest of a database of the workflow lies: beside it."""
    return database.with_name(f"{database.name}.manifest.json")


def read_manifest(database: Path) -> Manifest | None:
    """The manifest beside a database; None for databases that were not made by the workflow."""
    path = manifest_path(database)
    return cast(Manifest, read_json(path)) if path.is_file() else None


def open_database(path: str | Path, backend: int | None = None) -> LMDBFile | LevelDB:
    """Open a database. Raises InputError if it is not what its manifest says, see `digests`."""
    verify_database(Path(path))
    return caffe.open_db(path, backend)


def verify_database(path: Path) -> None:
    """Raise InputError if a database is not what its manifest says; one without a manifest is the user's, and passes."""
    manifest = read_manifest(path)
    if manifest and (expected := manifest.get("data_mdb")):
        digests.verify(path / "data.mdb", expected, digests.fingerprint)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest to a file that `written_whole` gave."""
    path.write_text(json.dumps(manifest, indent=1) + "\n")


def channels_of(database: Path) -> str:
    """The channel order of a database's records, by the manifest beside it: BGR, which is Caffe's, or RGB."""
    manifest = read_manifest(database)
    return manifest.get("channels", "BGR") if manifest else "BGR"


def _read_back(
    environment: lmdb.Environment, database: Path, classes: int, threads: int
) -> tuple[set[tuple[int, ...]], int, bytes]:
    """The shapes of all records, their number, and the hash of the digests of one of COMPARED.

    Raises InputError for a label out of range or a bad record.
    """
    sample, shapes, count = hashlib.sha256(), set[tuple[int, ...]](), 0

    def check(entry: tuple[int, tuple[memoryview, memoryview]]) -> tuple[tuple[int, ...], bytes]:
        number, (key, value) = entry
        where = f"{database}: {bytes(key).decode(errors='replace')}"
        datum = caffe.parse_datum(value)
        if not 0 <= datum.label < classes:
            raise InputError(where, f"label {datum.label}", f"there are {classes} classes (0–{classes - 1})")
        return caffe.pixels_of(datum, None, where).shape, b"" if number % COMPARED else digest(key, value)

    # Closed first, even after an error: the threads read the transaction's memory.
    with (
        environment.begin(buffers=True) as transaction,
        closing(map_batches(check, enumerate(transaction.cursor()), threads)) as batches,
    ):
        for batch in batches:
            shapes.update(shape for shape, _ in batch)
            sample.update(b"".join(digest for _, digest in batch))
            count += len(batch)
    return shapes, count, sample.digest()


def _put(environment: lmdb.Environment, batch: list[Entry]) -> None:
    """Put records in one transaction; double the map until they fit."""
    while True:
        try:
            with environment.begin(write=True) as transaction:
                for key, value, _ in batch:
                    transaction.put(key, value, append=True)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(environment.info()["map_size"] * 2)

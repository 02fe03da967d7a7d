"""Files of features: written batch by batch in any of five formats, and read again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import caffe
from caffe.db import DatabaseWriter
from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.files import stem_of

FORMATS = ("hdf5", "leveldb", "lmdb", "npy", "parquet")
IMAGES = "images.txt"
"""The list of the images, `path label` a line, in the order of the features."""
SCHEMA = pa.schema([("path", pa.string()), ("label", pa.int64()), ("features", pa.list_(pa.float32()))])
Entries = list[tuple[str, int]]
"""Paths and labels."""


class Npy:
    """One blob's BLOB.npy, for so many images with features of `shape`."""

    def __init__(self, folder: Path, blob: str, images: int, shape: tuple[int, ...], stack: contextlib.ExitStack):
        self.array = np.lib.format.open_memmap(folder / f"{blob}.npy", "w+", np.float32, (images, int(np.prod(shape))))
        stack.callback(self.array.flush)

    def add(self, start: int, rows: np.ndarray, entries: Entries) -> None:
        """Put the features of the images from `start` on: images × shape."""
        self.array[start : start + len(rows)] = rows.reshape(len(rows), -1)


class Parquet:
    """One blob's BLOB.parquet; see Npy."""

    def __init__(self, folder: Path, blob: str, images: int, shape: tuple[int, ...], stack: contextlib.ExitStack):
        self.table = stack.enter_context(pq.ParquetWriter(folder / f"{blob}.parquet", SCHEMA))

    def add(self, start: int, rows: np.ndarray, entries: Entries) -> None:
        paths, labels = zip(*entries, strict=True)
        self.table.write_table(pa.table([list(paths), list(labels), list(rows.reshape(len(rows), -1))], schema=SCHEMA))


class Database:
    """One blob's BLOB.lmdb or BLOB.leveldb; see Npy."""

    def __init__(self, kind: str, folder: Path, blob: str, images: int, shape: tuple[int, ...], stack: contextlib.ExitStack):
        self.write = stack.enter_context(DatabaseWriter(str(folder / f"{blob}.{kind}"), kind))
        shape = (*shape, 1, 1, 1)[:3] if len(shape) <= 3 else (int(np.prod(shape)), 1, 1)
        self.shape = dict(zip(("channels", "height", "width"), shape, strict=True))

    def add(self, start: int, rows: np.ndarray, entries: Entries) -> None:
        for number, (row, (_, label)) in enumerate(zip(rows, entries, strict=True), start):
            datum = caffe_pb2.Datum(**self.shape, label=label, float_data=row.ravel())
            self.write(b"%010d" % number, datum.SerializeToString())


class Hdf5:
    """One blob's dataset in features.h5, which the first blob begins with the images' labels and paths; see Npy."""

    def __init__(self, folder: Path, blob: str, images: int, shape: tuple[int, ...], stack: contextlib.ExitStack):
        import h5py  # loaded where it is asked for, as most do not

        self.file = stack.enter_context(h5py.File(folder / "features.h5", "a"))
        self.first = "path" not in self.file
        if self.first:
            self.file.create_dataset("path", images, h5py.string_dtype())
            self.file.create_dataset("label", images, np.int64)
        self.values = self.file.create_dataset(blob, (images, *shape), np.float32)

    def add(self, start: int, rows: np.ndarray, entries: Entries) -> None:
        here = slice(start, start + len(rows))
        self.values[here] = rows
        if self.first:
            self.file["path"][here], self.file["label"][here] = map(list, zip(*entries, strict=True))


def writer(kind: str, *arguments) -> Npy | Parquet | Database | Hdf5:
    """The writer of a format; the arguments are Npy's."""
    if kind in ("lmdb", "leveldb"):
        return Database(kind, *arguments)
    return {"npy": Npy, "parquet": Parquet, "hdf5": Hdf5}[kind](*arguments)


def file_names(blobs: list[str], formats: tuple[str, ...]) -> dict[str, str]:
    """What each blob is called in the names of files and of datasets."""
    names = {blob: stem_of(blob) for blob in dict.fromkeys(blobs)}
    taken = {"path": "", "label": ""} if "hdf5" in formats else {}
    for blob, name in names.items():
        if name in taken:
            other = f'so is blob "{taken[name]}"' if taken[name] else "features.h5 has that dataset for the images"
            raise InputError("--blobs", f'"{blob}" is written as {name}', other, "extract it by itself, or in another format")
        taken[name] = blob
    return names


def read(folder: Path, blob: str) -> Iterator[np.ndarray]:
    """A blob's values, float32, an image after the other, from the first format in which a folder of features has them."""
    stem = stem_of(blob)
    if (path := folder / f"{stem}.npy").exists():
        yield from np.load(path, mmap_mode="r")
    elif (path := folder / f"{stem}.parquet").exists():
        for batch in pq.ParquetFile(path).iter_batches(columns=["features"]):
            yield from batch.column(0).to_numpy(zero_copy_only=False)
    elif (path := folder / f"{stem}.lmdb").exists() or (path := folder / f"{stem}.leveldb").exists():
        for value in caffe.open_db(path).values():
            yield np.asarray(caffe_pb2.Datum.FromString(bytes(value)).float_data, np.float32)
    elif (path := folder / "features.h5").exists():
        import h5py

        with h5py.File(path) as file:
            if stem not in file:
                raise InputError(path, f'no dataset "{stem}"', f"there are {', '.join(file)}", caffe.nearest(stem, file))
            yield from (row.ravel() for row in file[stem])
    else:
        raise InputError(folder, f'no features of blob "{blob}"', do="run the features step for it, or correct the folder")

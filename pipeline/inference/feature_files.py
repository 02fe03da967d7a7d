"""Feature files: write them batch by batch in five formats, and read them."""

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
from pipeline.formats import digests

IMAGES = "images.txt"
"""The list of the images, `path label` lines in the order of the features."""
SCHEMA = pa.schema([("path", pa.string()), ("label", pa.int64()), ("features", pa.list_(pa.float32()))])
DTYPE = np.dtype("<f4")
Entries = list[tuple[str, int]]
"""Paths and labels."""


class Npy:
    """Writes FOLDER/BLOB.FORMAT for so many images with features of `shape`; closed with the stack."""

    def __init__(self, path: Path, images: int, shape: tuple[int, ...], stack: contextlib.ExitStack):
        self.file = stack.enter_context(path.open("wb"))
        header = {"descr": np.lib.format.dtype_to_descr(DTYPE), "fortran_order": False, "shape": (images, int(np.prod(shape)))}
        np.lib.format.write_array_header_1_0(self.file, header)

    def add(self, start: int, rows: np.ndarray, entries: Entries) -> None:
        """Write the features, images × shape, of the images from position `start` on, which follow those before."""
        # Into a mapped file, a page fault for each page would take 50 times as long.
        self.file.write(np.ascontiguousarray(rows, DTYPE).data)


class Parquet:
    """As Npy."""

    def __init__(self, path: Path, images: int, shape: tuple[int, ...], stack: contextlib.ExitStack):
        self.table = stack.enter_context(pq.ParquetWriter(path, SCHEMA))

    def add(self, start: int, rows: np.ndarray, entries: Entries) -> None:
        paths, labels = zip(*entries, strict=True)
        self.table.write_table(pa.table([list(paths), list(labels), list(rows.reshape(len(rows), -1))], schema=SCHEMA))


class Database:
    """As Npy, for .lmdb and .leveldb."""

    def __init__(self, path: Path, images: int, shape: tuple[int, ...], stack: contextlib.ExitStack):
        self.write = stack.enter_context(DatabaseWriter(str(path), path.suffix[1:]))
        self.shape = (*shape, 1, 1, 1)[:3] if len(shape) <= 3 else (int(np.prod(shape)), 1, 1)

    def add(self, start: int, rows: np.ndarray, entries: Entries) -> None:
        channels, height, width = self.shape
        for number, (row, (_, label)) in enumerate(zip(rows, entries, strict=True), start):
            datum = caffe_pb2.Datum(channels=channels, height=height, width=width, label=label, float_data=row.ravel())
            self.write(b"%010d" % number, datum.SerializeToString())


class Hdf5:
    """As Npy, but the dataset BLOB of FOLDER/features.h5; the first blob also writes the images' labels and paths."""

    def __init__(self, path: Path, images: int, shape: tuple[int, ...], stack: contextlib.ExitStack):
        import h5py  # slow to import, and not a default format

        self.file = stack.enter_context(h5py.File(path.with_name("features.h5"), "a"))
        self.first = "path" not in self.file
        if self.first:
            self.file.create_dataset("path", images, h5py.string_dtype())
            self.file.create_dataset("label", images, np.int64)
        self.values = self.file.create_dataset(path.stem, (images, *shape), np.float32)

    def add(self, start: int, rows: np.ndarray, entries: Entries) -> None:
        here = slice(start, start + len(rows))
        self.values[here] = rows
        if self.first:
            self.file["path"][here], self.file["label"][here] = map(list, zip(*entries, strict=True))


Writer = Npy | Parquet | Database | Hdf5
WRITERS: dict[str, type[Writer]] = {"npy": Npy, "parquet": Parquet, "lmdb": Database, "leveldb": Database, "hdf5": Hdf5}
"""{format: its writer}"""


def file_names(blobs: list[str], formats: tuple[str, ...]) -> dict[str, str]:
    """The name of each blob in file names and as a dataset; raises InputError if two are equal."""
    names = {blob: stem_of(blob) for blob in dict.fromkeys(blobs)}
    used = {"path": "", "label": ""} if "hdf5" in formats else {}
    for blob, name in names.items():
        if name in used:
            other = f'so is blob "{used[name]}"' if used[name] else "features.h5 has that dataset for the images"
            raise InputError("--features", f'"{blob}" is written as {name}', other, "extract it separately, or in another format")
        used[name] = blob
    return names


def read(folder: Path, blob: str) -> Iterator[np.ndarray]:
    """A blob's values, float32, image by image, from the first format in a folder of features."""
    stem = stem_of(blob)
    for file in (f"{stem}.npy", f"{stem}.parquet", f"{stem}.lmdb/data.mdb", "features.h5"):
        if (folder / file).exists():
            digests.check(folder / file)
            break
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

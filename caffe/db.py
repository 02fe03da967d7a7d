"""Databases of Datum records, read in key order."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path

import lmdb

from caffe.errors import FileError
from caffe.proto import caffe_pb2


class LMDB:
    """A read-only LMDB, as a folder with data.mdb; never locked, so read-only file systems serve too."""

    def __init__(self, source: str):
        if not Path(source).exists():
            raise FileError(source, "no such database", do="build it first, or correct data_param.source")
        try:
            self._env = lmdb.open(str(source), readonly=True, lock=False, subdir=Path(source).is_dir(), readahead=True)
        except lmdb.Error as error:
            raise FileError(source, f"not an LMDB ({error})", do="check data_param.backend and source") from error
        self.source = source

    def __len__(self) -> int:
        return self._env.stat()["entries"]

    def values(self, start: int = 0) -> Iterator[memoryview]:
        """Records from position `start` to the end; a value is valid until the next one is taken."""
        with self._env.begin(buffers=True) as transaction:
            cursor = transaction.cursor()
            for position, value in enumerate(cursor.iternext(keys=False, values=True)):
                if position >= start:
                    yield value

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and records, in key order."""
        with self._env.begin() as transaction:
            yield from transaction.cursor()


# A process may open an LMDB once; nets that read the same one share it.
_open: weakref.WeakValueDictionary[tuple, LMDB] = weakref.WeakValueDictionary()


def open_db(source: str, backend: int) -> LMDB:
    """The database that a data_param names; the same object for the same database as long as somebody holds it."""
    if backend != caffe_pb2.DataParameter.LMDB:
        raise FileError(source, "backend LEVELDB", "only LMDB is read", "add backend: LMDB to data_param if this is an LMDB")
    path = Path(source)
    file = path / "data.mdb" if path.is_dir() else path
    key = (file.stat().st_dev, file.stat().st_ino) if file.exists() else None
    database = _open.get(key) or LMDB(source)
    if key:
        _open[key] = database
    if len(database) == 0:
        raise FileError(source, "the database has no records")
    return database

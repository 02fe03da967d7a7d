"""Databases of Datum records, read in key order: LMDB and LevelDB."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from pathlib import Path

from caffe.errors import FileError
from caffe.lmdb_file import LMDBFile
from caffe.proto import caffe_pb2


class LevelDB:
    """The records of a LevelDB, with LMDBFile's methods."""

    def __init__(self, source: str):
        import plyvel

        if not (Path(source) / "CURRENT").exists():
            found = "an LMDB" if (Path(source) / "data.mdb").exists() else "no LevelDB"
            raise FileError(
                source, found, "backend LEVELDB wants a LevelDB's folder", "give backend: LMDB, or correct the source"
            )
        try:
            self._db = plyvel.DB(str(source), create_if_missing=False)
        except plyvel.Error as error:
            raise FileError(source, f"not a readable LevelDB ({error})", do="is another process reading it?") from error
        self.source = source

    @functools.cached_property
    def _entries(self) -> int:
        return sum(1 for _ in self._db.iterator(include_value=False))

    def __len__(self) -> int:
        return self._entries

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and records, in key order."""
        import plyvel

        try:
            yield from self._db.iterator()
        except plyvel.Error as error:
            raise FileError(self.source, f"a damaged LevelDB ({error})", do="build it again") from error

    def values(self, start: int = 0) -> Iterator[bytes]:
        """Records from position `start` on."""
        for position, (_, value) in enumerate(self.items()):
            if position >= start:
                yield value


# A process may open a LevelDB once; nets that read the same one share it.
_open: weakref.WeakValueDictionary[str, LevelDB] = weakref.WeakValueDictionary()


def open_db(source: str, backend: int) -> LMDBFile | LevelDB:
    """The database that a data_param names."""
    if backend == caffe_pb2.DataParameter.LMDB:
        database = LMDBFile(source)
    else:
        key = str(Path(source).resolve())
        database = _open.get(key) or LevelDB(source)
        _open[key] = database
    if len(database) == 0:
        raise FileError(source, "the database has no records")
    return database

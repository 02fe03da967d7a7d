"""Databases of Datum records, read in key order: LMDB and LevelDB."""

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from caffe.errors import FileError
from caffe.formats.files import missing, written_whole
from caffe.formats.lmdb_file import LMDBFile
from caffe.proto import caffe_pb2


def _plyvel(source: str | Path) -> Any:
    """Import plyvel, which reads and writes LevelDBs; an extra, as it has no wheels for Python 3.13 and later."""
    try:
        import plyvel
    except ImportError:
        found = "a LevelDB, but the package plyvel is not installed"
        do = "install roastery[leveldb] (Python 3.11 or 3.12, or a C++ compiler and LevelDB's headers), or use an LMDB"
        raise FileError(source, found, do=do) from None
    return plyvel


class LevelDB:
    """The records of a LevelDB, with LMDBFile's methods."""

    def __init__(self, source: str):
        plyvel = _plyvel(source)
        if not (Path(source) / "CURRENT").exists():
            found = "an LMDB" if (Path(source) / "data.mdb").exists() else "not a LevelDB"
            raise FileError(
                source, found, "backend LEVELDB needs the folder of a LevelDB", "give backend: LMDB, or correct the source"
            )
        try:
            self._db = plyvel.DB(str(source), create_if_missing=False)
            self._entries = sum(1 for _ in self._db.iterator(include_value=False))
        except plyvel.Error as error:
            raise FileError(source, f"not a readable LevelDB ({error})", do="is another process reading it?") from error
        self.source = source
        self._keys: list[bytes] | None = None

    def __len__(self) -> int:
        return self._entries

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and records, in key order."""
        plyvel = _plyvel(self.source)
        try:
            yield from self._db.iterator()
        except plyvel.Error as error:
            raise FileError(self.source, f"a damaged LevelDB ({error})", do="rebuild it") from error

    def values(self, start: int = 0) -> Iterator[bytes | memoryview]:
        """Records from position `start` on."""
        for _, value in itertools.islice(self.items(), start, None):
            yield value

    def record(self, index: int) -> bytes:
        """The record at a position in key order; the first call reads all keys."""
        if self._keys is None:
            self._keys = list(self._db.iterator(include_value=False))
        value: bytes = self._db.get(self._keys[index])
        return value


# A process can open a LevelDB only once, so nets that read the same one share it.
_open: weakref.WeakValueDictionary[str, LevelDB] = weakref.WeakValueDictionary()


def open_db(source: str | Path, backend: int | None = None, reader: str = "") -> LMDBFile | LevelDB:
    """Open the database of records at `source`, to be read in key order: `len(db)`, `db.items()`, `db.values(start)`.

    backend  a DataParameter.DB value, LMDB or LEVELDB; by default detected from its files
    reader   the layer that reads it, as the error for a missing database names it
    Raises FileError if there is no such database, if it is damaged, or if it has no records.
    """
    source = str(source)
    if not Path(source).exists():
        raise _missing(source, backend, reader)
    if (_backend_of(Path(source)) if backend is None else backend) == caffe_pb2.DataParameter.LMDB:
        database: LMDBFile | LevelDB = LMDBFile(source)
    else:
        key = str(Path(source).resolve())
        database = _open[key] = _open.get(key) or LevelDB(source)
    if len(database) == 0:
        raise FileError(source, "the database has no records")
    return database


def _backend_of(source: Path) -> int:
    if source.is_file() or (source / "data.mdb").exists():
        return caffe_pb2.DataParameter.LMDB
    if (source / "CURRENT").exists():
        return caffe_pb2.DataParameter.LEVELDB
    raise FileError(
        str(source), "no database", "an LMDB's folder has data.mdb, a LevelDB's CURRENT", "build it first, or correct its path"
    )


def _missing(source: str, backend: int | None, reader: str) -> FileError:
    """The error for a database that is not there, with the command that builds it; see `missing`."""
    name = "leveldb" if backend == caffe_pb2.DataParameter.LEVELDB else "lmdb"
    command = f"caffe convert_imageset -backend {name} IMAGES/ LIST {source}"
    return missing(source, "database", f"build it by {command}, from a list of `path label` lines; or correct its path", reader)


class DatabaseWriter:
    """A new LMDB or LevelDB, written atomically: it gets its name when the `with` block ends without an exception.

        with DatabaseWriter("train_lmdb", "lmdb") as write:
            write(key, record)

    Keys in ascending order are written fastest. Raises FileError if the database exists already.
    """

    BATCH = 1000
    """Maximum number of records in a transaction."""
    BYTES = 1 << 26
    """Size in bytes of the pending records at which they are committed earlier."""

    def __init__(self, source: str, backend: str):
        if backend not in ("lmdb", "leveldb"):
            raise FileError(source, f'backend "{backend}"', 'it must be "lmdb" or "leveldb"')
        if Path(source).exists():
            raise FileError(source, "it exists already", do="delete it, or give another name")
        self.source, self.backend = source, backend
        self._stack = contextlib.ExitStack()
        self._pending: list[tuple[bytes, bytes]] = []
        self._size = 0

    def __enter__(self) -> Callable[[bytes, bytes], None]:
        with self._stack as stack:
            part = str(stack.enter_context(written_whole(self.source)))
            if self.backend == "lmdb":
                import lmdb

                self._db: Any = lmdb.open(part, map_size=1 << 28)
            else:
                self._db = _plyvel(part).DB(part, create_if_missing=True, error_if_exists=True)
            stack.callback(self._db.close)
            self._stack = stack.pop_all()
        return self.write

    def write(self, key: bytes, record: bytes) -> None:
        """Add one record."""
        self._pending.append((key, record))
        self._size += len(record)
        if len(self._pending) == self.BATCH or self._size >= self.BYTES:
            self._commit()

    def _commit(self) -> None:
        if self.backend == "leveldb":
            with self._db.write_batch() as batch:
                for key, record in self._pending:
                    batch.put(key, record)
        else:
            import lmdb

            try:
                with self._db.begin(write=True) as transaction:
                    transaction.cursor().putmulti(self._pending)
            except lmdb.MapFullError:
                self._db.set_mapsize(2 * self._db.info()["map_size"])
                return self._commit()
        self._pending, self._size = [], 0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            with self._stack:
                self._commit()
        else:
            self._stack.__exit__(kind, error, trace)

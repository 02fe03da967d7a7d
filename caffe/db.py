"""Databases of Datum records, read in key order."""

from __future__ import annotations

from caffe.errors import FileError
from caffe.lmdb_file import LMDBFile
from caffe.proto import caffe_pb2


def open_db(source: str, backend: int) -> LMDBFile:
    """The database that a data_param names."""
    if backend != caffe_pb2.DataParameter.LMDB:
        raise FileError(source, "backend LEVELDB", "only LMDB is read", "add backend: LMDB to data_param if this is an LMDB")
    database = LMDBFile(source)
    if len(database) == 0:
        raise FileError(source, "the database has no records")
    return database

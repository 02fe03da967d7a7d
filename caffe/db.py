"""Databases of records: LMDB and LevelDB."""

from caffe.formats.db import DatabaseWriter, LevelDB, LMDBFile, open_db

__all__ = ["DatabaseWriter", "LMDBFile", "LevelDB", "open_db"]

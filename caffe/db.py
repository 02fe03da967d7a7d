"""`caffe.db`: LMDB and LevelDB databases of records."""

from caffe.formats.db import DatabaseWriter, LevelDB, open_db
from caffe.formats.lmdb_file import LMDBFile

__all__ = ["DatabaseWriter", "LMDBFile", "LevelDB", "open_db"]

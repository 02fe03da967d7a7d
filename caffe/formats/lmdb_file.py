"""LMDB reader in key order that checks every offset.

liblmdb does not validate its file and crashes on a damaged one. This reads the same B+tree (mdb.c, LMDB 0.9, 64-bit,
little-endian) through a memory map without a lock, so it works on read-only file systems and for several nets of one process.
"""

import mmap
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path

from caffe.errors import FileError

MAGIC = 0xBEEFC0DE
BRANCH, LEAF, OVERFLOW = 0x01, 0x02, 0x04
BIG_DATA = 0x01
NO_PAGE = 2**64 - 1
GREATEST_DEPTH = 32

_PAGE = struct.Struct("<QHHHH")
"""Page number, padding, flags, end of the node pointers, start of the nodes."""
_META = struct.Struct("<IIQQ")
"""Magic, version, address, map size; followed by two trees, of the free pages and of the records."""
_TREE = struct.Struct("<IHHQQQQQ")
"""Page size (in the first tree), flags, depth, branch, leaf and overflow pages, entries, root."""
_END = struct.Struct("<QQ")
"""Last page, transaction."""
_NODE = struct.Struct("<HHHH")
"""Low and high half of the data's size (or of a child's page number), flags, size of the key."""
_NUMBER = struct.Struct("<Q")


class LMDBFile:
    """The records of an LMDB: `len(file)`, `file.values(start)`, `file.items()`, `file.record(index)`.

    source  the database's folder, or its data file
    Values are views into the mapped file, valid as long as this object lives.
    """

    def __init__(self, source: str):
        self.source = str(source)
        if not Path(source).exists():
            raise FileError(self.source, "no such database", do="build it first, or correct data_param.source")
        path = Path(source) / "data.mdb" if Path(source).is_dir() else Path(source)
        try:
            with path.open("rb") as file:
                self._map = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except FileNotFoundError:
            raise self._error("it has no data.mdb") from None
        except (OSError, ValueError) as error:
            raise self._error(f"{path.name} cannot be read ({error})") from None
        newest = max(self._metas(), default=None)
        if newest is None:
            raise self._error(f"{path.name} has no valid meta page")
        _, self._page_size, self._entries, self._root = newest
        self._nodes: array[int] | None = None

    def __len__(self) -> int:
        return self._entries

    def values(self, start: int = 0) -> Iterator[memoryview]:
        """Records from position `start` on."""
        for page, pointers in self._leaves():
            for pointer in pointers[start:]:
                yield self._node(page, pointer)[1]
            start = max(0, start - len(pointers))

    def items(self) -> Iterator[tuple[bytes, memoryview]]:
        """Keys and records, in key order."""
        for page, pointers in self._leaves():
            for pointer in pointers:
                yield self._node(page, pointer)

    def record(self, index: int) -> memoryview:
        """The record at a position in key order; the first call walks through the whole tree."""
        if self._nodes is None:
            self._nodes = array("Q", (page + pointer for page, pointers in self._leaves() for pointer in pointers))
        pointer = self._nodes[index] % self._page_size
        return self._node(self._nodes[index] - pointer, pointer)[1]

    # ---- the tree

    def _metas(self) -> Iterator[tuple[int, int, int, int]]:
        """(transaction, page size, entries, root) of the valid ones of the two meta pages."""
        page_size = 0
        for number in (0, 1):
            start = number * page_size + _PAGE.size
            if start + _META.size + 2 * _TREE.size + _END.size > len(self._map):
                return
            magic, version, _, _ = _META.unpack_from(self._map, start)
            free = _TREE.unpack_from(self._map, start + _META.size)
            records = _TREE.unpack_from(self._map, start + _META.size + _TREE.size)
            _, transaction = _END.unpack_from(self._map, start + _META.size + 2 * _TREE.size)
            if number == 0:
                page_size = free[0]
            if not 256 <= page_size <= 65536:
                return
            if magic == MAGIC and version == 1 and free[0] == page_size and records[1] == 0:
                yield transaction, page_size, records[6], records[7]

    def _leaves(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """(offset, offsets of the nodes) of every leaf page, in key order."""
        waiting = [] if self._root == NO_PAGE else [(self._root, 0)]
        pages = len(self._map) // self._page_size
        seen = records = 0
        while waiting:
            number, depth = waiting.pop()
            seen += 1
            if seen > pages or depth > GREATEST_DEPTH:
                raise self._error("its pages form a cycle")
            page, flags, pointers = self._page(number)
            if flags & LEAF:
                records += len(pointers)
                yield page, pointers
            else:
                waiting.extend((self._child(page, pointer), depth + 1) for pointer in reversed(pointers))
        if records != self._entries:
            raise self._error(f"it has {records} of its {self._entries} records")

    def _page(self, number: int) -> tuple[int, int, tuple[int, ...]]:
        """Offset, flags and node offsets of a branch or leaf page."""
        page = number * self._page_size
        if page + self._page_size > len(self._map):
            raise self._error(f"page {number} is outside the file, which may be truncated")
        _, _, flags, lower, upper = _PAGE.unpack_from(self._map, page)
        if flags & ~0x10 not in (BRANCH, LEAF) or not _PAGE.size <= lower <= upper <= self._page_size or lower % 2:
            raise self._error(f"page {number} is damaged")
        count = (lower - _PAGE.size) // 2
        pointers = struct.unpack_from(f"<{count}H", self._map, page + _PAGE.size)
        if count and not (upper <= min(pointers) and max(pointers) + _NODE.size <= self._page_size):
            raise self._error(f"page {number} is damaged")
        return page, flags, pointers

    def _child(self, page: int, pointer: int) -> int:
        low, high, top, _ = _NODE.unpack_from(self._map, page + pointer)
        return int(low | high << 16 | top << 32)

    def _node(self, page: int, pointer: int) -> tuple[bytes, memoryview]:
        """Key and value of a leaf's node."""
        start = page + pointer
        low, high, flags, key_size = _NODE.unpack_from(self._map, start)
        size = low | high << 16
        key = start + _NODE.size
        data, end = key + key_size, page + self._page_size
        if flags & BIG_DATA and data + _NUMBER.size <= end:
            (number,) = _NUMBER.unpack_from(self._map, data)
            data, end = number * self._page_size + _PAGE.size, len(self._map)
            flags &= ~BIG_DATA
        if flags or key + key_size > page + self._page_size or data + size > end:
            raise self._error(f"the record at byte {start} is damaged, or the file truncated")
        return bytes(self._map[key : key + key_size]), self._map[data : data + size]

    def _error(self, found: str) -> FileError:
        return FileError(self.source, f"not a readable LMDB: {found}", do="check data_param.source and backend, or rebuild it")

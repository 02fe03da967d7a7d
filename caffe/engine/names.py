"""Dictionaries of a net's blobs and parameters by name, whose errors tell the nearest name."""

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice
from typing import NoReturn, TypeVar

from caffe.errors import NameNotFoundError, nearest

Value = TypeVar("Value")
SHOWN = 10
"""Most names that an error lists."""


class ByName(OrderedDict[str, Value]):
    """{name: value}, in the order of a net.

    where  the net's prototxt
    kind   what the values are, such as "blob"
    """

    def __init__(self, items: Iterable[tuple[str, Value]] = (), where: str = "", kind: str = "name"):
        super().__init__(items)
        self.where, self.kind = where, kind

    def __missing__(self, name: str) -> NoReturn:
        names = [*islice(self, SHOWN), *["…"] * (len(self) > SHOWN)]
        do = nearest(str(name), self) or (f"it has {', '.join(names)}" if names else "it has none")
        raise NameNotFoundError(self.where, f'no {self.kind} "{name}"', do=do)

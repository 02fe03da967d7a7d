"""Datum records: a parser that does not copy the pixels, and their decoding.

Protocol Buffers copies the data of a Datum twice, which for 256 × 256 × 3 bytes takes longer than cropping it.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from caffe.errors import Error
from caffe.proto import caffe_pb2

_SCALARS = tuple(number << 3 for number in (1, 2, 3, 5, 7))  # channels, height, width, label, encoded
_DATA = 4 << 3 | 2
"""Tags: a field's number and wire type, 0 for a varint, 2 for length-prefixed bytes."""
_NONE = (0,) * len(_SCALARS)


class Record(NamedTuple):
    """The fields of a Datum; `data` is a view into the record."""

    channels: int
    height: int
    width: int
    data: memoryview
    label: int
    float_data: Sequence[float]
    encoded: bool


class _Beginning(NamedTuple):
    """The bytes of a record before its data, the fields that they hold, and where the data end."""

    content: bytes
    scalars: tuple[int, ...]
    end: int


class Parser:
    """Parses serialised Datums without copying their data. Records of a database mostly begin alike: that is read once.

    A record with other fields (float_data), with negative numbers, or a damaged one is left to Protocol Buffers.
    """

    def __init__(self) -> None:
        self._beginning = _Beginning(b"", _NONE, 0)

    def __call__(self, record: bytes | memoryview) -> Record | caffe_pb2.Datum:
        """Parse a record. Raises google.protobuf's DecodeError if it is not a Datum."""
        view, known = memoryview(record), self._beginning
        start = len(known.content)
        if not start or view[:start] != known.content:
            found = _beginning(view)
            if found is None:
                return _by_protobuf(view)
            self._beginning = known = found
            start = len(known.content)
        scalars = _with_scalars(known.scalars, view[known.end :].tobytes()) if known.end <= len(view) else None
        if scalars is None:
            return _by_protobuf(view)
        channels, height, width, label, encoded = scalars
        return Record(channels, height, width, view[start : known.end], label, (), bool(encoded))


def parse_datum(record: bytes | memoryview) -> Record | caffe_pb2.Datum:
    """Parse one serialised Datum; see `Parser`, which takes less time for many."""
    return Parser()(record)


def _by_protobuf(view: memoryview) -> caffe_pb2.Datum:
    datum: caffe_pb2.Datum = caffe_pb2.Datum.FromString(bytes(view))
    return datum


def _beginning(view: memoryview) -> _Beginning | None:
    """What lies before the data; None if there are other fields than scalars, or no data."""
    position = 0
    try:
        while view[position] != _DATA:
            _, position = _varint(view, position + 1)
        length, start = _varint(view, position + 1)
    except IndexError:
        return None
    scalars = _with_scalars(_NONE, view[:position].tobytes())
    return None if scalars is None else _Beginning(view[:start].tobytes(), scalars, start + length)


@functools.lru_cache(4096)
def _with_scalars(scalars: tuple[int, ...], content: bytes) -> tuple[int, ...] | None:
    """Fields with those that further bytes of a record hold; None if these hold others, or are damaged."""
    values, position, view = list(scalars), 0, memoryview(content)
    try:
        while position < len(view):
            field = _SCALARS.index(view[position])
            values[field], position = _varint(view, position + 1)
            if values[field] >= 1 << 31:
                return None
    except (IndexError, ValueError):
        return None
    return tuple(values)


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    """Decode the varint at a position (seven bits a byte, lowest first); also returns the position after it."""
    byte = view[position]
    value, shift = byte & 127, 7
    while byte > 127:
        position += 1
        byte = view[position]
        value |= (byte & 127) << shift
        shift += 7
    return value, position + 1


def pixels_of(datum: Record | caffe_pb2.Datum, color: bool | None, where: str) -> np.ndarray:
    """A record's image, channels × height × width: uint8 as stored or decoded (BGR), or float32.

    color  True or False decodes encoded images to three channels or one; None keeps the image's own number
    """
    if datum.encoded:
        flag = cv2.IMREAD_UNCHANGED if color is None else (cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE)
        try:
            image = cv2.imdecode(np.frombuffer(datum.data, np.uint8), flag)
        except cv2.error:  # empty, or more pixels than OpenCV accepts
            image = None
        if image is None:
            raise Error(where, "an encoded record that cannot be decoded", do="rebuild the database")
        return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    shape = (datum.channels, datum.height, datum.width)
    pixels = np.frombuffer(datum.data, np.uint8) if len(datum.data) else np.asarray(datum.float_data, np.float32)
    if min(shape) < 1 or pixels.size != shape[0] * shape[1] * shape[2]:
        raise Error(where, f"a record of {pixels.size} values for shape {shape}", do="rebuild the database")
    return pixels.reshape(shape)

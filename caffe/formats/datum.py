"""Datum records: a parser that does not copy the pixels, and their decoding.

Protocol Buffers copies the data of a Datum twice, which for 256 × 256 × 3 bytes takes longer than cropping it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from caffe.errors import Error
from caffe.proto import caffe_pb2

_CHANNELS, _HEIGHT, _WIDTH, _LABEL, _ENCODED = (number << 3 for number in (1, 2, 3, 5, 7))
_DATA = 4 << 3 | 2
"""Tags: a field's number and wire type, 0 for a varint, 2 for length-prefixed bytes."""


class Record(NamedTuple):
    """The fields of a Datum; `data` is a view into the record."""

    channels: int
    height: int
    width: int
    data: memoryview
    label: int
    float_data: Sequence[float]
    encoded: bool


def parse_datum(record: bytes | memoryview) -> Record | caffe_pb2.Datum:
    """Parse a serialised Datum without copying its data. Raises google.protobuf's DecodeError if it is not a Datum.

    A record with other fields (float_data), with negative numbers, or a damaged one is left to Protocol Buffers.
    """
    view = memoryview(record)
    fields = {_CHANNELS: 0, _HEIGHT: 0, _WIDTH: 0, _LABEL: 0, _ENCODED: 0}
    data, position, end = view[:0], 0, len(view)
    try:
        while position < end:
            tag = view[position]
            value, position = _varint(view, position + 1)
            if tag == _DATA:
                data = view[position : position + value]
                position += value
            elif tag in fields and value < 1 << 31:
                fields[tag] = value
            else:
                break
        else:
            if position == end:
                encoded = bool(fields[_ENCODED])
                return Record(fields[_CHANNELS], fields[_HEIGHT], fields[_WIDTH], data, fields[_LABEL], (), encoded)
    except IndexError:
        pass
    datum: caffe_pb2.Datum = caffe_pb2.Datum.FromString(bytes(view))
    return datum


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

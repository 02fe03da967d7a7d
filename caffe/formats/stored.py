"""Blobs in files: BlobProto to arrays and back."""

from pathlib import Path

import numpy as np

from caffe.errors import FileError
from caffe.proto import caffe_pb2

LEGACY_AXES = ("num", "channels", "height", "width")
"""Fields of the four axes of Caffe before 2015."""


def shape_of(proto: caffe_pb2.BlobProto) -> tuple[int, ...]:
    """The shape of a BlobProto; files older than the field `shape` have four legacy axes. With neither it is a scalar."""
    if proto.HasField("shape") or not any(proto.HasField(axis) for axis in LEGACY_AXES):
        return tuple(proto.shape.dim)
    return proto.num, proto.channels, proto.height, proto.width


def values_of(proto: caffe_pb2.BlobProto, diff: bool = False) -> np.ndarray:
    """The values of a BlobProto (or its gradient), flat, float32."""
    double = proto.double_diff if diff else proto.double_data
    return np.array(double if len(double) else (proto.diff if diff else proto.data), dtype=np.float32)


def add_values(proto: caffe_pb2.BlobProto, values: np.ndarray, diff: bool = False) -> None:
    """Set the values (or the gradient) of a BlobProto that has none, as float32.

    They are merged in serialised form: adding value by value takes twenty times as long.
    """
    field = caffe_pb2.BlobProto.DIFF_FIELD_NUMBER if diff else caffe_pb2.BlobProto.DATA_FIELD_NUMBER
    content = np.ascontiguousarray(values, "<f4").tobytes()
    size: list[int] = []
    rest = len(content)
    while rest > 127:
        size.append(rest & 127 | 128)
        rest >>= 7
    if content:
        proto.MergeFromString(bytes([field << 3 | 2, *size, rest]) + content)


def add_array(proto: caffe_pb2.BlobProto, array: np.ndarray) -> None:
    """Set shape and values, as float32, of a BlobProto that has none."""
    proto.shape.dim.extend(array.shape)
    add_values(proto, array)


def read_array(path: str, what: str, do: str) -> np.ndarray:
    """Read the blob in a binaryproto, float32; errors name the expected file, `what` ("mean file"), and how to fix it, `do`."""
    proto = caffe_pb2.BlobProto()
    try:
        proto.ParseFromString(Path(path).read_bytes())
    except FileNotFoundError:
        raise FileError(path, f"no such {what}", do=do) from None
    except Exception as error:
        raise FileError(path, f"not a {what} ({error})", do=do) from error
    shape, values = shape_of(proto), values_of(proto)
    if int(np.prod(shape)) != values.size or not values.size:
        raise FileError(path, f"not a {what}: {values.size} values for shape {shape}", do=do)
    return values.reshape(shape)


def read_mean(path: str) -> np.ndarray:
    """Read the mean image in a binaryproto: channels × height × width, float32."""
    array = read_array(path, "mean file", "compute it with compute_image_mean, or correct transform_param.mean_file")
    return array.reshape(array.shape[-3:])

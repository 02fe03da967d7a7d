"""Weight files: .caffemodel (Protocol Buffers) and .caffemodel.h5 (HDF5)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.unknown_fields import UnknownFieldSet

from caffe.errors import FileError
from caffe.formats import prototxt
from caffe.formats.stored import LEGACY_AXES, values_of
from caffe.proto import caffe_pb2

_HDF5 = b"\x89HDF\r\n\x1a\n"
_LAST_AXIS, _VOLUME_DATA = (5, 0), (6, 2)
"""Numbers and wire types of fields of C3D 1.0's BlobProto; the numbers are those of data and diff in BVLC's, both of type 2."""
_RAW: dict[int, np.dtype[np.floating]] = {
    caffe_pb2.WeightsBlob.DOUBLE: np.dtype("<f8"),
    caffe_pb2.WeightsBlob.FLOAT: np.dtype("<f4"),
    caffe_pb2.WeightsBlob.FLOAT16: np.dtype("<f2"),
}


@dataclass(frozen=True)
class Stored:
    """A stored parameter: shape, values (float32), and whether the shape is the four legacy axes of 2014, or C3D 1.0's five."""

    shape: tuple[int, ...]
    values: np.ndarray
    legacy: bool = False

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it matches a parameter of that shape; a legacy shape is padded with leading axes of 1."""
        return self.shape == ((1,) * (len(self.shape) - len(shape)) + shape if self.legacy else shape)


def is_hdf5(path: str) -> bool:
    """Whether a file is HDF5, whatever its name; if there is none, whether its name says so."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(_HDF5)) == _HDF5
    except OSError:
        return path.endswith(".h5")


def read(path: str) -> dict[str, list[Stored]]:
    """Read {layer: parameters} from a .caffemodel or .caffemodel.h5; layers of the same name are concatenated."""
    return _read_hdf5(path) if is_hdf5(path) else _read_proto(path)


def _read_proto(path: str) -> dict[str, list[Stored]]:
    weights = prototxt.read_weights(path)
    layers = [(layer.name, layer.blobs) for layer in weights.layer]
    for layer in weights.layers:
        named = layer.layer if layer.HasField("layer") else layer
        layers.append((named.name, named.blobs))
    stored: dict[str, list[Stored]] = {}
    for name, blobs in layers:
        stored.setdefault(name, []).extend(_stored(blob, f'{path}: layer "{name}"') for blob in blobs)
    return stored


def _stored(blob: caffe_pb2.WeightsBlob, where: str) -> Stored:
    if not (blob.data or blob.double_data or blob.HasField("raw_data")):
        axis, values = (
            [field.data for field in UnknownFieldSet(blob) if (field.field_number, field.wire_type) == wanted]
            for wanted in (_LAST_AXIS, _VOLUME_DATA)
        )
        if axis and values:
            return _stored_volume((blob.num, blob.channels, blob.height, blob.width, axis[-1]), b"".join(values), where)
    legacy = any(blob.HasField(axis) for axis in LEGACY_AXES)
    shape = tuple(getattr(blob, axis) for axis in LEGACY_AXES) if legacy else tuple(blob.shape.dim)
    if not blob.HasField("raw_data"):
        return Stored(shape, values_of(blob), legacy)
    kind = _RAW[blob.raw_data_type]
    if not blob.HasField("raw_data_type") or len(blob.raw_data) % kind.itemsize:
        raise FileError(where, "raw values of an unknown type", "they must be float, double or half")
    return Stored(shape, np.frombuffer(blob.raw_data, kind).astype(np.float32), legacy)


def _stored_volume(shape: tuple[int, ...], content: bytes, where: str) -> Stored:
    """A parameter in C3D 1.0's own BlobProto: five axes in the fields 1 to 5, and the values in field 6."""
    if 4 * math.prod(shape) != len(content):
        raise FileError(where, f"{len(content)} bytes for shape {shape}", "values have 4 bytes each", "get the file again")
    return Stored(shape, np.frombuffer(content, "<f4").astype(np.float32), True)


def _read_hdf5(path: str) -> dict[str, list[Stored]]:
    import h5py

    if not Path(path).exists():
        raise FileError(path, "no such file")
    try:
        with h5py.File(path, "r") as file:
            layers = {}
            for name, group in _leaf_groups(file["data"]):
                arrays = [np.asarray(group[str(index)], np.float32) for index in sorted(map(int, group))]
                layers[name] = [Stored(array.shape, array) for array in arrays]
            return layers
    except (OSError, KeyError, ValueError) as error:
        raise FileError(path, f"not a .caffemodel.h5 ({error})") from error


def _leaf_groups(group: Any, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(layer name, its datasets) for each h5py group of datasets; a layer name with slashes is a path of groups."""
    import h5py

    children = {key: value for key, value in group.items() if isinstance(value, h5py.Group)}
    if len(children) < len(group) or (not children and prefix):
        yield prefix, {key: value for key, value in group.items() if key not in children}
    for key, child in children.items():
        yield from _leaf_groups(child, f"{prefix}/{key}" if prefix else key)

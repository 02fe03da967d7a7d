"""Blobs as files store them."""

from __future__ import annotations

import numpy as np

from caffe.proto import caffe_pb2


def shape_of(proto: caffe_pb2.BlobProto) -> tuple[int, ...]:
    """The shape of a stored blob; files from before `shape` existed give four legacy axes."""
    if proto.HasField("shape"):
        return tuple(proto.shape.dim)
    return proto.num, proto.channels, proto.height, proto.width


def values_of(proto: caffe_pb2.BlobProto, diff: bool = False) -> np.ndarray:
    """The values of a stored blob (or its gradient), flat, float32."""
    double = proto.double_diff if diff else proto.double_data
    return np.array(double if len(double) else (proto.diff if diff else proto.data), dtype=np.float32)

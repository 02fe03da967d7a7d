"""Databases that benchmarks read: noise, which no reader can take a short cut with."""

from pathlib import Path

import lmdb
import numpy as np

from caffe.proto import caffe_pb2

CLASSES = 10


def write(path: Path, records: int, size: int) -> Path:
    """An LMDB of images of size × size pixels and three channels; returns its path."""
    count = size * size * 3
    pixels = np.random.default_rng(0).integers(0, 256, count + records, dtype=np.uint8)
    with lmdb.open(str(path), map_size=1 << 36) as environment:
        for start in range(0, records, 1000):
            with environment.begin(write=True) as transaction:
                for number in range(start, min(start + 1000, records)):
                    data = pixels[number : number + count].tobytes()
                    datum = caffe_pb2.Datum(channels=3, height=size, width=size, data=data, label=number % CLASSES)
                    transaction.put(b"%08d" % number, datum.SerializeToString(), append=True)
    return path

"""Speed of the Data layer's reader: batches of bytes from records of 256 × 256 × 3 bytes, random crops of 227 and mirrors.

    python benchmarks/data_reader.py [--records 4096] [--batch 256] [--seconds 5]

The database is written to a temporary folder and stays in the page cache. Also: the same with mean values subtracted (float32, a
net's input on a CPU), with data augmentation, and a plain loop (lmdb, Protocol Buffers, NumPy) as the baseline; and a Data layer
of records that are JPEGs, against decoding them one after the other.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

os.environ.setdefault("GLOG_minloglevel", "2")

import cv2
import lmdb
import noise
import numpy as np
from google.protobuf import json_format, text_format

import caffe
from caffe.formats.datum import parse_datum, pixels_of
from caffe.formats.db import open_db
from caffe.numerics.generator import Generator
from caffe.proto import caffe_pb2
from caffe.transforms.transform import Transformer

CHANGES = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "min_area": 0.3, "max_aspect": 1.33, "rotation": 10}


def batches(path: str, size: int) -> Iterator[list[np.ndarray]]:
    """Batches of the database's images, endlessly, as the Data layer reads them."""
    database = open_db(path, caffe_pb2.DataParameter.LMDB)
    images = (pixels_of(parse_datum(record), None, path) for _ in cycle([0]) for record in database.values())
    while True:
        yield list(islice(images, size))


def reader(path: str, size: int) -> Iterator[np.ndarray]:
    """Transformed batches of bytes."""
    transformer = Transformer(transformation(), caffe_pb2.TRAIN, "", Generator(1))
    for images in batches(path, size):
        yield transformer.crop(images, transformer.draw(images))


def floats(path: str, size: int, augmentation: dict[str, float] | None = None) -> Iterator[object]:
    """Transformed batches of floats, a net's input on a CPU."""
    param = transformation()
    param.mean_value.extend([104, 117, 123])
    if augmentation:
        json_format.ParseDict(augmentation, param.augmentation_param)
    transformer = Transformer(param, caffe_pb2.TRAIN, "", Generator(1))
    for images in batches(path, size):
        yield transformer(images)


def loop(path: str, size: int) -> Iterator[np.ndarray]:
    """The baseline: one thread, record by record."""
    rng = np.random.default_rng(1)
    with lmdb.open(path, readonly=True, lock=False) as environment, environment.begin() as transaction:
        records = (value for _ in cycle([0]) for _, value in transaction.cursor())
        while True:
            batch = np.empty((size, 3, 227, 227), np.uint8)
            for target, record in zip(batch, islice(records, size), strict=True):
                datum = caffe_pb2.Datum.FromString(record)
                image = np.frombuffer(datum.data, np.uint8).reshape(datum.channels, datum.height, datum.width)
                top, left = rng.integers(30, size=2)
                window = image[:, top : top + 227, left : left + 227]
                target[...] = window[:, :, ::-1] if rng.integers(2) else window
            yield batch


def compressed(path: Path, records: int) -> str:
    """The path of an LMDB of JPEGs of 256 × 256 pixels, smooth ones."""
    draw = np.random.default_rng(2)
    with lmdb.open(str(path), map_size=1 << 36) as environment, environment.begin(write=True) as transaction:
        for number in range(records):
            pixels = cv2.resize(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8), (256, 256), interpolation=cv2.INTER_CUBIC)
            data = cv2.imencode(".jpg", pixels)[1].tobytes()
            datum = caffe_pb2.Datum(channels=3, height=256, width=256, data=data, encoded=True)
            transaction.put(b"%08d" % number, datum.SerializeToString(), append=True)
    return str(path)


def layer(path: str, size: int, together: bool) -> Iterator[object]:
    """Batches of a net's Data layer, whose compressed images are decoded by several threads or one after the other."""
    settings = (
        f'data_param {{ source: "{path}" batch_size: {size} backend: LMDB }} transform_param {{ crop_size: 227 mirror: true }}'
    )
    definition = caffe_pb2.NetParameter()
    text_format.Parse(f'layer {{ name: "data" type: "Data" top: "data" top: "label" {settings} }}', definition)
    net = caffe.Net(definition, caffe.TRAIN)
    net.layers[0].is_encoded = together
    while True:
        yield net.forward()


def transformation() -> caffe_pb2.TransformationParameter:
    return caffe_pb2.TransformationParameter(crop_size=227, mirror=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each; the median counts")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        noise.write(Path(folder), a.records, 256)
        jpegs = compressed(Path(folder) / "jpegs", a.records // 4)
        ways: dict[str, Callable[[], Iterator[object]]] = {
            "to bytes": lambda: reader(folder, a.batch),
            "to bytes, loop": lambda: loop(folder, a.batch),
            "to floats minus mean": lambda: floats(folder, a.batch),
            "augmented, to floats": lambda: floats(folder, a.batch, CHANGES),
            "JPEGs, Data layer": lambda: layer(jpegs, a.batch, True),
            "JPEGs, one by one": lambda: layer(jpegs, a.batch, False),
        }
        running = {name: way() for name, way in ways.items()}
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(a.rounds):
            for name, made in running.items():
                next(made)
                start, count = time.perf_counter(), 0
                while time.perf_counter() - start < a.seconds / a.rounds:
                    next(made)
                    count += a.batch
                rates[name].append(count / (time.perf_counter() - start))
        print(f"{os.cpu_count()} cores, {a.records} records, batches of {a.batch}; images/s")
        for name, values in rates.items():
            print(f"{name:26}{np.median(values):8.0f}")


if __name__ == "__main__":
    main()

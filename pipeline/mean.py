"""Compute the mean image of a database, as BVLC Caffe's compute_image_mean does, and the mean of each channel."""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from pathlib import Path

import lmdb
import numpy as np
from tqdm import tqdm

import caffe
from caffe.proto import caffe_pb2
from pipeline.command import run
from pipeline.errors import InputError
from pipeline.files import written_whole


def mean_image(database: Path) -> tuple[np.ndarray, int]:
    """The mean of all images, channels × height × width, float32, and their number.

    Summed in float32 in the database's order, as compute_image_mean does, so that not even the rounding differs.
    """
    if not (database / "data.mdb").exists():
        raise InputError(database, "no such database", do="build it first")
    try:
        environment = lmdb.open(str(database), readonly=True, lock=False)
    except lmdb.Error as error:
        raise InputError(database, f"not an LMDB ({error})", do="build it again") from None
    total, count = None, environment.stat()["entries"]
    with closing(environment), environment.begin() as transaction:
        for key, value in tqdm(transaction.cursor(), total=count, unit=" images", desc="mean", disable=None):
            datum = caffe_pb2.Datum.FromString(value)
            where = f"{database}: {key.decode(errors='replace')}"
            if datum.encoded:
                raise InputError(where, "an encoded record", "raw pixels are wanted", "build the database without --encoded")
            image = caffe.io.datum_to_array(datum)
            total = np.zeros(image.shape, np.float32) if total is None else total
            if image.shape != total.shape:
                raise InputError(where, f"shape {image.shape}", f"the first image has {total.shape}")
            total += image
    if total is None:
        raise InputError(database, "the database has no records")
    return total / np.float32(count), count


def to_blob(mean: np.ndarray) -> caffe_pb2.BlobProto:
    """The mean as compute_image_mean stores it: four legacy axes, num 1."""
    channels, height, width = mean.shape
    return caffe_pb2.BlobProto(num=1, channels=channels, height=height, width=width, data=mean.ravel())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database", type=Path)
    parser.add_argument("mean", type=Path, help="the .binaryproto to write")
    parser.add_argument("--values", type=Path, required=True, help="where the channels' means go (JSON, in BGR order)")
    a = parser.parse_args(argv)
    mean, count = mean_image(a.database)
    with written_whole(a.mean) as part, written_whole(a.values) as part_values:
        part.write_bytes(to_blob(mean).SerializeToString())
        values = [round(float(value), 4) for value in mean.mean((1, 2), dtype=np.float64)]
        part_values.write_text(json.dumps({"values": values, "shape": list(mean.shape), "images": count}) + "\n")
    print(f"{a.mean}: mean of {count} images, by channel {', '.join(f'{value:.2f}' for value in values)}")


if __name__ == "__main__":
    run(main)

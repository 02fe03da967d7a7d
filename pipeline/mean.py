"""Compute the mean image of a database, as BVLC Caffe's compute_image_mean does, and the mean of each channel."""

from __future__ import annotations

import argparse
import json
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
    """The mean of all images, channels × height × width, float32, and their number."""
    if not (database / "data.mdb").exists():
        raise InputError(database, "no such database", do="build it first")
    environment = lmdb.open(str(database), readonly=True, lock=False)
    total, count = None, 0
    with environment.begin() as transaction:
        for key, value in tqdm(
            transaction.cursor(), total=environment.stat()["entries"], unit=" images", desc="mean", disable=None
        ):
            image = caffe.io.datum_to_array(caffe_pb2.Datum.FromString(value)).astype(np.float64)
            if total is None:
                total = np.zeros_like(image)
            if image.shape != total.shape:
                raise InputError(f"{database}: {key.decode()}", f"shape {image.shape}", f"the first image has {total.shape}")
            total += image
            count += 1
    environment.close()
    if total is None:
        raise InputError(database, "the database has no records")
    return (total / count).astype(np.float32), count


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
        values = [round(float(value), 4) for value in mean.mean((1, 2))]
        part_values.write_text(json.dumps({"values": values, "shape": list(mean.shape), "images": count}) + "\n")
    print(f"{a.mean}: mean of {count} images, by channel {', '.join(f'{value:.2f}' for value in values)}")


if __name__ == "__main__":
    run(main)

"""Compute the mean image of a database, like BVLC Caffe's compute_image_mean, and each channel's mean and standard deviation."""

import json
import math
from pathlib import Path

import cv2
import numpy as np

import caffe
from caffe.proto import caffe_pb2
from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.formats.records import open_database
from pipeline.progress import progress


def statistics(database: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean image (channels × height × width, float32), standard deviation of each channel (float64) and number of images.

    The mean is summed in float32 in the database's order, to equal compute_image_mean's to the bit.
    """
    records = open_database(database)
    total, count = None, len(records)
    for key, value in progress(records.items(), total=count, desc="mean"):
        where = f"{database}: {key.decode(errors='replace')}"
        image = caffe.pixels_of(caffe.parse_datum(value), None, where)
        if total is None:
            total, sums, squares = np.zeros(image.shape, np.float32), np.zeros(len(image)), np.zeros(len(image))
        if image.shape != total.shape:
            raise InputError(where, f"shape {image.shape}", f"the first image has {total.shape}")
        total += image
        for channel, plane in enumerate(image):
            mean, deviation = (float(value[0, 0]) for value in cv2.meanStdDev(plane))
            sums[channel] += mean
            squares[channel] += deviation**2 + mean**2
    assert total is not None  # open_db refuses an empty database
    return total / np.float32(count), np.sqrt(np.maximum(squares / count - (sums / count) ** 2, 0)), count


def channel_means(mean: np.ndarray) -> list[float]:
    """The mean of each channel of a mean image, to four digits; summed exactly, as NumPy's sums depend on the processor."""
    return [round(math.fsum(plane.ravel()) / plane.size, 4) for plane in mean]


def to_blob(mean: np.ndarray) -> caffe_pb2.BlobProto:
    """The mean as compute_image_mean stores it: four legacy axes, num 1."""
    channels, height, width = mean.shape
    return caffe_pb2.BlobProto(num=1, channels=channels, height=height, width=width, data=mean.ravel())


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__)
    parser.add_argument("database", type=Path)
    parser.add_argument("mean", type=Path, help="the .binaryproto to write")
    parser.add_argument("--values", type=Path, required=True, help="the channels' means and deviations (JSON, in their order)")
    a = parser.parse_args(argv)
    mean, deviations, count = statistics(a.database)
    with written_whole(a.mean) as part, written_whole(a.values) as part_values:
        part.write_bytes(to_blob(mean).SerializeToString())
        values = channel_means(mean)
        std = [round(float(value), 4) for value in deviations]
        written = {"values": values, "std": std, "shape": list(mean.shape), "images": count}
        part_values.write_text(json.dumps(written) + "\n")
    by_channel = ", ".join(f"{value:.2f} ± {deviation:.2f}" for value, deviation in zip(values, std, strict=True))
    print(f"{a.mean}: mean of {count} images, by channel {by_channel}")


if __name__ == "__main__":
    run(main)

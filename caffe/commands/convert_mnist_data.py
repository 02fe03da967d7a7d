"""caffe convert_mnist_data: write MNIST's files, or others in the IDX format, as a database of Datum records."""

import argparse
import sys
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from caffe.commands import flags
from caffe.errors import FileError
from caffe.formats.files import read_bytes
from caffe.proto import caffe_pb2

IMAGES, LABELS = 2051, 2049
"""Magic numbers of IDX files of unsigned bytes, in three axes and in one."""
_HEADERS = {IMAGES: 16, LABELS: 8}


class Digits(NamedTuple):
    """The content of an image file and its label file.

    images  N × height × width, uint8
    labels  (N,), uint8
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]


def main(argv: list[str]) -> int:
    """`caffe convert_mnist_data [-backend lmdb] IMAGE_FILE LABEL_FILE DB`."""
    parser = flags.parser(
        "convert_mnist_data",
        "Write MNIST's files to a database; keys are the numbers %08d of the images.",
        "Without -backend, a DB whose name ends in `leveldb` is a LevelDB, as with the convert_mnist_data of 2014.",
    )
    flags.add(parser, "backend", "lmdb or leveldb (default: lmdb)", default=None, choices=flags.BACKENDS)
    add_files(parser)
    arguments = parser.parse_intermixed_args(argv)
    backend = arguments.backend or "lmdb"
    if not arguments.backend and arguments.database.rstrip("/").endswith("leveldb"):
        backend = "leveldb"
        print(f"warning: writing {arguments.database} as a LevelDB, as it is named; -backend lmdb for an LMDB", file=sys.stderr)
    with flags.logging(arguments):
        digits = read_digits(arguments.images, arguments.labels)
        write_records(arguments.database, backend, digits.images[:, None], digits.labels)
    return 0


def add_files(parser: argparse.ArgumentParser) -> None:
    """Add the arguments `images`, `labels` and `database`."""
    parser.add_argument("images", metavar="IMAGE_FILE", type=flags.existing, help="for example train-images-idx3-ubyte")
    parser.add_argument("labels", metavar="LABEL_FILE", type=flags.existing, help="for example train-labels-idx1-ubyte")
    parser.add_argument("database", metavar="DB", type=flags.path, help="the database to write")


def read_digits(images: str, labels: str) -> Digits:
    """Read an image file and its label file, unpacked.

    Raises FileError if one is missing, has another magic number or is truncated, or if there are not as many labels as images.
    """
    pixels = _read_idx(images, IMAGES, "an IDX file of images")
    classes = _read_idx(labels, LABELS, "an IDX file of labels")
    if len(pixels) != len(classes):
        raise FileError(labels, f"{len(classes)} labels", f"{images} has {len(pixels)} images", "give files that belong together")
    return Digits(pixels, classes)


def _read_idx(path: str, magic: int, what: str) -> npt.NDArray[np.uint8]:
    """The values of an IDX file: magic number and size of each axis, each in four bytes, highest first; then a byte a value."""
    content = read_bytes(path)
    if content[:2] == b"\x1f\x8b":
        raise FileError(path, "a compressed file", f"{what} is needed", f"unpack it: gunzip {path}")
    found = int.from_bytes(content[:4], "big")
    if len(content) < 4 or found != magic:
        raise FileError(path, f"magic number {found}", f"{what} has {magic}", "check that this is the right file")
    start = _HEADERS[magic]
    shape = [int.from_bytes(content[place : place + 4], "big") for place in range(4, start, 4)]
    size = start + int(np.prod(shape, dtype=object))
    if len(content) < max(start, size):
        of = " × ".join(map(str, shape))
        raise FileError(path, f"truncated: {len(content)} bytes", f"{size} are needed for {of} values", "fetch the file again")
    if not shape[0]:
        raise FileError(path, f"no {what.rpartition(' ')[2]}")
    return np.frombuffer(content, np.uint8, size - start, start).reshape(shape)


def write_records(path: str, backend: str, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> None:
    """Write a database of Datum records with keys %08d, whole or not at all, and print a line that says so.

    images  N × channels × height × width
    labels  (N,)
    Raises FileError if it exists already.
    """
    from caffe.formats.db import DatabaseWriter

    _, channels, height, width = images.shape
    with DatabaseWriter(path, backend) as write:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            datum = caffe_pb2.Datum(channels=channels, height=height, width=width, data=image.tobytes(), label=int(label))
            write(b"%08d" % number, datum.SerializeToString())
    print(f"{path}: {len(images)} records of {channels} × {height} × {width}, {backend}")

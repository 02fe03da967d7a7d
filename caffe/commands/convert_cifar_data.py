"""caffe convert_cifar_data: write CIFAR-10's binary files as databases of Datum records."""

from collections.abc import Iterator
from pathlib import Path

from caffe.commands import flags
from caffe.errors import FileError
from caffe.formats.files import read_bytes
from caffe.proto import caffe_pb2

CHANNELS, SIDE, IMAGES = 3, 32, 10000
"""Of an image (RGB), and number of images in a file."""
ROW = 1 + CHANNELS * SIDE * SIDE
"""Bytes of an image: label, then pixels."""
PARTS = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}


def main(argv: list[str]) -> int:
    """`caffe convert_cifar_data INPUT_FOLDER OUTPUT_FOLDER [DB_TYPE]`; 2014 gave no DB_TYPE."""
    parser = flags.parser(
        "convert_cifar_data",
        "Write CIFAR-10's binary files to OUTPUT_FOLDER/cifar10_train_DB_TYPE and cifar10_test_DB_TYPE; keys are %05d.",
        "Without DB_TYPE, the databases are the LevelDBs of 2014: cifar-train-leveldb and cifar-test-leveldb.",
    )
    parser.add_argument("source", metavar="INPUT_FOLDER", type=flags.path, help="with data_batch_1.bin … and test_batch.bin")
    parser.add_argument("target", metavar="OUTPUT_FOLDER", type=flags.path)
    parser.add_argument("db_type", metavar="DB_TYPE", nargs="?", choices=flags.BACKENDS, help="lmdb or leveldb")
    arguments = parser.parse_intermixed_args(argv)
    name = f"cifar10_{{}}_{arguments.db_type}" if arguments.db_type else "cifar-{}-leveldb"
    with flags.logging(arguments):
        convert(Path(arguments.source), Path(arguments.target), name, arguments.db_type or "leveldb")
    return 0


def convert(source: Path, target: Path, name: str, backend: str) -> None:
    """Write the two databases, each whole or not at all, and print a line for each.

    name  of a database in `target`, with {} for train or test
    Raises FileError, before anything is written, if a file is missing or not whole, or if a database exists already.
    """
    from caffe.formats.db import DatabaseWriter

    for files in PARTS.values():
        for file in files:
            _check(source / file)
    writers = {part: DatabaseWriter(str(target / name.format(part)), backend) for part in PARTS}
    for part, writer in writers.items():
        with writer as write:
            for number, record in enumerate(_records([source / file for file in PARTS[part]])):
                write(b"%05d" % number, record)
        print(f"{writer.source}: {IMAGES * len(PARTS[part])} records of {CHANNELS} × {SIDE} × {SIDE}, {backend}")


def _check(path: Path) -> None:
    if not path.is_file():
        do = "fetch and unpack CIFAR-10's binary version: data/cifar10/get_cifar10.sh, or roastery published fetch cifar10 FOLDER"
        raise FileError(path, "no such file", do=do)
    if (size := path.stat().st_size) != IMAGES * ROW:
        found = f"{'truncated' if size < IMAGES * ROW else 'too long'}: {size} bytes"
        do = "fetch CIFAR-10's binary version again"
        raise FileError(path, found, f"{IMAGES * ROW} are needed for {IMAGES} images and labels", do)


def _records(paths: list[Path]) -> Iterator[bytes]:
    """The serialised Datum of each image, in the order of the files."""
    for path in paths:
        content = read_bytes(path)
        for start in range(0, len(content), ROW):
            datum = caffe_pb2.Datum(channels=CHANNELS, height=SIDE, width=SIDE, label=content[start])
            datum.data = content[start + 1 : start + ROW]
            yield datum.SerializeToString()

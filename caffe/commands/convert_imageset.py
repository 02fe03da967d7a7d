"""caffe convert_imageset: write a list of images as a database of Datum records."""

import argparse
import re
from pathlib import Path

import cv2
import numpy as np

from caffe import events
from caffe.commands import flags
from caffe.errors import Error
from caffe.proto import caffe_pb2

_FORMER = "give ROOTFOLDER/ LISTFILE DB_NAME [1 to shuffle, or 0] [lmdb or leveldb] [height] [width]"


def main(argv: list[str]) -> int:
    """`caffe convert_imageset [flags] ROOTFOLDER/ LISTFILE DB_NAME`; 2014 gave flags as further arguments, see `_read_former`."""
    parser = flags.parser(
        "convert_imageset",
        "Write a list of images to a database; keys are line number and path.",
        "LISTFILE has lines `path label`. Unreadable images are logged and skipped.\n"
        "The arguments of 2014 work too: ROOTFOLDER/ LISTFILE DB_NAME [1: shuffle, or 0] [lmdb or leveldb] [height] [width];\n"
        "with them, the backend is by default leveldb, as it was then, and -g is -gray.",
    )
    for name, help in (
        ("gray", "store one channel instead of three"),
        ("shuffle", "shuffle the images"),
        ("check_size", "fail unless all records have the same size"),
        ("encoded", "store encoded images"),
    ):
        flags.add_switch(parser, name, help)
    parser.add_argument("-g", dest="gray", action="store_true", help=argparse.SUPPRESS)
    flags.add(parser, "backend", "lmdb or leveldb (default: lmdb)", default=None, choices=flags.BACKENDS)
    flags.add(parser, "resize_width", "pixels; 0 keeps the image's width", default=0, type=int)
    flags.add(parser, "resize_height", "pixels; 0 keeps the image's height", default=0, type=int)
    flags.add(parser, "encode_type", "encoding (png, jpg …); by default the file's suffix")
    parser.add_argument("root", metavar="ROOTFOLDER/", type=flags.path)
    parser.add_argument("list", metavar="LISTFILE", type=flags.existing)
    parser.add_argument("database", metavar="DB_NAME", type=flags.path)
    parser.add_argument("former", nargs="*", help=argparse.SUPPRESS)
    # A switch may have a value, as in -gray=1; in -resize_width=1 it is a number.
    arguments = parser.parse_intermixed_args([word if "resize_" in word else flags.plain_switch(word) for word in argv])
    _read_former(arguments)
    if bool(arguments.resize_width) != bool(arguments.resize_height):
        raise Error("caffe convert_imageset", "one of -resize_width and -resize_height", "give both, or neither")
    if arguments.encode_type and not arguments.encoded:
        events.encoding_assumed()
        arguments.encoded = True
    with flags.logging(arguments):
        convert(arguments)
    return 0


def _read_former(arguments: argparse.Namespace) -> None:
    """Set what the arguments of 2014 say: RANDOM_SHUFFLE_DATA, DB_BACKEND, resize_height, resize_width."""
    patterns = {"shuffle": "[01]", "backend": "|".join(flags.BACKENDS), "resize_height": r"\d+", "resize_width": r"\d+"}
    if len(arguments.former) > len(patterns):
        raise Error("caffe convert_imageset", f"{3 + len(arguments.former)} arguments", "there are at most 7", _FORMER)
    for word, (name, pattern) in zip(arguments.former, patterns.items(), strict=False):
        if not re.fullmatch(pattern, word):
            raise Error("caffe convert_imageset", f'"{word}" for {name}', f"it must match {pattern}", _FORMER)
        if name != "backend":
            setattr(arguments, name, int(word))
        else:
            arguments.backend = word
    arguments.backend = arguments.backend or ("leveldb" if arguments.former else "lmdb")


def convert(arguments: argparse.Namespace) -> None:
    """Write the database."""
    from caffe.formats.db import DatabaseWriter
    from caffe.layer_types.files import labelled_lines

    lines = labelled_lines(arguments.list)
    if arguments.shuffle:
        events.records_shuffled()
        np.random.default_rng().shuffle(lines)
    events.records_listed(len(lines))
    written = 0
    size: int | None = None
    with DatabaseWriter(arguments.database, arguments.backend) as write:
        for number, (path, label) in enumerate(lines):
            datum = create_record(arguments.root + path, label, arguments)
            if datum is None:
                events.image_unreadable(arguments.root + path)
                continue
            if arguments.check_size:
                size = len(datum.data) if size is None else size
                if len(datum.data) != size:
                    raise Error(
                        arguments.root + path, f"{len(datum.data)} bytes", f"the first record has {size}", "resize the images"
                    )
            write(b"%08d_%s" % (number, path.encode()), datum.SerializeToString())
            written += 1
            if written % 1000 == 0:
                events.records_progressed(written)
        if not written:
            raise Error(arguments.list, f"none of {len(lines)} images could be read", do=f"are they in {arguments.root}?")
    if written % 1000:
        events.records_written(written)


def create_record(path: str, label: int, arguments: argparse.Namespace) -> caffe_pb2.Datum | None:
    """Read an image file into a Datum; None if it cannot be read."""
    image = cv2.imread(path, cv2.IMREAD_GRAYSCALE if arguments.gray else cv2.IMREAD_COLOR)
    if image is None:
        return None
    resized = bool(arguments.resize_width)
    if resized:
        image = cv2.resize(image, (arguments.resize_width, arguments.resize_height))
    if not arguments.encoded:
        planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        channels, height, width = planes.shape
        return caffe_pb2.Datum(channels=channels, height=height, width=width, data=planes.tobytes(), label=label, encoded=False)
    suffix = Path(path).suffix.removeprefix(".").lower()
    kind = arguments.encode_type or suffix
    if not kind:
        events.encoding_unknown(path)
        raise Error(path, "a name without a suffix, and no -encode_type", do="give -encode_type: png, jpg …")
    if not resized and {"jpeg": "jpg"}.get(kind, kind) == {"jpeg": "jpg"}.get(suffix, suffix):
        return caffe_pb2.Datum(data=Path(path).read_bytes(), label=label, encoded=True)
    try:
        good, content = cv2.imencode(f".{kind}", image)
    except cv2.error:
        good = False
    if not good:
        raise Error("caffe convert_imageset", f"-encode_type {kind}", "OpenCV has no such encoder", "use png or jpg")
    return caffe_pb2.Datum(data=content.tobytes(), label=label, encoded=True)

"""caffe compute_image_mean: write the mean image of a database."""

from __future__ import annotations

import numpy as np

from caffe import events
from caffe.commands import flags
from caffe.errors import Error
from caffe.formats import prototxt
from caffe.proto import caffe_pb2


def main(argv: list[str]) -> int:
    """`caffe compute_image_mean [flags] INPUT_DB [OUTPUT_FILE]`."""
    parser = flags.parser("compute_image_mean", "The mean image of a database, as a binaryproto; and the mean of each channel.")
    flags.add(parser, "backend", "lmdb or leveldb (default: lmdb)", default="lmdb", choices=("lmdb", "leveldb"))
    parser.add_argument("database", metavar="INPUT_DB")
    parser.add_argument("output", metavar="OUTPUT_FILE", nargs="?")
    arguments = parser.parse_args(argv)
    with flags.logging(arguments):
        mean = mean_of(arguments.database, arguments.backend)
        if arguments.output:
            events.mean_written(arguments.output)
            channels, height, width = mean.shape
            blob = caffe_pb2.BlobProto(num=1, channels=channels, height=height, width=width)
            blob.data.extend(mean.ravel())
            prototxt.write_binary(arguments.output, blob)
        events.mean_channels(len(mean))
        for channel, value in enumerate(mean.mean((1, 2), dtype=np.float64)):
            events.mean_of_channel(channel, value)
    return 0


def mean_of(source: str, backend: str) -> np.ndarray:
    """The mean of all images of a database, channels × height × width, float32; encoded ones are decoded."""
    from caffe.formats.datum import pixels_of
    from caffe.formats.db import open_db

    names = caffe_pb2.DataParameter
    total, count = None, 0
    events.mean_begun()
    for key, value in open_db(source, names.LMDB if backend == "lmdb" else names.LEVELDB).items():
        datum = caffe_pb2.Datum()
        try:
            datum.ParseFromString(bytes(value))
        except Exception as error:
            raise Error(source, f"record {key!r} is no Datum ({error})", do="rebuild the database") from error
        pixels = pixels_of(datum, None, source)
        if total is None:
            total = np.zeros(pixels.shape, np.float64)
        if pixels.shape != total.shape:
            raise Error(
                source,
                f"record {key.decode(errors='replace')} of shape {pixels.shape}",
                f"the first has {total.shape}",
                "a mean wants images of one size; resize them",
            )
        total += pixels
        count += 1
        if count % 10000 == 0:
            events.mean_progressed(count)
    if count % 10000:
        events.mean_read(count)
    return (total / count).astype(np.float32)

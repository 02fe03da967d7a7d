"""caffe compute_image_mean: compute the mean image of a database."""

import numpy as np
import numpy.typing as npt

from caffe import events
from caffe.commands import flags
from caffe.errors import Error
from caffe.formats import prototxt
from caffe.proto import caffe_pb2


def main(argv: list[str]) -> int:
    """`caffe compute_image_mean [flags] INPUT_DB [OUTPUT_FILE [BACKEND]]`; 2014 gave the backend as third argument."""
    parser = flags.parser("compute_image_mean", "Write a database's mean image as a binaryproto; log each channel's mean.")
    flags.add(parser, "backend", "lmdb or leveldb (default: what INPUT_DB is)", default=None, choices=flags.BACKENDS)
    parser.add_argument("database", metavar="INPUT_DB", type=flags.path)
    parser.add_argument("output", metavar="OUTPUT_FILE", nargs="?", type=flags.path)
    parser.add_argument("former_backend", metavar="BACKEND", nargs="?", choices=flags.BACKENDS, help="the same as -backend")
    arguments = parser.parse_intermixed_args(argv)
    with flags.logging(arguments):
        mean = compute_mean(arguments.database, arguments.former_backend or arguments.backend)
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


def compute_mean(source: str, backend: str | None) -> npt.NDArray[np.float32]:
    """The mean of all images of a database, channels × height × width, float32; encoded images are decoded.

    backend  lmdb or leveldb; None for what the database's files are
    Raises Error if a record is no Datum, or if images differ in size.
    """
    from caffe.formats.datum import parse_datum, pixels_of
    from caffe.formats.db import open_db

    total: npt.NDArray[np.float64] = np.zeros(0)
    count = 0
    events.mean_begun()
    for key, value in open_db(source, caffe_pb2.DataParameter.DB.Value(backend.upper()) if backend else None).items():
        try:
            datum = parse_datum(value)
        except Exception as error:
            raise Error(source, f"record {key!r} is not a Datum ({error})", do="rebuild the database") from error
        pixels = pixels_of(datum, None, source)
        if not count:
            total = np.zeros(pixels.shape, np.float64)
        if pixels.shape != total.shape:
            found = f"record {key.decode(errors='replace')} of shape {pixels.shape}"
            raise Error(source, found, f"the first has {total.shape}", "resize the images to one size")
        total += pixels
        count += 1
        if count % 10000 == 0:
            events.mean_progressed(count)
    if count % 10000:
        events.mean_read(count)
    return (total / count).astype(np.float32)

"""caffe extract_features: write blobs of a net to databases, one record per image."""

import argparse
import contextlib
import re

from caffe import events
from caffe.commands import devices, flags
from caffe.engine import topology
from caffe.engine.net import Net
from caffe.errors import Error, nearest
from caffe.formats.db import DatabaseWriter
from caffe.proto import caffe_pb2


def main(argv: list[str]) -> int:
    """`caffe extract_features WEIGHTS NET BLOB[,…] DB[,…] BATCHES [DB_TYPE] [CPU|GPU] [0]`."""
    parser = flags.parser(
        "extract_features",
        "Run a net in phase TEST on its own data, and write blobs to databases of float Datums with keys %010d.",
    )
    parser.add_argument("weights", type=flags.existing, help="a .caffemodel or .caffemodel.h5")
    parser.add_argument("net", type=flags.existing, help="a prototxt with a data layer")
    parser.add_argument("blobs", help="comma-separated names")
    parser.add_argument("databases", type=flags.paths, help="comma-separated paths, one for each blob")
    parser.add_argument("batches", type=int, help="number of mini-batches")
    parser.add_argument("db_type", nargs="?", help="lmdb, or leveldb (the default, as in 2014)")
    parser.add_argument("device", nargs="*", help="CPU (the default), or GPU and its device ID, as 1 or DEVICE_ID=1")
    flags.add_numerics(parser)
    arguments = parser.parse_intermixed_args(argv)
    words = [arguments.db_type, *arguments.device] if arguments.db_type else []
    arguments.backend = words.pop(0) if words and words[0] in flags.BACKENDS else "leveldb"
    blobs, databases = arguments.blobs.split(","), arguments.databases.split(",")
    if len(blobs) != len(databases):
        raise Error("caffe extract_features", f"{len(blobs)} blobs and {len(databases)} databases", "give one for each")
    if repeated := next((path for path in databases if databases.count(path) > 1), ""):
        raise Error("caffe extract_features", f"{repeated} for two blobs", "each needs a database of its own", "give other names")
    if arguments.batches < 1:
        raise Error("caffe extract_features", f"{arguments.batches} mini-batches", "it must be at least 1")
    with flags.logging(arguments):
        extract(arguments, blobs, databases, _device(words))
    return 0


def _device(words: list[str]) -> str:
    """Translate the device arguments into a -gpu flag."""
    known = [match for word in words if (match := re.fullmatch(r"CPU|GPU|(?:DEVICE_ID=)?(\d+)", word))]
    if len(known) < len(words):
        raise Error("caffe extract_features", " ".join(words), "give lmdb or leveldb, then CPU, or GPU and its device ID")
    if "GPU" not in words:
        return ""
    return next((match[1] for match in known if match[1]), "0")


def extract(arguments: argparse.Namespace, blobs: list[str], databases: list[str], gpu: str) -> None:
    """Write the databases; each record is a Datum of one row of a blob, channels × height × width float32.

    Raises Error if a blob is not in the net, or if blobs differ in rows; FileError if a database exists already.
    """
    created = [DatabaseWriter(path, arguments.backend) for path in databases]
    devices.use_one("extract_features", gpu, arguments.numerics)
    net = Net(arguments.net, arguments.weights, caffe_pb2.TEST)
    missing = [name for name in blobs if name not in net.blobs]
    if missing:
        splits = {top for layer in net.layers if topology.is_inserted(layer.param) for top in layer.param.top}
        names = [name for name in net.blobs if name not in splits]
        do = nearest(missing[0], names) or f"there are {', '.join(names)}"
        raise Error(arguments.net, f'no blob "{missing[0]}"', do=do)
    events.extraction_begun()
    count = 0
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(database) for database in created]
        for _ in range(arguments.batches):
            net.forward()
            rows = {len(net.blobs[name].data) for name in blobs}
            if len(rows) > 1:
                raise Error(
                    arguments.net, f"blobs of {' and '.join(map(str, sorted(rows)))} rows", "each must have one row per image"
                )
            for name, write in zip(blobs, writers, strict=True):
                blob = net.blobs[name]
                datum = caffe_pb2.Datum(channels=blob.channels, height=blob.height, width=blob.width)
                for number, row in enumerate(blob.data, count):
                    del datum.float_data[:]
                    datum.float_data.extend(row.ravel())
                    write(b"%010d" % number, datum.SerializeToString())
            count += rows.pop()
    net.close()
    for name in blobs:
        events.features_extracted(count, name)
    events.extraction_ended()

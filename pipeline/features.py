"""Extract features: the values of named blobs for every record of a net's database, of another database, or of an image list.

Each blob is written in three forms: BLOB.lmdb as extract_features writes it (keys `%010d`; Datum with float_data), BLOB.npy
(images × values, float32) and BLOB.parquet (path, label, and the values as a list).
"""

from __future__ import annotations

import argparse
import contextlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import caffe
from caffe.proto import caffe_pb2
from pipeline import database, devices
from pipeline.command import run
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.images import below

SCHEMA = pa.schema([("path", pa.string()), ("label", pa.int64()), ("features", pa.list_(pa.float32()))])


@dataclass(frozen=True)
class Run:
    """What is run: a net with a Data layer, read in the TEST phase, its weights, and whether on a GPU.

    records  a database in the place of the one that the Data layer names
    """

    net: Path
    weights: Path
    gpu: bool = False
    records: Path | None = None


def data_layer(path: Path, net: caffe_pb2.NetParameter) -> caffe_pb2.LayerParameter:
    """The Data layer that the TEST phase reads."""
    for layer in net.layer:
        if layer.type == "Data" and all(rule.phase == caffe.TEST for rule in layer.include if rule.HasField("phase")):
            return layer
    raise InputError(path, "no Data layer for the TEST phase", "the images come from one", "give the test prototxt")


def read_records(source: Path) -> list[tuple[str, int]]:
    """(path, label) of every record of an LMDB; the path is what convert_imageset puts behind the number in a key."""
    try:
        environment = lmdb.open(str(source), readonly=True, lock=False)
    except lmdb.Error as error:
        raise InputError(source, f"not an LMDB ({error})", do="build the database first") from None
    with contextlib.closing(environment), environment.begin() as transaction:
        entries = []
        for key, value in transaction.cursor():
            path = re.sub(r"^\d{8}_", "", key.decode(errors="backslashreplace"))
            entries.append((path, caffe_pb2.Datum.FromString(value).label))
    return entries


def batches(job: Run, blobs: list[str], images: int) -> Iterator[dict[str, np.ndarray]]:
    """{blob: images of one batch × values, float32}, batch after batch, until the first `images` records are through."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(devices.on_gpu(job.gpu))
        net = _loaded(job, stack)
        _check(job.net, net, blobs)
        done = 0
        while done < images:
            net.forward()
            size = min(len(net.blobs[blobs[0]].data), images - done)
            yield {blob: net.blobs[blob].data[:size].reshape(size, -1).copy() for blob in blobs}
            done += size


def _loaded(job: Run, stack: contextlib.ExitStack) -> caffe.Net:
    """The net with its weights; every layer that has parameters must find its own."""
    path = job.net
    if job.records is not None:
        definition = caffe.read_net(path)
        data = data_layer(path, definition).data_param
        data.source, data.backend = str(job.records), caffe_pb2.DataParameter.LMDB
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / path.name
        caffe.write_prototxt(path, definition)
    net = caffe.Net(str(path), caffe.TEST)
    stack.callback(net.close)
    copied = net.copy_from(job.weights)
    if copied.untouched:
        raise InputError(
            job.weights,
            f"no weights for {', '.join(copied.untouched[:5])}",
            f"layers of {job.net} want them",
            "give the weights that this net was trained to",
        )
    return net


def _check(path: Path, net: caffe.Net, blobs: list[str]) -> None:
    images = next(iter(net.blobs.values())).shape[0]
    for blob in blobs:
        if blob not in net.blobs:
            known = ", ".join(net.blobs)
            raise InputError(path, f'no blob "{blob}"', f"there are {known}", caffe.nearest(blob, net.blobs))
        shape = tuple(net.blobs[blob].shape)
        if shape[:1] != (images,):
            raise InputError(
                path, f'blob "{blob}" of shape {shape}', f"features have a row for each of the batch's {images} images"
            )


def extract(job: Run, blobs: list[str], images: int) -> dict[str, np.ndarray]:
    """{blob: images × values, float32} for the first `images` records, in the database's order; all in memory."""
    parts = list(batches(job, blobs, images))
    return {blob: np.concatenate([part[blob] for part in parts]) for blob in blobs}


class Writer:
    """One blob's three files, written batch by batch; `stem` is their path without suffix, `images` how many rows will come."""

    def __init__(self, stem: Path, images: int, values: int, stack: contextlib.ExitStack):
        self.count = 0
        self.array = np.lib.format.open_memmap(stem.with_name(f"{stem.name}.npy"), "w+", np.float32, (images, values))
        size = images * (4 * values + (1 << 13)) + (1 << 20)  # a record takes whole pages of 4 KiB
        folder = stem.with_name(f"{stem.name}.lmdb")
        self.database = stack.enter_context(contextlib.closing(lmdb.open(str(folder), map_size=size, sync=False, lock=False)))
        self.table = stack.enter_context(pq.ParquetWriter(stem.with_name(f"{stem.name}.parquet"), SCHEMA))

    def add(self, rows: np.ndarray, entries: list[tuple[str, int]]) -> None:
        """Append features, images × values, and the images' paths and labels."""
        self.array[self.count : self.count + len(rows)] = rows
        with self.database.begin(write=True) as transaction:
            for number, row in enumerate(rows, self.count):
                datum = caffe_pb2.Datum(channels=len(row), height=1, width=1, float_data=row)
                transaction.put(b"%010d" % number, datum.SerializeToString(), append=True)
        paths, labels = zip(*entries, strict=True)
        self.table.write_table(pa.table([list(paths), list(labels), list(rows)], schema=SCHEMA))
        self.count += len(rows)

    def finish(self) -> None:
        """Put on disk what is still under way."""
        self.array.flush()
        self.database.sync(True)


def write(job: Run, blobs: list[str], folder: Path) -> int:
    """Write the features of every record to `folder`, whole; return how many there are."""
    entries = read_records(job.records or Path(data_layer(job.net, caffe.read_net(job.net)).data_param.source))
    with written_whole(folder) as part, contextlib.ExitStack() as stack:
        part.mkdir()
        writers: dict[str, Writer] = {}
        start = 0
        for batch in batches(job, blobs, len(entries)):
            for blob, rows in batch.items():
                if blob not in writers:
                    writers[blob] = Writer(part / blob.replace("/", "_"), len(entries), rows.shape[1], stack)
                writers[blob].add(rows, entries[start : start + len(rows)])
            start += len(rows)
        for writer in writers.values():
            writer.finish()
    return len(entries)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", type=Path, help="a prototxt with a Data layer")
    parser.add_argument("weights", type=Path)
    parser.add_argument("folder", type=Path, help="where the features go; replaced if it exists")
    parser.add_argument("--blobs", nargs="+", required=True)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--database", type=Path, help="an LMDB in the place of the net's own")
    source.add_argument("--list", type=Path, help="an image list, `path label` a line, in its place; images of the net's size")
    parser.add_argument("--root", type=Path, default=Path(), help="folder that the list's paths begin from")
    parser.add_argument("--color", choices=["color", "gray"], default="color", help="how the list's images are read")
    parser.add_argument("--gpu", action="store_true")
    a = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        records = a.database
        if a.list:
            records = Path(scratch) / "lmdb"
            classes = 1 + max(label for _, label in database.read_image_list(a.list))
            options = database.Options(classes, a.color == "color")
            database.build(a.list, below(a.root, options.color), records, options)
        count = write(Run(a.net, a.weights, a.gpu, records), list(dict.fromkeys(a.blobs)), a.folder)
    print(f"{a.folder}: {', '.join(a.blobs)} of {count} images")


if __name__ == "__main__":
    run(main)

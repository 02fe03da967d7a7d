"""Extract features: the values of named blobs for every record that a net's Data layer reads.

Each blob is written in three forms: BLOB.lmdb as extract_features writes it (keys `%010d`; Datum with float_data), BLOB.npy
(images × values, float32) and BLOB.parquet (path, label, and the values as a list).
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

import lmdb
import numpy as np
import pandas as pd

import caffe
from caffe.proto import caffe_pb2
from pipeline import devices
from pipeline.command import run
from pipeline.database import read_image_list
from pipeline.errors import InputError
from pipeline.files import written_whole


def extract(net_file: Path, weights: Path, blobs: list[str], images: int, gpu: bool = False) -> dict[str, np.ndarray]:
    """{blob: images × values, float32} for the first `images` records of the net's Data layer, in the database's order.

    net_file  a prototxt with a Data layer, read in the TEST phase
    """
    with contextlib.ExitStack() as stack:
        if gpu:
            caffe.set_device(stack.enter_context(devices.gpu()))
            caffe.set_mode_gpu()
        net = caffe.Net(str(net_file), str(weights), caffe.TEST)
        stack.callback(net.close)
        for blob in blobs:
            if blob not in net.blobs:
                known = ", ".join(net.blobs)
                raise InputError(net_file, f'no blob "{blob}"', f"there are {known}", caffe.nearest(blob, net.blobs))
        parts: dict[str, list[np.ndarray]] = {blob: [] for blob in blobs}
        count = 0
        while count < images:
            net.forward()
            for blob in blobs:
                values = net.blobs[blob].data
                parts[blob].append(values.reshape(len(values), -1).copy())
            count += len(parts[blobs[0]][-1])
    return {blob: np.concatenate(arrays)[:images] for blob, arrays in parts.items()}


def write_lmdb(features: np.ndarray, database: Path) -> None:
    """Write features as extract_features does: one Datum a row, its values as floats over the channels, label unset."""
    with written_whole(database) as part:
        environment = lmdb.open(str(part), map_size=max(1 << 24, 4 * features.nbytes + 4096 * len(features)), sync=False)
        with environment.begin(write=True) as transaction:
            for number, row in enumerate(features):
                datum = caffe_pb2.Datum(channels=len(row), height=1, width=1, float_data=row)
                transaction.put(b"%010d" % number, datum.SerializeToString(), append=True)
        environment.sync(True)
        environment.close()
        (part / "lock.mdb").unlink(missing_ok=True)


def write(net_file: Path, weights: Path, blobs: list[str], source: Path, folder: Path, gpu: bool) -> None:
    """Extract features of the images of the list `source` and write them to `folder`, whole."""
    entries = read_image_list(source)
    with written_whole(folder) as part:
        part.mkdir()
        for blob, values in extract(net_file, weights, blobs, len(entries), gpu).items():
            name = blob.replace("/", "_")
            np.save(part / f"{name}.npy", values)
            write_lmdb(values, part / f"{name}.lmdb")
            table = pd.DataFrame(entries, columns=["path", "label"]).assign(features=list(values))
            table.to_parquet(part / f"{name}.parquet", index=False)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", type=Path, help="a prototxt with a Data layer")
    parser.add_argument("weights", type=Path)
    parser.add_argument("folder", type=Path, help="where the features go; replaced if it exists")
    parser.add_argument("--blobs", nargs="+", required=True)
    parser.add_argument("--list", type=Path, required=True, help="the image list that the net's database was built from")
    parser.add_argument("--gpu", action="store_true")
    a = parser.parse_args(argv)
    write(a.net, a.weights, a.blobs, a.list, a.folder, a.gpu)
    print(f"{a.folder}: {', '.join(a.blobs)}")


if __name__ == "__main__":
    run(main)

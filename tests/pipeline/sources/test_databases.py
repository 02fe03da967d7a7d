"""Existing databases as a dataset: LMDB and LevelDB, unchanged and re-encoded, and invalid ones."""

import json

import cv2
import numpy as np
import pytest

from caffe.formats.db import DatabaseWriter
from caffe.proto import caffe_pb2
from pipeline.formats.records import channels_of
from tests.conftest import needs_leveldb
from tests.pipeline.conftest import records

REUSE = ("pipeline.sources.databases", "mine/train", "mine/val", "out")


def datum(image, label, encode=None):
    if encode:
        return caffe_pb2.Datum(data=cv2.imencode(f".{encode}", image.transpose(1, 2, 0))[1].tobytes(), label=label, encoded=True)
    channels, height, width = image.shape
    return caffe_pb2.Datum(channels=channels, height=height, width=width, data=image.tobytes(), label=label)


@pytest.fixture
def mine(tmp_path):
    """mine(backend, encode) writes databases of 6 and 3 records with labels 0 to 2; gives their records by key."""

    def write(backend="lmdb", encode=None, change=None):
        rng = np.random.default_rng(0)
        (tmp_path / "mine").mkdir()
        written = {}
        for part, count in (("train", 6), ("val", 3)):
            images = rng.integers(0, 256, (count, 3, 8, 6), dtype=np.uint8)
            records = [datum(image, number % 3, encode) for number, image in enumerate(images)]
            if change and part == "val":
                change(records[1])
            written[part] = {b"%05d" % number: record.SerializeToString() for number, record in enumerate(records)}
            with DatabaseWriter(str(tmp_path / "mine" / part), backend) as put:
                for key, value in written[part].items():
                    put(key, value)
        return written

    return write


@pytest.mark.parametrize("backend", ["lmdb", pytest.param("leveldb", marks=needs_leveldb)])
@pytest.mark.parametrize("encode", [None, "png"])
def test_records_are_copied_unchanged(command, tmp_path, mine, backend, encode):
    written = mine(backend, encode)
    done = command(*REUSE, *(["--channels", "RGB"] if encode == "png" else []))
    assert done.returncode == 0, done.stderr
    for part in ("train", "val"):
        assert dict(records(tmp_path / "out/lmdb" / part)) == written[part]
        manifest = json.loads((tmp_path / f"out/lmdb/{part}.manifest.json").read_text())
        assert (manifest["images"], manifest["classes"], manifest["shape"]) == (len(written[part]), 3, [3, 8, 6])
        assert channels_of(tmp_path / "out/lmdb" / part) == ("RGB" if encode == "png" else "BGR")
    lists = tmp_path / "out/lists"
    assert (lists / "val.txt").read_text() == "00000 0\n00001 1\n00002 2\n"
    assert (lists / "labels.txt").read_text() == "0\n1\n2\n"
    assert (lists / "sizes.csv").read_text() == "height,width,images\n8,6,9\n"
    assert {path.name for path in lists.iterdir()} >= {
        "classes.csv",
        "infogain.binaryproto",
        "duplicates.csv",
        "synset_words.txt",
    }


def test_records_are_re_encoded_without_loss(command, tmp_path, mine):
    written = mine()
    assert command(*REUSE, "--encode", "png", "--threads", 2).returncode == 0
    for key, value in records(tmp_path / "out/lmdb/train"):
        before, after = (caffe_pb2.Datum.FromString(one) for one in (written["train"][key], value))
        assert (after.encoded, after.label) == (True, before.label)
        pixels = cv2.imdecode(np.frombuffer(after.data, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(pixels.transpose(2, 0, 1).ravel(), np.frombuffer(before.data, np.uint8))
    assert command("pipeline.sources.databases", "out/lmdb/train", "out/lmdb/val", "again", "--encode", "raw").returncode == 0
    for key, value in records(tmp_path / "again/lmdb/train"):
        before, after = (caffe_pb2.Datum.FromString(one) for one in (written["train"][key], value))
        assert (before.data, before.label, before.height) == (after.data, after.label, after.height)


def test_class_names_are_read_from_a_file(command, tmp_path, mine):
    mine()
    (tmp_path / "names.txt").write_text("cat\ndog\nowl\nyak\n")
    assert command(*REUSE, "--names", "names.txt").returncode == 0
    assert (tmp_path / "out/lists/labels.txt").read_text() == "cat\ndog\nowl\nyak\n"


def wrong_label(record):
    record.label = 7


def wrong_shape(record):
    record.height, record.width = 6, 8


def not_an_image(record):
    record.data, record.encoded = b"no image", True


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (wrong_label, ["val: 00001", "label 7", "there are 3 classes"]),
        (wrong_shape, ["val", "records of 3×6×8 and 3×8×6"]),
        (not_an_image, ["val: 00001", "cannot be decoded"]),
    ],
)
def test_an_invalid_record_is_named_and_nothing_is_written(fails, tmp_path, mine, change, said):
    mine(change=change)
    (tmp_path / "names.txt").write_text("cat\ndog\nowl\n")
    fails(said, *REUSE, "--names", "names.txt", leaves=("data.mdb", "lock.mdb", "train.manifest.json"))
    assert not (tmp_path / "out/lists").exists()
    assert not (tmp_path / "out/lmdb/val").exists()


def test_a_folder_without_a_database_is_named(fails, tmp_path, mine):
    mine()
    (tmp_path / "mine/val/data.mdb").unlink()
    fails(["mine/val: no database", "an LMDB's folder has data.mdb"], *REUSE)
    fails(["nowhere: no such database"], "pipeline.sources.databases", "nowhere", "mine/val", "out")

"""Databases and files: written completely or not at all; damage is reported as one error."""

import os
import subprocess
import sys

import numpy as np
import pytest

import caffe
from caffe.proto import caffe_pb2

DB = caffe_pb2.DataParameter


def write(path, backend="lmdb", count=40):
    with caffe.db.DatabaseWriter(path, backend) as put:
        for number in range(count):
            put(b"%08d" % number, caffe.io.array_to_datum(np.full((3, 20, 20), number, np.uint8), number % 2).SerializeToString())


def test_open_db_recognises_an_lmdb(tmp_path):
    write(tmp_path / "db")
    for opened in (caffe.open_db(tmp_path / "db"), caffe.open_db(str(tmp_path / "db/data.mdb"))):
        assert (type(opened), len(opened)) == (caffe.db.LMDBFile, 40)
        keys, values = zip(*opened.items(), strict=True)
        assert keys == tuple(b"%08d" % number for number in range(40))
        assert caffe.parse_datum(values[7]).label == 1


def test_open_db_recognises_a_leveldb(tmp_path):
    pytest.importorskip("plyvel")
    write(tmp_path / "db", "leveldb")
    opened = caffe.open_db(tmp_path / "db")
    assert (type(opened), len(opened)) == (caffe.db.LevelDB, 40)
    assert opened is caffe.open_db(tmp_path / "db")  # a process may open one only once


@pytest.mark.parametrize(("backend", "name"), [(None, "lmdb"), (DB.LMDB, "lmdb"), (DB.LEVELDB, "leveldb")])
def test_a_missing_database_is_answered_with_the_command_that_builds_it(tmp_path, monkeypatch, backend, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(caffe.FileError) as raised:
        caffe.open_db("nowhere", backend)
    assert (raised.value.where, raised.value.found) == ("nowhere", f"no such database (relative to {tmp_path})")
    assert f"caffe convert_imageset -backend {name} IMAGES/ LIST nowhere" in raised.value.do


def test_a_folder_that_is_not_a_database_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(caffe.FileError) as raised:
        caffe.open_db(tmp_path / "empty")
    assert raised.value.where == str(tmp_path / "empty")
    assert raised.value.expected == "an LMDB's folder has data.mdb, a LevelDB's CURRENT"


def test_a_database_without_records_is_named(tmp_path):
    write(tmp_path / "db", count=0)
    with pytest.raises(caffe.FileError, match="has no records"):
        caffe.open_db(tmp_path / "db")


READERS = {
    "mean": "from pipeline.dataset.mean import statistics; statistics(path)",
    "segmentation": "from pipeline.nets.segmentation import Pairs; Pairs.read(path, path)",
    "gallery": "from pipeline.report.gallery import labelled_records; list(labelled_records(path, 2))",
    "augmentation": "from pipeline.report.augmentation_examples import examples\n"
    "from caffe.proto import caffe_pb2; examples(path, caffe_pb2.AugmentationParameter(), 1)",
}


@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_database_gives_one_error_in_every_reader(tmp_path, reader):
    write(tmp_path / "db")
    content = bytearray((tmp_path / "db/data.mdb").read_bytes())
    content[2 * 4096 :] = bytes(len(content) - 2 * 4096)  # the first pages point to the records, which are erased
    (tmp_path / "db/data.mdb").write_bytes(content)
    code = f"""
import sys, pathlib, caffe
path = pathlib.Path(sys.argv[1])
try:
    {READERS[reader].replace(chr(10), chr(10) + "    ")}
except caffe.Error as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "db"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{tmp_path / 'db'}: not a readable LMDB: page ")


def test_a_database_with_missing_records_is_named(tmp_path):
    write(tmp_path / "db")
    content = bytearray((tmp_path / "db/data.mdb").read_bytes())
    for meta in (0, 4096):
        place = meta + 16 + 24 + 48 + 32  # offset of the record count: page header, meta, tree of free pages, tree of records
        if content[place] == 40:
            content[place] = 41
    (tmp_path / "db/data.mdb").write_bytes(content)
    database = caffe.open_db(tmp_path / "db")
    assert len(database) == 41
    with pytest.raises(caffe.FileError, match="it has 40 of its 41 records"):
        list(database.items())


# ---- files


def test_a_file_gets_its_final_name_only_when_complete(tmp_path):
    target = tmp_path / "deep/file"
    with caffe.written_whole(target) as part:
        part.write_text("new")
        assert part.parent == target.parent
        assert not target.exists()
    assert [path.name for path in target.parent.iterdir()] == ["file"]
    assert target.read_text() == "new"


def write_half_a_file(part):
    part.write_text("half")
    raise KeyError


def write_half_a_folder(part):
    part.mkdir()
    write_half_a_file(part / "one")


@pytest.mark.parametrize("write_half", [write_half_a_file, write_half_a_folder])
def test_the_old_file_is_kept_when_writing_fails(tmp_path, write_half):
    target = tmp_path / "target"
    target.write_text("old")
    with pytest.raises(KeyError), caffe.written_whole(target) as part:
        write_half(part)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"target": "old"}


def test_a_new_folder_replaces_the_old_one_and_leftovers_of_a_killed_process(tmp_path):
    for name in ("target", ".target.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").write_text("old")
    with caffe.written_whole(tmp_path / "target") as part:
        part.mkdir()
        (part / "new").write_text("new")
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {"target", "target/new"}


def test_saved_weights_are_kept_when_saving_new_ones_fails(tmp_path, monkeypatch):
    net = caffe_pb2.NetParameter(layer=[caffe_pb2.LayerParameter(name="x", type="Input", top=["x"])])
    net.layer[0].input_param.shape.add(dim=[1])
    monkeypatch.chdir(tmp_path)
    made = caffe.Net(net, phase=caffe.TEST)
    made.save("net.caffemodel")
    before = (tmp_path / "net.caffemodel").read_bytes()

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        made.save("net.caffemodel")
    assert [path.name for path in tmp_path.iterdir()] == ["net.caffemodel"]
    assert (tmp_path / "net.caffemodel").read_bytes() == before


def test_written_whole_loads_no_heavy_package():
    code = "import sys, caffe; caffe.written_whole; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "google.protobuf", "cv2", "lmdb"} & set(done.stdout.split()) == set()

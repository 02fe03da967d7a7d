"""convert_imageset, compute_image_mean and extract_features, compared with recorded output of BVLC Caffe."""

import shutil
import subprocess
import sys

import cv2
import lmdb
import numpy as np
import pytest

import caffe
from caffe import cli
from caffe.formats.db import DatabaseWriter, open_db
from caffe.formats.lmdb_file import LMDBFile
from caffe.proto import caffe_pb2
from tests.conftest import GOLDEN, SHARED, needs_leveldb, needs_shared

DATA = GOLDEN / "data"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the recorded images and their list."""
    shutil.copytree(DATA / "images", tmp_path / "images")
    shutil.copy(DATA / "list.txt", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def records(path):
    return [(key, caffe_pb2.Datum.FromString(bytes(value))) for key, value in LMDBFile(path).items()]


@pytest.mark.parametrize("path", sorted(DATA.glob("records_*.npz")), ids=lambda path: path.stem)
def test_convert_imageset_writes_the_keys_and_records_of_bvlc_caffe(path, folder):
    recorded = np.load(path)
    assert cli.main(["convert_imageset", *map(str, recorded["args"]), "images/", "list.txt", "db"]) == 0
    written = records("db")
    assert [key for key, _ in written] == [bytes(key) for key in recorded["keys"]]
    for number, (_, datum) in enumerate(written):
        want = caffe_pb2.Datum.FromString(recorded[f"value_{number}"].tobytes())
        if not want.encoded:
            # Decoders of JPEG differ in the last bit of a pixel.
            got, pixels = (np.frombuffer(each.data, np.uint8).astype(int) for each in (datum, want))
            assert abs(got - pixels).max() <= 2
        else:
            got, pixels = (cv2.imdecode(np.frombuffer(each.data, np.uint8), cv2.IMREAD_UNCHANGED) for each in (datum, want))
            assert abs(got.astype(int) - pixels).max() <= 2
        datum.data = want.data
        assert datum.SerializeToString() == want.SerializeToString()


@needs_leveldb
def test_a_leveldb_is_written_and_read(folder):
    words = ["-backend", "leveldb", "-resize_height=8", "-resize_width=8", "-gray=true", "images/", "list.txt"]
    assert cli.main(["convert_imageset", *words, "db"]) == 0
    assert cli.main(["compute_image_mean", "-backend=leveldb", "db", "mean.binaryproto"]) == 0
    blob = caffe_pb2.BlobProto.FromString((folder / "mean.binaryproto").read_bytes())
    assert (blob.num, blob.channels, blob.height, blob.width) == (1, 1, 8, 8)


@pytest.mark.parametrize(("flag", "channels"), [("-gray=True", 1), ("--gray=T", 1), ("-gray=FALSE", 3), ("-gray=0", 3)])
def test_boolean_flags_accept_gflags_spellings(flag, channels, folder):
    assert cli.main(["convert_imageset", flag, "images/", "list.txt", "db"]) == 0
    assert records("db")[0][1].channels == channels


def test_an_unreadable_image_is_skipped(folder):
    with (folder / "list.txt").open("a") as file:
        file.write("missing.jpg 3\n")
    assert cli.main(["convert_imageset", "images/", "list.txt", "db"]) == 0
    assert len(records("db")) == 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["images/", "missing.txt", "db"], "no such image list"),
        (["nowhere/", "list.txt", "db"], "none of 10 images could be read"),
        (["-check_size", "images/", "list.txt", "db"], "the first record has"),
        (["-resize_width=3", "images/", "list.txt", "db"], "give both, or neither"),
        (["-encode_type=webm", "images/", "list.txt", "db"], "no such encoder"),
    ],
)
def test_a_failing_convert_imageset_prints_one_line_and_leaves_no_files(words, message, folder, capfd):
    assert cli.main(["convert_imageset", *words]) == 1
    assert message in capfd.readouterr().err.splitlines()[-1]
    assert sorted(path.name for path in folder.iterdir()) == ["images", "list.txt"]


def test_an_existing_database_is_not_overwritten(folder, capfd):
    assert cli.main(["convert_imageset", "images/", "list.txt", "db"]) == 0
    before = records("db")
    assert cli.main(["convert_imageset", "-gray", "images/", "list.txt", "db"]) == 1
    assert "it exists already" in capfd.readouterr().err
    assert records("db") == before


@pytest.mark.parametrize("name", ["gray", "plain_resize"])
def test_the_mean_equals_that_of_bvlc_caffe(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DATA / f"db_{name}", "db")
    assert cli.main(["compute_image_mean", "db", "mean.binaryproto"]) == 0
    got = caffe_pb2.BlobProto.FromString((tmp_path / "mean.binaryproto").read_bytes())
    want = caffe_pb2.BlobProto.FromString((DATA / f"mean_{name}.binaryproto").read_bytes())
    np.testing.assert_allclose(got.data, want.data, rtol=1e-6)
    del got.data[:], want.data[:]
    assert got == want


def test_the_mean_of_images_of_different_sizes_is_an_error(folder, capfd):
    assert cli.main(["convert_imageset", "images/", "list.txt", "db"]) == 0
    assert cli.main(["compute_image_mean", "db", "mean.binaryproto"]) == 1
    assert "resize the images to one size" in capfd.readouterr().err
    assert not (folder / "mean.binaryproto").exists()


@needs_shared
def test_extracted_features_equal_those_of_bvlc_caffe(tmp_path, monkeypatch):
    from tests.caffe.layer_types.test_published import idx

    monkeypatch.chdir(tmp_path)
    environment = lmdb.open("mnist_test_lmdb", map_size=1 << 28)
    images, labels = (idx(SHARED / f"data/mnist/t10k-{part}-ubyte.gz") for part in ("images-idx3", "labels-idx1"))
    with environment.begin(write=True) as transaction:
        for number, (image, label) in enumerate(zip(images[:200], labels, strict=False)):
            datum = caffe_pb2.Datum(channels=1, height=28, width=28, data=image.tobytes(), label=int(label))
            transaction.put(b"%08d" % number, datum.SerializeToString(), append=True)
    environment.close()
    train = SHARED / "golden/train"
    words = [str(train / "traj_iter_200.caffemodel"), str(train / "lenet_train_test.prototxt"), "ip1,pool2", "a,b", "2", "lmdb"]
    done = subprocess.run([sys.executable, "-m", "caffe", "extract_features", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    recorded = np.load(train / "features.npz")
    for name, database in (("ip1", "a"), ("pool2", "b")):
        written = records(database)
        assert [key for key, _ in written] == [bytes(key) for key in recorded[f"feat_{name}_keys"]]
        for (_, datum), want in zip(written, recorded[f"feat_{name}"], strict=False):
            assert (datum.channels, datum.height, datum.width) == want.shape
            np.testing.assert_allclose(caffe.io.datum_to_array(datum), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("number", "message"), [("999", "-gpu 999: "), ("DEVICE_ID=999", "-gpu 999: "), ("first", "GPU and its device ID")]
)
def test_an_invalid_gpu_number_for_extract_features_is_an_error(number, message, folder, capfd):
    assert cli.main(["extract_features", "w.caffemodel", "n.prototxt", "ip", "db", "1", "lmdb", "GPU", number]) == 1
    assert message in capfd.readouterr().err


@pytest.mark.parametrize("backend", ["lmdb", pytest.param("leveldb", marks=needs_leveldb)])
def test_pending_records_are_written_once_they_reach_the_size_limit(tmp_path, monkeypatch, backend):
    monkeypatch.setattr(DatabaseWriter, "BYTES", 5000)
    writer, waiting = DatabaseWriter(str(tmp_path / "db"), backend), []
    with writer as write:
        for number in range(10):
            write(b"%02d" % number, bytes([number]) * 2000)
            waiting.append(len(writer._pending))
    assert waiting == [1, 2, 0, 1, 2, 0, 1, 2, 0, 1]
    kind = caffe_pb2.DataParameter.LMDB if backend == "lmdb" else caffe_pb2.DataParameter.LEVELDB
    assert [bytes(value)[:1] for value in open_db(str(tmp_path / "db"), kind).values()] == [bytes([n]) for n in range(10)]

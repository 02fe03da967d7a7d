"""convert_imageset, compute_image_mean and extract_features with the arguments of 2014, in the place of flags."""

import cv2
import numpy as np
import pytest

import caffe
from caffe import cli
from caffe.formats.db import open_db
from caffe.proto import caffe_pb2
from tests.conftest import needs_leveldb

NET = """
name: "features"
layers { name: "data" type: IMAGE_DATA top: "data" top: "label"
  image_data_param { source: "file_list.txt" batch_size: 2 new_height: 6 new_width: 6 mean_file: "mean.binaryproto" } }
layers { name: "fc6" type: INNER_PRODUCT bottom: "data" top: "fc6"
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layers { name: "fc7" type: INNER_PRODUCT bottom: "fc6" top: "fc7"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with six images of different sizes in images/, and their lists for training and for features."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    random = np.random.default_rng(0)
    names = [f"{number}.png" for number in range(6)]
    for number, name in enumerate(names):
        cv2.imwrite(str(tmp_path / "images" / name), random.integers(0, 256, (8 + number, 9, 3), dtype=np.uint8))
    (tmp_path / "list.txt").write_text("".join(f"{name} {number % 2}\n" for number, name in enumerate(names)))
    (tmp_path / "file_list.txt").write_text("".join(f"{tmp_path}/images/{name} 0\n" for name in names))
    return tmp_path


def records(path, backend):
    kind = caffe_pb2.DataParameter.DB.Value(backend.upper())
    return {bytes(key): caffe_pb2.Datum.FromString(bytes(value)) for key, value in open_db(path, kind).items()}


def convert(*words):
    return cli.main(["convert_imageset", "images/", "list.txt", "db", *words])


@needs_leveldb
@pytest.mark.usefixtures("folder")
def test_convert_imageset_reads_shuffle_backend_height_and_width():
    assert convert("1", "leveldb", "25", "26") == 0
    written = records("db", "leveldb")
    assert {(datum.channels, datum.height, datum.width) for datum in written.values()} == {(3, 25, 26)}
    assert [key[:9] for key in written] == [b"%08d_" % number for number in range(6)]
    assert {key[9:]: datum.label for key, datum in written.items()} == {b"%d.png" % n: n % 2 for n in range(6)}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("words", "backend", "sizes"),
    [
        (["0", "lmdb"], "lmdb", {(8 + number, 9) for number in range(6)}),
        (["--resize_height=4", "--resize_width=5"], "lmdb", {(4, 5)}),
        (["0", "lmdb", "4", "5", "-shuffle"], "lmdb", {(4, 5)}),
        (["--shuffle", "0", "--backend", "lmdb"], "lmdb", {(8 + number, 9) for number in range(6)}),
        pytest.param(["1"], "leveldb", {(8 + number, 9) for number in range(6)}, marks=needs_leveldb),
        pytest.param(["0", "leveldb", "0", "0"], "leveldb", {(8 + number, 9) for number in range(6)}, marks=needs_leveldb),
        pytest.param(["-backend=leveldb"], "leveldb", {(8 + number, 9) for number in range(6)}, marks=needs_leveldb),
    ],
)
def test_flags_and_arguments_of_2014_may_be_mixed(words, backend, sizes):
    assert convert(*words) == 0
    assert {(datum.height, datum.width) for datum in records("db", backend).values()} == sizes


@pytest.mark.usefixtures("folder")
def test_a_leading_g_stores_one_channel_and_0_keeps_the_order():
    assert cli.main(["convert_imageset", "-g", "images/", "list.txt", "db", "0", "lmdb"]) == 0
    written = records("db", "lmdb")
    assert {datum.channels for datum in written.values()} == {1}
    assert list(written) == [b"%08d_%d.png" % (number, number) for number in range(6)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["yes"], '"yes" for shuffle, but it must match [01]'),
        (["1", "lmbd"], '"lmbd" for backend, but it must match lmdb|leveldb'),
        (["1", "lmdb", "big", "256"], '"big" for resize_height'),
        (["1", "lmdb", "256", "256", "0"], "8 arguments, but there are at most 7"),
        (["1", "lmdb", "256"], "one of -resize_width and -resize_height, but give both"),
    ],
)
def test_an_argument_that_cannot_be_meant_is_an_error_in_one_line(folder, capsys, words, message):
    assert convert(*words) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "db").exists()


@pytest.mark.parametrize("backend", ["lmdb", pytest.param("leveldb", marks=needs_leveldb)])
@pytest.mark.usefixtures("folder")
def test_compute_image_mean_recognises_the_database_and_accepts_its_backend_as_third_argument(backend):
    assert convert("0", backend, "4", "5") == 0
    forms = {"detected": [], "third": [backend], "flag": [f"-backend={backend}"]}
    for name, words in forms.items():
        assert cli.main(["compute_image_mean", "db", name, *words]) == 0
    expected = np.mean([caffe.io.datum_to_array(datum) for datum in records("db", backend).values()], axis=0)
    for name in forms:
        with open(name, "rb") as file:  # noqa: PTH123
            mean = caffe.io.blobproto_to_array(caffe_pb2.BlobProto.FromString(file.read()))
        np.testing.assert_allclose(mean[0], expected, rtol=1e-6)


@pytest.mark.usefixtures("folder")
def test_compute_image_mean_says_so_if_the_backend_is_another(capsys):
    assert convert("0", "lmdb", "4", "5") == 0
    assert cli.main(["compute_image_mean", "db", "mean", "leveldb"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: db: ")
    assert "LevelDB" in error or "plyvel" in error


# ---- extract_features


@pytest.fixture
def net(folder):
    """A V1 net whose ImageData layer subtracts a mean, and its weights; returns the fc7 of the first four images."""
    (folder / "imagenet_val.prototxt").write_text(NET)
    mean = caffe.io.array_to_blobproto(np.full((1, 3, 6, 6), 100, np.float32))
    (folder / "mean.binaryproto").write_bytes(mean.SerializeToString())
    made = caffe.Net("imagenet_val.prototxt", caffe.TEST)
    made.save("small.caffemodel")
    expected = [made.forward(blobs=["fc7"])["fc7"].copy() for _ in range(2)]
    made.close()
    return np.concatenate(expected)


def extract(*words, blobs="fc7", out="out"):
    return cli.main(["extract_features", "small.caffemodel", "imagenet_val.prototxt", blobs, out, "2", *words])


@pytest.mark.parametrize(
    ("words", "backend"),
    [
        pytest.param([], "leveldb", marks=needs_leveldb),
        pytest.param(["CPU"], "leveldb", marks=needs_leveldb),
        pytest.param(["leveldb", "CPU", "0"], "leveldb", marks=needs_leveldb),
        (["lmdb"], "lmdb"),
        (["lmdb", "CPU"], "lmdb"),
    ],
)
def test_extract_features_writes_a_leveldb_unless_a_backend_is_given(net, words, backend):
    assert extract(*words) == 0
    written = records("out", backend)
    assert list(written) == [b"%010d" % number for number in range(4)]
    np.testing.assert_allclose([datum.float_data for datum in written.values()], net, rtol=1e-5)


@needs_leveldb
@pytest.mark.usefixtures("net")
def test_a_second_run_that_meets_its_output_fails_and_leaves_it_alone(folder, capsys):
    assert extract() == 0
    before = records("out", "leveldb")
    assert extract(blobs="fc6,fc7", out="new,out") == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: out: it exists already; delete it, or give another name"
    assert records("out", "leveldb") == before
    assert not (folder / "new").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lmbd"], "lmbd, but give lmdb or leveldb, then CPU, or GPU and its device ID"),
        (["CPU", "lmdb"], "give lmdb or leveldb, then CPU, or GPU and its device ID"),
    ],
)
@pytest.mark.usefixtures("net")
def test_an_unknown_backend_or_device_is_an_error(words, message, capsys):
    assert extract(*words) == 1
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("net")
def test_two_blobs_cannot_be_written_to_one_database(folder, capsys):
    assert extract("lmdb", blobs="fc6,fc7", out="out,out") == 1
    assert "out for two blobs, but each needs a database of its own" in capsys.readouterr().err
    assert not (folder / "out").exists()


@pytest.mark.parametrize(("blob", "do"), [("fc77", 'did you mean "fc7"?'), ("softmax", "there are data, label, fc6, fc7, a, b")])
@pytest.mark.usefixtures("net")
def test_a_missing_blob_is_answered_with_the_prototxt_s_names_alone(folder, capsys, blob, do):
    silent = 'layers { name: "%s" type: SPLIT bottom: "fc7" top: "%s" } layers { name: "%s" type: SILENCE bottom: "%s" }'
    (folder / "imagenet_val.prototxt").write_text(NET + "".join(silent % (name, name, name + "s", name) for name in "ab"))
    assert any("_split_" in name for name in caffe.Net("imagenet_val.prototxt", caffe.TEST).blobs)
    assert extract("lmdb", blobs=blob) == 1
    assert f'imagenet_val.prototxt: no blob "{blob}"; {do}\n' in capsys.readouterr().err
    assert not (folder / "out").exists()

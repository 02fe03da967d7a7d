"""convert_mnist_data, convert_mnist_siamese_data and convert_cifar_data: the records of BVLC Caffe's tools, from small files."""

import gzip

import numpy as np
import pytest

from caffe import cli
from caffe.commands import convert_cifar_data
from caffe.formats.db import open_db
from caffe.proto import caffe_pb2
from tests.conftest import SHARED, needs_leveldb, needs_shared


def idx(values):
    """The content of an IDX file of unsigned bytes."""
    return bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape) + values.tobytes()


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """60 images of 5 × 4 and their labels, as the files `images` and `labels` of the working folder."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60, 5, 4), dtype=np.uint8)
    labels = random.integers(0, 3, 60, dtype=np.uint8)
    labels[0], labels[1] = 0, 255
    (tmp_path / "images").write_bytes(idx(images))
    (tmp_path / "labels").write_bytes(idx(labels))
    return images, labels


def records(path, backend):
    """[(key, record)] of a database that must be of this backend."""
    return [(key, bytes(value)) for key, value in open_db(path, caffe_pb2.DataParameter.DB.Value(backend.upper())).items()]


def field(number, value):
    """A field of a serialised message: a number below 128 or two bytes of a larger one, or bytes."""
    if isinstance(value, bytes):
        return bytes([number << 3 | 2, *varint(len(value))]) + value
    return bytes([number << 3, *varint(value)])


def varint(value):
    return [value] if value < 128 else [value & 127 | 128, *varint(value >> 7)]


def datum(channels, height, width, data, label):
    """A Datum, byte by byte, with the fields that BVLC Caffe's tools set and no other."""
    return b"".join(field(number, value) for number, value in enumerate((channels, height, width, data, label), 1))


@pytest.mark.parametrize("backend", ["lmdb", pytest.param("leveldb", marks=needs_leveldb)])
@pytest.mark.parametrize("flag_first", [True, False])
def test_convert_mnist_data_writes_each_image_with_its_number_as_key(digits, backend, flag_first, capsys):
    words, flag = ["images", "labels", "db"], [f"--backend={backend}"]
    assert cli.main(["convert_mnist_data", *(flag + words if flag_first else words + flag)]) == 0
    assert capsys.readouterr().out == f"db: 60 records of 1 × 5 × 4, {backend}\n"
    expected = [
        (b"%08d" % n, datum(1, 5, 4, image.tobytes(), label)) for n, (image, label) in enumerate(zip(*digits, strict=True))
    ]
    assert records("db", backend) == expected


@needs_leveldb
@pytest.mark.usefixtures("digits")
def test_a_database_named_leveldb_is_one_as_in_2014_unless_backend_is_given(capsys):
    assert cli.main(["convert_mnist_data", "images", "labels", "mnist-train-leveldb"]) == 0
    assert (
        capsys.readouterr().err
        == "warning: writing mnist-train-leveldb as a LevelDB, as it is named; -backend lmdb for an LMDB\n"
    )
    assert len(records("mnist-train-leveldb", "leveldb")) == 60
    assert cli.main(["convert_mnist_data", "-backend", "lmdb", "images", "labels", "other-leveldb"]) == 0
    assert len(records("other-leveldb", "lmdb")) == 60
    assert cli.main(["convert_mnist_data", "images", "labels", "mnist"]) == 0
    assert len(records("mnist", "lmdb")) == 60


@needs_shared
def test_convert_mnist_data_reads_mnist(tmp_path):
    for part in ("images-idx3", "labels-idx1"):
        content = gzip.decompress((SHARED / f"data/mnist/t10k-{part}-ubyte.gz").read_bytes())
        (tmp_path / part).write_bytes(content)
    assert cli.main(["convert_mnist_data", *(str(tmp_path / name) for name in ("images-idx3", "labels-idx1", "db"))]) == 0
    written = records(tmp_path / "db", "lmdb")
    assert (len(written), written[9999][0]) == (10000, b"00009999")
    labels = [caffe_pb2.Datum.FromString(value).label for _, value in written[:10]]
    assert labels == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


@needs_leveldb
def test_convert_mnist_siamese_data_writes_pairs_whose_label_says_whether_the_classes_are_equal(digits):
    images, labels = digits
    classes = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert cli.main(["convert_mnist_siamese_data", "images", "labels", "db"]) == 0
    written = records("db", "leveldb")
    assert [key for key, _ in written] == [b"%08d" % number for number in range(60)]
    drawn = []
    for _, value in written:
        pair = caffe_pb2.Datum.FromString(value)
        first, second = pair.data[:20], pair.data[20:]
        assert value == datum(2, 5, 4, first + second, int(classes[first] == classes[second]))
        drawn += [first, second]
    # Both images of a pair are drawn from all: with 120 draws of 60, about 52 different ones; pairs of both kinds.
    assert 40 < len(set(drawn)) < 60
    assert {caffe_pb2.Datum.FromString(value).label for _, value in written} == {0, 1}
    assert cli.main(["convert_mnist_siamese_data", "images", "labels", "again"]) == 0
    assert records("again", "leveldb") == written


@pytest.mark.parametrize("command", ["convert_mnist_data", pytest.param("convert_mnist_siamese_data", marks=needs_leveldb)])
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("images", lambda content: content[:100], "images: truncated: 100 bytes, but 1216 are needed for 60 × 5 × 4 values"),
        ("images", lambda content: content[:10], "images: truncated: 10 bytes"),
        ("images", lambda content: b"", "images: magic number 0, but an IDX file of images has 2051"),
        (
            "images",
            lambda content: b"\x00\x00\x08\x01" + content[4:],
            "images: magic number 2049, but an IDX file of images has 2051",
        ),
        ("images", gzip.compress, "images: a compressed file, but an IDX file of images is needed; unpack it: gunzip images"),
        ("labels", lambda content: content[:-1], "labels: truncated: 67 bytes, but 68 are needed for 60 values"),
        (
            "labels",
            lambda content: b"\x00\x00\x08\x03" + content[4:],
            "labels: magic number 2051, but an IDX file of labels has 2049",
        ),
        ("labels", lambda content: idx(np.zeros(59, np.uint8)), "labels: 59 labels, but images has 60 images"),
        ("images", lambda content: idx(np.zeros((0, 5, 4), np.uint8)), "images: no images"),
    ],
)
def test_a_file_that_is_not_mnist_s_is_an_error_in_one_line(digits, tmp_path, capsys, command, name, change, message):
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    assert cli.main([command, "images", "labels", "db"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "labels"]


@pytest.mark.usefixtures("digits")
def test_a_missing_file_and_an_existing_database_are_errors(capsys):
    assert cli.main(["convert_mnist_data", "absent", "labels", "db"]) == 1
    assert capsys.readouterr().err.startswith("error: absent: no such file")
    assert cli.main(["convert_mnist_data", "images", "labels", "db"]) == 0
    before = records("db", "lmdb")
    assert cli.main(["convert_mnist_data", "labels", "images", "db"]) == 1
    assert cli.main(["convert_mnist_data", "images", "labels", "db"]) == 1
    assert "db: it exists already; delete it, or give another name" in capsys.readouterr().err
    assert records("db", "lmdb") == before


# ---- CIFAR-10


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Six files, the last for testing, of 20 images where CIFAR-10's have 10,000: rows of label and pixels, (6, 20, 3073)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(convert_cifar_data, "IMAGES", 20)
    rows = np.random.default_rng(0).integers(0, 256, (6, 20, 3073), dtype=np.uint8)
    rows[:, :, 0] %= 10
    (tmp_path / "cifar").mkdir()
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    for name, content in zip(names, rows, strict=True):
        (tmp_path / "cifar" / name).write_bytes(content.tobytes())
    return rows


def cifar_records(rows):
    return [(b"%05d" % number, datum(3, 32, 32, row[1:].tobytes(), row[0])) for number, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("words", "train", "test", "backend"),
    [
        (["lmdb"], "cifar10_train_lmdb", "cifar10_test_lmdb", "lmdb"),
        pytest.param(["leveldb"], "cifar10_train_leveldb", "cifar10_test_leveldb", "leveldb", marks=needs_leveldb),
        pytest.param([], "cifar-train-leveldb", "cifar-test-leveldb", "leveldb", marks=needs_leveldb, id="2014"),
    ],
)
def test_convert_cifar_data_writes_a_database_for_training_and_one_for_testing(cifar, capsys, words, train, test, backend):
    assert cli.main(["convert_cifar_data", "cifar", "out", *words]) == 0
    assert records(f"out/{train}", backend) == cifar_records(cifar[:5].reshape(-1, 3073))
    assert records(f"out/{test}", backend) == cifar_records(cifar[5])
    assert capsys.readouterr().out.splitlines() == [
        f"out/{train}: 100 records of 3 × 32 × 32, {backend}",
        f"out/{test}: 20 records of 3 × 32 × 32, {backend}",
    ]


def test_a_file_of_cifar_10_has_10000_images():
    assert convert_cifar_data.IMAGES * convert_cifar_data.ROW == 30_730_000


@pytest.mark.usefixtures("cifar")
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("test_batch.bin", lambda path: path.write_bytes(path.read_bytes()[:-1]), "truncated: 61459 bytes, but 61460 are needed"),
        (
            "data_batch_5.bin",
            lambda path: path.write_bytes(path.read_bytes() * 2),
            "too long: 122920 bytes, but 61460 are needed",
        ),
        ("data_batch_3.bin", lambda path: path.unlink(), "no such file; fetch and unpack CIFAR-10's binary version"),
    ],
)
def test_nothing_is_written_if_one_file_of_cifar_10_is_not_whole(tmp_path, capsys, name, change, message):
    change(tmp_path / "cifar" / name)
    assert cli.main(["convert_cifar_data", "cifar", "out", "lmdb"]) == 1
    assert capsys.readouterr().err.startswith(f"error: cifar/{name}: {message}")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("cifar")
def test_nothing_is_written_if_one_of_the_two_databases_exists(tmp_path, capsys):
    (tmp_path / "out/cifar10_test_lmdb").mkdir(parents=True)
    assert cli.main(["convert_cifar_data", "cifar", "out", "lmdb"]) == 1
    assert "out/cifar10_test_lmdb: it exists already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cifar10_test_lmdb"]

"""MNIST and CIFAR as Caffe's own converters store them, from archives, from folders and from a server."""

import dataclasses
import gzip
import hashlib
import io
import json
import tarfile

import numpy as np
import pytest

import caffe
from pipeline.errors import InputError
from pipeline.sources import published
from pipeline.sources.published import COLLECTIONS, build, fetch_collection
from tests import standins
from tests.conftest import SHARED, needs_shared
from tests.pipeline.conftest import records


def content_of(name: str, file: str) -> bytes:
    """A small file in a collection's format: 7 records."""
    rng = np.random.default_rng(len(file))
    if name == "mnist":
        labels, images = rng.integers(0, 10, 7).astype(np.uint8), rng.integers(0, 256, (7, 28, 28)).astype(np.uint8)
        axes = [7] if "labels" in file else [7, 28, 28]
        header = bytes([0, 0, 8, len(axes)]) + b"".join(axis.to_bytes(4, "big") for axis in axes)
        return header + (labels if "labels" in file else images).tobytes()
    rows = rng.integers(0, 256, (7, 3072 + (2 if name == "cifar100" else 1))).astype(np.uint8)
    rows[:, : rows.shape[1] - 3072] %= 10
    return rows.tobytes()


@pytest.fixture(params=["mnist", "cifar10", "cifar100"])
def small(request, tmp_path, monkeypatch):
    """(name, contents by file, folder of archives) of a small collection that replaces the published one."""
    name = request.param
    collection = COLLECTIONS[name]
    contents = {file: content_of(name, file) for file in collection.files}
    (tmp_path / "copy").mkdir()
    for archive in collection.archives:
        path = tmp_path / "copy" / archive
        if not archive.endswith(".tar.gz"):
            path.write_bytes(gzip.compress(contents[archive.removesuffix(".gz")]))
            continue
        with tarfile.open(path, "w:gz") as files:
            for file, content in {**contents, "../../escaped.bin": b"no"}.items():
                member = tarfile.TarInfo(f"batches/{file}")
                member.size = len(content)
                files.addfile(member, io.BytesIO(content))
    digests = {
        part: {file: hashlib.sha256(contents[file]).hexdigest() for file in getattr(collection, part)}
        for part in ("train", "val")
    }
    monkeypatch.setitem(COLLECTIONS, name, dataclasses.replace(collection, **digests))
    return name, contents, tmp_path / "copy"


def test_records_equal_those_of_caffes_converters(small, tmp_path):
    name, contents, copy = small
    fetch_collection(name, tmp_path / "files", copy)
    assert {path.name: path.read_bytes() for path in (tmp_path / "files").iterdir()} == contents
    assert not list(tmp_path.rglob("escaped.bin"))
    manifests = build(name, tmp_path / "files", tmp_path / "out", threads=2)
    collection = COLLECTIONS[name]
    for part in ("train", "val"):
        if name == "mnist":
            images, labels = (contents[file] for file in getattr(collection, part))
            rows = [(labels[8 + n], images[16 + 784 * n : 16 + 784 * (n + 1)]) for n in range(7)]
        else:
            joined, size = b"".join(contents[file] for file in getattr(collection, part)), 3074 if name == "cifar100" else 3073
            rows = [(joined[at + size - 3073], joined[at + size - 3072 : at + size]) for at in range(0, len(joined), size)]
        written = records(tmp_path / f"out/lmdb/{part}")
        assert [key for key, _ in written] == [b"%08d" % n if name == "mnist" else b"%05d" % n for n in range(len(rows))]
        for (_, value), (label, pixels) in zip(written, rows, strict=True):
            datum = caffe.proto.caffe_pb2.Datum()
            datum.channels, datum.height, datum.width = collection.shape
            datum.data, datum.label = pixels, label
            assert value == datum.SerializeToString()
        lines = (tmp_path / f"out/lists/{part}.txt").read_text().splitlines()
        assert lines == [f"{key.decode()} {label}" for (key, _), (label, _) in zip(written, rows, strict=True)]
        manifest = json.loads((tmp_path / f"out/lmdb/{part}.manifest.json").read_text())
        assert manifest == manifests[part]
        assert manifest.get("channels", "BGR") == ("RGB" if name.startswith("cifar") else "BGR")
        assert (manifest["images"], manifest["classes"], tuple(manifest["shape"])) == (
            len(rows),
            len(collection.classes),
            collection.shape,
        )
    assert (tmp_path / "out/lists/labels.txt").read_text().splitlines() == list(collection.classes)


def test_a_pair_is_two_images_and_whether_their_classes_are_equal(tmp_path):
    files = {file: content_of("mnist", file) for file in COLLECTIONS["mnist_pairs"].files}
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    manifests = build("mnist_pairs", tmp_path, tmp_path / "out", threads=1)
    images, labels = (np.frombuffer(content, np.uint8)[8:] for content in list(files.values())[:2])
    kinds = {image.tobytes(): label for image, label in zip(images[8:].reshape(7, 784), labels, strict=True)}
    pairs = [caffe.proto.caffe_pb2.Datum.FromString(value) for _, value in records(tmp_path / "out/lmdb/train")]
    assert [(pair.channels, pair.height, pair.width) for pair in pairs] == 7 * [(2, 28, 28)]
    assert [pair.label for pair in pairs] == [kinds[pair.data[:784]] == kinds[pair.data[784:]] for pair in pairs]
    assert {pair.label for pair in pairs} == {0, 1}
    assert (manifests["train"]["classes"], manifests["train"]["shape"]) == (2, [2, 28, 28])
    assert (tmp_path / "out/lists/labels.txt").read_text().splitlines() == ["different", "same"]
    assert build("mnist_pairs", tmp_path, tmp_path / "again", threads=2) == manifests


def test_files_that_are_already_unpacked_are_accepted(small, tmp_path):
    name, contents, _ = small
    (tmp_path / "unpacked/deep").mkdir(parents=True)
    for file, content in contents.items():
        (tmp_path / "unpacked/deep" / file).write_bytes(content)
    fetch_collection(name, tmp_path / "files", tmp_path / "unpacked")
    assert {path.name for path in (tmp_path / "files").iterdir()} == set(contents)


def test_files_are_downloaded_from_the_first_address_that_has_them(small, tmp_path, monkeypatch):
    name, contents, copy = small
    with standins.serve(copy) as address:
        addresses = (f"{address}/moved/", f"{address}/")
        monkeypatch.setitem(COLLECTIONS, name, dataclasses.replace(COLLECTIONS[name], addresses=addresses))
        fetch_collection(name, tmp_path / "files")
    assert {path.name for path in (tmp_path / "files").iterdir()} == set(contents)


def test_if_no_address_answers_one_error_gives_every_reason(tmp_path, monkeypatch):
    gone = dataclasses.replace(COLLECTIONS["cifar10"], addresses=("http://127.0.0.1:9/a/", "http://127.0.0.1:9/b/"))
    monkeypatch.setitem(COLLECTIONS, "cifar10", gone)
    with pytest.raises(InputError) as raised:
        fetch_collection("cifar10", tmp_path / "files")
    assert "/a/cifar-10-binary.tar.gz: connection" in raised.value.where
    assert "/b/cifar-10-binary.tar.gz: connection" in raised.value.where
    assert "source.copy" in raised.value.do
    assert not (tmp_path / "files").exists()


def test_a_file_with_another_digest_is_refused(small, tmp_path):
    name, contents, copy = small
    file = next(iter(contents))
    for archive in copy.iterdir():
        archive.unlink()
    for other, content in contents.items():
        (copy / other).write_bytes(content[:-1] + b"x" if other == file else content)
    with pytest.raises(InputError) as raised:
        fetch_collection(name, tmp_path / "files", copy)
    assert raised.value.where.endswith(file)
    assert COLLECTIONS[name].files[file] in raised.value.expected
    assert not (tmp_path / "files").exists()


def test_a_missing_file_is_named(small, tmp_path):
    name, _, copy = small
    for archive in copy.iterdir():
        archive.unlink()
    with pytest.raises(InputError) as raised:
        fetch_collection(name, tmp_path / "files", copy)
    assert next(iter(COLLECTIONS[name].files)) in raised.value.found
    assert COLLECTIONS[name].archives[0] in raised.value.do


def test_a_truncated_archive_is_refused(small, tmp_path):
    name, _, copy = small
    archive = copy / COLLECTIONS[name].archives[0]
    archive.write_bytes(archive.read_bytes()[:300])
    with pytest.raises(InputError) as raised:
        fetch_collection(name, tmp_path / "files", copy)
    assert raised.value.where == archive.name


def test_a_missing_folder_is_named(fails):
    fails(["nowhere", "source.copy"], "pipeline.sources.published", "fetch", "mnist", "files", "--copy", "nowhere")


@needs_shared
def test_mnist_itself_becomes_two_databases(command, tmp_path):
    done = command("pipeline.sources.published", "fetch", "mnist", "files", "--copy", SHARED / "data/mnist")
    assert done.returncode == 0, done.stderr
    done = command("pipeline.sources.published", "build", "mnist", "files", "out", "--threads", 2)
    assert done.stdout.splitlines() == [
        f"out/lmdb/{part}: {count} records, 10 classes" for part, count in (("train", 60000), ("val", 10000))
    ]


def test_names_and_digests_are_complete():
    for collection in COLLECTIONS.values():
        assert len(set(collection.classes)) == len(collection.classes) in (2, 10, 100)
        assert all(len(digest) == 64 for digest in collection.files.values())
        assert all(address.endswith("/") for address in collection.addresses)
    assert published.COLLECTIONS["cifar100"].classes[0] == "apple"

"""Features: for every image in list order, in five formats that agree, from records and from image files."""

import os
import shutil
from pathlib import Path

import cv2
import h5py
import lmdb
import numpy as np
import pandas as pd
import pytest

import caffe
from caffe.formats.db import DatabaseWriter, LMDBFile
from caffe.proto import caffe_pb2
from pipeline.dataset.resize import resize_folder
from pipeline.errors import InputError
from pipeline.inference import extraction, features
from pipeline.inference.extraction import Run, extract
from pipeline.inference.feature_files import file_names, read
from pipeline.nets.preprocessing import Preprocessing
from pipeline.options.dataset import ImageSize, ResizeOptions
from tests.conftest import needs_leveldb
from tests.pipeline.training.test_train import change

FEATURES = ("pipeline.inference.features", "test.prototxt", "out/final.caffemodel", "features", "--features")


def test_features_are_written_for_every_image_in_list_order(trained, command):
    arguments = ("test.prototxt", "out/final.caffemodel", "features", "--features", "hidden", "scores")
    done = command("pipeline.inference.features", *arguments)
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(trained / "features/hidden.parquet")
    listed = [line.rsplit(" ", 1) for line in (trained / "lists/val.txt").read_text().splitlines()]
    assert [(row.path, str(row.label)) for row in table.itertuples()] == [tuple(pair) for pair in listed]
    values = np.load(trained / "features/hidden.npy")
    np.testing.assert_array_equal(np.stack(table.features), values)
    with lmdb.open(str(trained / "features/hidden.lmdb"), readonly=True, lock=False).begin() as transaction:
        stored = [(key, caffe.proto.caffe_pb2.Datum.FromString(value)) for key, value in transaction.cursor()]
    records = [(key, caffe.io.datum_to_array(datum)) for key, datum in stored]
    assert [key for key, _ in records] == [b"%010d" % number for number in range(len(listed))]
    np.testing.assert_allclose(np.stack([array.ravel() for _, array in records]), values)
    assert [str(datum.label) for _, datum in stored] == [label for _, label in listed]
    assert (trained / "features/images.txt").read_text() == (trained / "lists/val.txt").read_text()


@needs_leveldb
def test_all_formats_hold_the_same_features_labels_and_paths(trained, step):
    step(*FEATURES, "hidden", "data", "--feature-formats", "hdf5", "leveldb", "lmdb", "npy", "parquet")
    folder = trained / "features"
    listed = [line.rsplit(" ", 1) for line in (trained / "lists/val.txt").read_text().splitlines()]
    with h5py.File(folder / "features.h5") as file:
        assert set(file) == {"hidden", "data", "label", "path"}
        assert file["data"].shape == (3, 3, 8, 8)
        assert [[path.decode(), str(label)] for path, label in zip(file["path"], file["label"], strict=True)] == listed
    import plyvel

    database = plyvel.DB(str(folder / "data.leveldb"))
    stored = [(key, caffe_pb2.Datum.FromString(value)) for key, value in database]
    database.close()
    assert [key for key, _ in stored] == [b"%010d" % number for number in range(3)]
    assert [(datum.channels, datum.height, datum.width, str(datum.label)) for _, datum in stored] == [
        (3, 8, 8, label) for _, label in listed
    ]
    for blob in ("hidden", "data"):
        values = np.load(folder / f"{blob}.npy")
        for made in (f"{blob}.npy", f"{blob}.parquet", f"{blob}.lmdb", f"{blob}.leveldb"):  # so that the next format is read
            (shutil.rmtree if (folder / made).is_dir() else os.remove)(folder / made)
            np.testing.assert_array_equal(np.stack(list(read(folder, blob))), values)


def test_an_existing_folder_is_overwritten_only_on_request(trained, command, fails):
    (trained / "features").mkdir()
    (trained / "features/mine.txt").write_text("mine")
    fails(["features: it exists already", "--overwrite"], *FEATURES, "hidden")
    assert (trained / "features/mine.txt").read_text() == "mine"
    done = command(*FEATURES, "hidden", "--feature-formats", "npy", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (trained / "features").iterdir()) == ["SHA256SUMS", "hidden.npy", "images.txt"]


@pytest.mark.parametrize(("blobs", "said"), [(["a/b", "a_b"], 'so is blob "a/b"'), (["label"], "has that dataset")])
def test_blobs_that_would_share_a_file_name_are_refused(blobs, said):
    with pytest.raises(InputError, match=said):
        file_names(blobs, ("hdf5",))
    assert file_names(["a/b", "label"], ("npy",)) == {"a/b": "a_b", "label": "label"}


def test_missing_features_are_named(tmp_path):
    with pytest.raises(InputError, match='no features of blob "fc7"; run the features step'):
        next(read(tmp_path, "fc7"))
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["fc6"] = [[1.0]]
    with pytest.raises(InputError, match='no dataset "fc7", but there are fc6'):
        next(read(tmp_path, "fc7"))


def test_an_unknown_blob_is_named_with_the_nearest_one(trained, fails):
    arguments = ("test.prototxt", "out/final.caffemodel", "features", "--features", "hiden")
    # The net has splits of scores and label, too, which its prototxt does not name.
    said = ["test.prototxt", 'no blob "hiden"', "the net has data, label, hidden, scores,", 'did you mean "hidden"?']
    fails(said, "pipeline.inference.features", *arguments)


def test_an_image_list_gives_the_features_of_the_database_made_from_it(trained, step):
    step(*FEATURES, "hidden")
    expected = np.load(trained / "features/hidden.npy")
    (trained / "lmdb/val").rename(trained / "lmdb/moved")
    step(*FEATURES, "hidden", "--list", "lists/val.txt", "--root", "resize", "--overwrite")
    np.testing.assert_array_equal(np.load(trained / "features/hidden.npy"), expected)


@pytest.fixture
def photographs(trained, picture):
    """Five pictures of different sizes below photos/, and a list of them."""
    (trained / "photos/00000").mkdir(parents=True)
    for number in range(5):
        cv2.imwrite(str(trained / f"photos/00000/{number}.png"), picture(number, 8 + 3 * number, 8 + number))
    (trained / "photos.txt").write_text("".join(f"00000/{number}.png {number % 3}\n" for number in range(5)))
    return trained


@pytest.fixture
def step(trained, monkeypatch):
    """step(*FEATURES, …) runs the step in the test's folder, in this process."""
    monkeypatch.chdir(trained)
    return lambda module, *arguments: features.main([*map(str, arguments)])


LISTED = ("--list", "photos.txt", "--root", "photos")


def test_images_of_any_size_are_resized_like_those_of_the_dataset(photographs, step):
    how = ResizeOptions(size=ImageSize(height=8, width=8), resize_mode="crop", interpolation="area")
    Preprocessing(how, caffe_pb2.TransformationParameter()).write(photographs / "preprocessing.json")
    step(*FEATURES, "data", "--feature-formats", "npy", *LISTED)
    resize_folder(photographs / "photos/00000", photographs / "resized/00000", how)
    pixels = np.load(photographs / "resized/00000/pixels.npy").transpose(0, 3, 1, 2).reshape(5, -1)
    np.testing.assert_allclose(np.load(photographs / "features/data.npy"), 0.004 * pixels.astype(np.float32), rtol=1e-6)
    assert (photographs / "features/images.txt").read_text() == (photographs / "photos.txt").read_text()


def test_images_of_different_sizes_without_preprocessing_json_are_refused(photographs, fails):
    said = ["photos.txt:2: 00000/1.png is 11×9×3", "the first image is 8×8×3", "or give preprocessing.json"]
    fails(said, *FEATURES, "data", *LISTED)


def test_an_unreadable_image_is_named_with_its_line(photographs, fails):
    Preprocessing(ResizeOptions(size=ImageSize(height=8, width=8)), caffe_pb2.TransformationParameter()).write(
        photographs / "preprocessing.json"
    )
    (photographs / "photos/00000/3.png").write_text("<html></html>")
    fails(["photos.txt:4: photos/00000/3.png cannot be read"], *FEATURES, "data", *LISTED)


@needs_leveldb
def test_a_leveldb_may_replace_the_nets_database(trained, step):
    with DatabaseWriter(str(trained / "level"), "leveldb") as put:
        for key, value in LMDBFile(trained / "lmdb/train").items():
            put(bytes(key), bytes(value))
    for folder, database in (("features", "level"), ("others", "lmdb/train")):
        words = [folder if word == "features" else word for word in FEATURES]
        step(*words, "hidden", "--feature-formats", "npy", "--database", database)
    assert (trained / "features/hidden.npy").read_bytes() == (trained / "others/hidden.npy").read_bytes()
    assert (trained / "features/images.txt").read_text() == (trained / "lists/train.txt").read_text()


def test_another_database_may_replace_the_nets_own(trained, step):
    step(*FEATURES, "scores", "--database", "lmdb/train")
    listed = [line.rsplit(" ", 1)[0] for line in (trained / "lists/train.txt").read_text().splitlines()]
    assert list(pd.read_parquet(trained / "features/scores.parquet").path) == listed


def test_the_database_format_is_detected_whatever_backend_the_net_names(trained, step):
    text = (trained / "test.prototxt").read_text()
    (trained / "test.prototxt").write_text(text.replace("backend: LMDB", ""))
    step(*FEATURES, "scores", "--database", "lmdb/train")
    assert len(np.load(trained / "features/scores.npy")) == 6


def test_images_of_an_incomplete_last_batch_are_not_repeated(trained, step, monkeypatch):
    text = (trained / "test.prototxt").read_text()
    assert "batch_size: 3" in text
    (trained / "test.prototxt").write_text(text.replace("batch_size: 3", "batch_size: 2"))
    step(*FEATURES, "scores", "--feature-formats", "npy")
    uneven = np.load(trained / "features/scores.npy")
    (trained / "test.prototxt").write_text(text)
    monkeypatch.chdir(trained)
    even = extract(Run("test.prototxt", "out/final.caffemodel"), ["scores"], 3)["scores"]
    np.testing.assert_allclose(uneven, even, rtol=1e-5)


def test_feature_batches_do_not_depend_on_a_small_test_batch(trained, monkeypatch):
    monkeypatch.chdir(trained)
    job = Run(Path("test.prototxt"), Path("out/final.caffemodel"))
    whole = extract(job, ["scores"], 3)["scores"]
    change(trained, "batch_size: 3", "batch_size: 1", "test.prototxt")
    for many, sizes in ((4, [1, 1, 1]), (3, [3])):
        monkeypatch.setattr(extraction, "MANY", many)
        parts = [batch["scores"] for batch in extraction.batches(job, ["scores"], 3)]
        assert [len(part) for part in parts] == sizes
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5)


def test_a_blob_without_a_row_for_each_image_is_refused(trained, fails):
    fails(["test.prototxt", 'blob "loss" of shape ()', "its first axis must have the batch's 3 images"], *FEATURES, "loss")


def test_weights_that_lack_a_layer_are_refused(trained, fails, write):
    other = """
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4 } } }
        layer { name: "fc8" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 2 } }
    """
    caffe.Net(write("other.prototxt", other), caffe.TEST).save(trained / "out/final.caffemodel")
    (trained / "out/SHA256SUMS").unlink()
    fails(["final.caffemodel", "no weights of layers hidden, scores", "test.prototxt"], *FEATURES, "hidden")


def test_a_net_without_a_data_layer_is_refused(trained, fails, write):
    write("test.prototxt", 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4 } } }')
    fails(["test.prototxt", "no Data layer", "give the test prototxt"], *FEATURES, "x")


def test_a_missing_database_is_named(trained, fails):
    fails(["nowhere", "no such database"], *FEATURES, "hidden", "--database", "nowhere")

import json

import cv2
import lmdb
import numpy as np
import pytest

import caffe
from caffe.proto import caffe_pb2
from tests.conftest import GOLDEN


@pytest.mark.parametrize("name", ["plain_resize", "gray"])
def test_the_mean_equals_that_of_compute_image_mean(command, tmp_path, name):
    done = command("pipeline.dataset.mean", GOLDEN / "data" / f"db_{name}", "mean.binaryproto", "--values", "mean.json")
    assert done.returncode == 0, done.stderr
    recorded = (GOLDEN / "data" / f"mean_{name}.binaryproto").read_bytes()
    assert (tmp_path / "mean.binaryproto").read_bytes() == recorded
    mean = caffe.io.blobproto_to_array(caffe_pb2.BlobProto.FromString(recorded))[0]
    values = json.loads((tmp_path / "mean.json").read_text())
    assert values["shape"] == list(mean.shape)
    assert values["images"] == 10
    np.testing.assert_allclose(values["values"], mean.mean((1, 2)), atol=1e-3)
    with (
        lmdb.open(str(GOLDEN / "data" / f"db_{name}"), readonly=True, lock=False) as environment,
        environment.begin() as transaction,
    ):
        images = [caffe.io.datum_to_array(caffe_pb2.Datum.FromString(value)) for _, value in transaction.cursor()]
    np.testing.assert_allclose(values["std"], np.std(images, (0, 2, 3)), atol=1e-3)


def test_encoded_records_have_the_mean_of_their_pixels(command, tmp_path, picture):
    images = [picture(seed) for seed in range(3)]
    encoded = [caffe_pb2.Datum(data=cv2.imencode(".png", image)[1].tobytes(), encoded=True) for image in images]
    put(tmp_path / "db", *encoded)
    done = command("pipeline.dataset.mean", "db", "mean.binaryproto", "--values", "mean.json")
    assert done.returncode == 0, done.stderr
    mean = caffe.io.blobproto_to_array(caffe_pb2.BlobProto.FromString((tmp_path / "mean.binaryproto").read_bytes()))[0]
    np.testing.assert_allclose(mean, np.mean(images, 0).transpose(2, 0, 1), rtol=1e-6)
    values = json.loads((tmp_path / "mean.json").read_text())
    np.testing.assert_allclose(values["std"], np.std(images, (0, 1, 2)), atol=1e-3)


def test_an_encoded_record_that_is_not_an_image_is_named(fails, tmp_path):
    put(tmp_path / "db", caffe_pb2.Datum(data=b"<html>", encoded=True))
    fails(["db: 00000000", "cannot be decoded"], "pipeline.dataset.mean", "db", "mean.binaryproto", "--values", "mean.json")


def put(folder, *values):
    with lmdb.open(str(folder)) as environment, environment.begin(write=True) as transaction:
        for number, value in enumerate(values):
            transaction.put(f"{number:08d}".encode(), value.SerializeToString())


def test_an_empty_database_is_named(fails, tmp_path):
    put(tmp_path / "db")
    fails(["db", "no records"], "pipeline.dataset.mean", "db", "mean.binaryproto", "--values", "mean.json")


def test_a_missing_database_is_named(fails):
    fails(["nowhere", "no such database"], "pipeline.dataset.mean", "nowhere", "mean.binaryproto", "--values", "mean.json")


def test_a_file_that_is_not_a_database_is_named(fails, tmp_path):
    (tmp_path / "db").mkdir()
    (tmp_path / "db/data.mdb").write_text("hello")
    fails(["db", "not a readable LMDB"], "pipeline.dataset.mean", "db", "mean.binaryproto", "--values", "mean.json")


def test_images_of_different_shapes_are_refused(fails, tmp_path):
    put(tmp_path / "db", *(caffe.io.array_to_datum(np.zeros((3, n, 4), np.uint8), 0) for n in (4, 5)))
    fails(["db", "00000001", "(3, 5, 4)"], "pipeline.dataset.mean", "db", "mean.binaryproto", "--values", "mean.json")

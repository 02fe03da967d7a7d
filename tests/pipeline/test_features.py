"""Features: of every image, in the list's order, in three forms that agree."""

import lmdb
import numpy as np
import pandas as pd

import caffe
from pipeline.features import Run, extract

FEATURES = ("pipeline.features", "test.prototxt", "out/final.caffemodel", "features", "--blobs")


def test_features_are_those_of_every_image_in_the_lists_order(trained, command):
    arguments = ("test.prototxt", "out/final.caffemodel", "features", "--blobs", "hidden", "scores")
    done = command("pipeline.features", *arguments)
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


def test_an_unknown_blob_is_named_with_the_known_ones(trained, fails):
    arguments = ("test.prototxt", "out/final.caffemodel", "features", "--blobs", "hiden")
    fails(["test.prototxt", 'no blob "hiden"', 'did you mean "hidden"?'], "pipeline.features", *arguments)


def test_an_image_list_gives_the_features_of_the_database_made_from_it(trained, command):
    assert command(*FEATURES, "hidden").returncode == 0
    expected = np.load(trained / "features/hidden.npy")
    (trained / "lmdb/val").rename(trained / "lmdb/moved")
    done = command(*FEATURES, "hidden", "--list", "lists/val.txt", "--root", "resize")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(trained / "features/hidden.npy"), expected)


def test_another_database_may_take_the_place_of_the_nets_own(trained, command):
    done = command(*FEATURES, "scores", "--database", "lmdb/train")
    assert done.returncode == 0, done.stderr
    listed = [line.rsplit(" ", 1)[0] for line in (trained / "lists/train.txt").read_text().splitlines()]
    assert list(pd.read_parquet(trained / "features/scores.parquet").path) == listed


def test_the_database_is_read_as_what_it_is_whatever_backend_the_net_names(trained, command):
    text = (trained / "test.prototxt").read_text()
    (trained / "test.prototxt").write_text(text.replace("backend: LMDB", ""))
    done = command(*FEATURES, "scores", "--database", "lmdb/train")
    assert done.returncode == 0, done.stderr


def test_images_that_do_not_fill_the_last_batch_are_not_repeated(trained, command, monkeypatch):
    text = (trained / "test.prototxt").read_text()
    assert "batch_size: 3" in text
    (trained / "test.prototxt").write_text(text.replace("batch_size: 3", "batch_size: 2"))
    assert command(*FEATURES, "scores").returncode == 0
    uneven = np.load(trained / "features/scores.npy")
    (trained / "test.prototxt").write_text(text)
    monkeypatch.chdir(trained)
    even = extract(Run("test.prototxt", "out/final.caffemodel"), ["scores"], 3)["scores"]
    np.testing.assert_allclose(uneven, even, rtol=1e-5)


def test_a_blob_without_a_row_for_each_image_is_refused(trained, fails):
    fails(["test.prototxt", 'blob "loss" of shape ()', "a row for each of the batch's 3 images"], *FEATURES, "loss")


def test_weights_that_leave_a_layer_without_its_own_are_refused(trained, fails, write):
    other = """
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4 } } }
        layer { name: "fc8" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 2 } }
    """
    caffe.Net(write("other.prototxt", other), caffe.TEST).save(trained / "out/final.caffemodel")
    fails(["final.caffemodel", "no weights for hidden, scores", "test.prototxt"], *FEATURES, "hidden")


def test_a_net_without_a_data_layer_is_refused(trained, fails, write):
    write("test.prototxt", 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4 } } }')
    fails(["test.prototxt", "no Data layer", "give the test prototxt"], *FEATURES, "x")


def test_a_database_that_is_not_there_is_named(trained, fails):
    fails(["nowhere", "not an LMDB"], *FEATURES, "hidden", "--database", "nowhere")

"""BoxData, lines shuffled in groups and crops as a top, from real databases and lists."""

import cv2
import numpy as np
import pytest

import caffe
from caffe.formats.db import DatabaseWriter
from caffe.proto import caffe_pb2
from tests.caffe.layer_checks import draw, exercises, make_net


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caffe.set_random_seed(3)


def image(number, height=20, width=30):
    pixels = np.full((height, width, 3), number, np.uint8)
    pixels[:, : width // 2, 0] = 255
    return pixels


def put(count, boxes, encoded=True, name="records"):
    with DatabaseWriter(name, "lmdb") as write:
        for number in range(count):
            pixels = image(number)
            datum = caffe_pb2.Datum(channels=3, height=20, width=30, float_data=np.ravel(boxes))
            datum.data = cv2.imencode(".png", pixels)[1].tobytes() if encoded else pixels.transpose(2, 0, 1).tobytes()
            datum.encoded = encoded
            write(f"{number:08}".encode(), datum.SerializeToString())


def net_of(write, phase=caffe.TEST, tops='top: "y"', more="", transform="", name="records"):
    text = f"""layer {{ name: "d" type: "BoxData" top: "x" {tops} transform_param {{ {transform} }}
        data_param {{ source: "{name}" batch_size: 2 backend: LMDB {more} }} }}"""
    return caffe.Net(write("net.prototxt", text), phase)


BOXES = [[3, 1, 0.5, 0.2, 0.3, 0.4], [4, 0, 0.99, 1.0, 0.1, 0.1]]


@exercises("BoxData")
def test_boxes_are_written_to_the_cells_of_their_centres(write):
    put(2, BOXES)
    net = net_of(write, tops='top: "y" top: "z"', more="side: 2 side: 3")
    assert (net.blobs["y"].shape, net.blobs["z"].shape) == ((2, 28), (2, 63))
    net.forward()
    labels = net.blobs["y"].data[1]
    # Cell (0, 1) has the first box, cell (1, 1) the second.
    np.testing.assert_array_equal(labels[:12], [0, 1, 0, 0, 0, 1, 0, 1, -1, 3, -1, 4])
    np.testing.assert_allclose(labels[12:].reshape(4, 4), [[0] * 4, BOXES[0][2:], [0] * 4, BOXES[1][2:]], rtol=1e-6)
    np.testing.assert_array_equal(net.blobs["x"].data[1], image(1).transpose(2, 0, 1))
    net.close()


def test_training_shows_windows_and_their_boxes(write):
    put(1, BOXES[:1], encoded=False)
    net = net_of(write, caffe.TRAIN, more="side: 1")
    seen = []
    for _ in range(20):
        net.forward()
        seen += [labels[3:].copy() for labels in net.blobs["y"].data]
        # The blue half ends where the box's centre lies.
        edges = (net.blobs["x"].data[:, 0, 10] > 128).sum(1)
        np.testing.assert_allclose(edges / 30, net.blobs["y"].data[:, 3], atol=0.06)
    seen = np.array(seen)
    assert len(np.unique(seen[:, 0])) > 5
    # 9 of 30 columns and 8 of 20 rows, in windows of 71 to 100 %.
    assert (seen[:, 2] > 9 / 30).all()
    assert (seen[:, 2] <= 9 / (30 * 0.71 - 2)).all()
    net.close()


def test_records_without_boxes_or_with_unreachable_ones_are_named(write):
    put(1, [[3, 1, 1.5, 0.5, 0.3, 0.4]])
    net = net_of(write, caffe.TRAIN)
    with pytest.raises(caffe.Error, match="in none of 1000 windows"):
        net.forward()
    put(1, BOXES[0][:5], name="cut")
    with pytest.raises(caffe.Error, match="5 float_data"):
        net_of(write, name="cut")


def test_transforms_that_boxes_do_not_follow_are_refused(write):
    put(1, BOXES)
    with pytest.raises(caffe.LayerError, match="boxes do not follow it"):
        net_of(write, transform="mirror: true")
    with pytest.raises(caffe.LayerError, match="one, at least 1, for each top of labels"):
        net_of(write, more="side: 7 side: 9")


# ---- ImageData's pair_size, Data's get_mirror_crop


def test_lines_of_a_group_stay_together(write, tmp_path):
    for number in range(7):
        cv2.imwrite(f"{number}.png", image(number))
    (tmp_path / "list.txt").write_text("".join(f"{tmp_path}/{number}.png {number}\n" for number in range(7)))
    text = """layer { name: "d" type: "ImageData" top: "x" top: "y"
        image_data_param { source: "list.txt" batch_size: 2 shuffle: true pair_size: PAIR } }"""
    net = caffe.Net(write("net.prototxt", text.replace("PAIR", "2")), caffe.TRAIN)
    batches = [net.forward()["y"].astype(int).tolist() for _ in range(9)]
    assert all(second == first + 1 and first % 2 == 0 for first, second in batches)
    epochs = [tuple(first for first, _ in batches[start : start + 3]) for start in (0, 3, 6)]
    assert all(sorted(epoch) == [0, 2, 4] for epoch in epochs)
    assert len(set(epochs)) > 1
    net.layers[0].seek_batch(4)
    assert net.forward()["y"].astype(int).tolist() == batches[4]
    net.close()
    with pytest.raises(caffe.LayerError, match="pair_size 8"):
        caffe.Net(write("net.prototxt", text.replace("PAIR", "8")), caffe.TRAIN)


@pytest.mark.parametrize(("bicubic", "how"), [("false", cv2.INTER_LINEAR), ("true", cv2.INTER_CUBIC)])
def test_new_dim_is_the_length_of_the_shorter_side(write, bicubic, how):
    pixels = np.random.default_rng(1).integers(0, 256, (21, 34, 3)).astype(np.uint8)
    cv2.imwrite("a.png", pixels)
    write("list.txt", "a.png 0\n")
    text = f"""layer {{ name: "d" type: "ImageData" top: "x" top: "y"
        image_data_param {{ source: "list.txt" batch_size: 1 new_dim: 10 bicubic: {bicubic} MORE }} }}"""
    net = caffe.Net(write("net.prototxt", text.replace("MORE", "")), caffe.TEST)
    net.forward()
    expected = cv2.resize(pixels, (16, 10), interpolation=how).transpose(2, 0, 1)  # 16.19 columns
    np.testing.assert_array_equal(net.blobs["x"].data[0], expected)
    net.close()
    with pytest.raises(caffe.LayerError, match="only one may be given"):
        caffe.Net(write("net.prototxt", text.replace("MORE", "new_height: 9 new_width: 9")), caffe.TEST)


def test_crops_as_a_top_say_what_was_cropped_and_mirrored(write):
    with DatabaseWriter("records", "lmdb") as put_record:
        for number in range(2):
            pixels = (np.arange(60) + 100 * number).astype(np.uint8)
            datum = caffe_pb2.Datum(channels=1, height=6, width=10, data=pixels.tobytes())
            put_record(f"{number:08}".encode(), datum.SerializeToString())
    text = """layer { name: "d" type: "Data" top: "x" top: "y" transform_param { mirror: true crop_size: 4 }
        data_param { source: "records" batch_size: 2 backend: LMDB get_mirror_crop: true } }"""
    net = caffe.Net(write("net.prototxt", text), caffe.TRAIN)
    assert net.blobs["y"].shape == (2, 4, 1, 1)
    seen = set()
    for _ in range(10):
        net.forward()
        for number, (pixels, crop) in enumerate(zip(net.blobs["x"].data, net.blobs["y"].data.reshape(-1, 4), strict=True)):
            mirrored, side, upper, left = (int(value) for value in crop)
            whole = (np.arange(60) + 100 * number).reshape(6, 10)[upper : upper + side, left : left + side]
            np.testing.assert_array_equal(pixels[0], whole[:, ::-1] if mirrored else whole)
            seen.add((mirrored, upper, left))
    assert len(seen) > 8
    net.close()


@exercises("EltwiseAccuracy")
def test_accuracy_of_maps_leaves_out_an_ignored_label(write):
    scores, labels = draw(2, 3, 2, 2), np.array([0, 1, 2, 255, 1, 1, 0, 255], float).reshape(2, 1, 2, 2)
    net = make_net(write, 'type: "EltwiseAccuracy" eltwise_accuracy_param { ignore_label: 255 }', [scores.shape, labels.shape])
    net.blobs["x0"].data[...], net.blobs["x1"].data[...] = scores, labels
    right = [scores[n, :, i, j].argmax() == labels[n, 0, i, j] for n, i, j in np.ndindex(2, 2, 2) if labels[n, 0, i, j] < 255]
    np.testing.assert_allclose(net.forward()["y0"], np.mean(right), rtol=1e-6)

"""Binarization's layers compared with plain formulas, and DocData on a real database."""

import cv2
import numpy as np
import pytest

import caffe
from caffe.formats.db import DatabaseWriter
from caffe.proto import caffe_pb2
from tests.caffe.layer_checks import check, draw, exercises, layer_error, make_net, reseed


@pytest.fixture(autouse=True)
def _folder(request, tmp_path, monkeypatch):
    reseed(request.node.name)
    monkeypatch.chdir(tmp_path)
    caffe.set_random_seed(2)


LOSS = 'type: "WeightedFmeasureLoss" weighted_fmeasure_loss_param { %s }'


def measure(b, g, r, p):
    """1 - F, or the weighted mean squared difference."""
    if not (g * r).sum() or not (b * g * p).sum() or not (b * g * r).sum():
        return 0.1 / 2 * (p * (g - b) ** 2).sum() / p.sum()
    recall, precision = (b * g * r).sum() / (g * r).sum(), (b * g * p).sum() / (b * p).sum()
    return 1 - 2 * recall * precision / (recall + precision)


def inputs():
    targets = (draw(3, 1, 4, 5) > 0).astype(float)
    targets[2] = 0  # no foreground: F is undefined
    return draw(3, 1, 4, 5, low=0.05, high=0.95), targets, draw(3, 1, 4, 5, low=0.2, high=1), draw(3, 1, 4, 5, low=0.2, high=1)


@exercises("WeightedFmeasureLoss")
def test_f_measure_of_the_batch_and_of_its_images(write):
    check(write, LOSS % "avg_fm: false", measure, *inputs())
    check(write, LOSS % "", lambda *rows: np.mean([measure(*each) for each in zip(*rows, strict=True)]), *inputs())
    b, g, r, p = inputs()
    check(write, LOSS % "avg_fm: false", measure, b, 0 * g, r, p)
    net = make_net(write, LOSS % "", [each.shape for each in (b, g, r, p)], tops=2)
    for index, values in enumerate((b, g, r, p)):
        net.blobs[f"x{index}"].data[...] = values
    net.forward()
    expected = [[1 - measure(*each)] for each in zip(b[:2], g[:2], r[:2], p[:2], strict=True)]
    np.testing.assert_allclose(net.blobs["y1"].data, [*expected, [0]], rtol=1e-4)
    assert "two tops" in layer_error(write, LOSS % "avg_fm: false", *[(1, 2)] * 4, tops=2).found
    assert "same number of values" in layer_error(write, LOSS % "", (1, 2), (1, 2), (1, 3), (1, 2)).expected


def test_probabilities_right_by_a_margin_count_as_their_targets(write):
    b, g, r, p = inputs()
    net = make_net(write, LOSS % "margin: 0.2 avg_fm: false", [each.shape for each in (b, g, r, p)])
    for index, values in enumerate((b, g, r, p)):
        net.blobs[f"x{index}"].data[...] = values
    right = np.where(g > 0.5, b >= 0.7, b <= 0.3)
    assert right.any()
    np.testing.assert_allclose(net.forward()["y0"], measure(np.where(right, g, b), g, r, p), rtol=1e-4)


@exercises("PR")
def test_precision_and_recall(write):
    x, labels = draw(2, 1, 5, 6, low=0, high=1), np.random.default_rng(3).integers(0, 3, (2, 1, 5, 6)).astype(float)
    net = make_net(write, 'type: "PR" precision_recall_param { thresh: 0.4 ignore_label: 2 }', [x.shape, labels.shape], tops=5)
    net.blobs["x0"].data[...], net.blobs["x1"].data[...] = x, labels
    net.forward()
    counts = np.zeros((2, 2))
    for value, label in zip(x.ravel(), labels.ravel(), strict=True):
        if label < 2:
            counts[int(value >= 0.4), int(label)] += 1
    (rests, misses), (alarms, hits) = counts
    precision, recall = hits / (hits + alarms), hits / (hits + misses)
    expected = [precision, recall, (hits + rests) / counts.sum(), rests / (rests + alarms)]
    expected.append(2 * precision * recall / (precision + recall))
    np.testing.assert_allclose([net.blobs[f"y{index}"].data.item() for index in range(5)], expected, rtol=1e-5)
    net.blobs["x0"].data[...] = 0
    net.forward()
    assert [net.blobs[f"y{index}"].data.item() for index in (0, 1, 4)] == [0, 0, 0]
    assert "same number" in layer_error(write, 'type: "PR"', (2, 3), (2, 4), tops=5).expected


# ---- DocData


@pytest.fixture
def net_of(write):
    with DatabaseWriter("pages", "lmdb") as put:
        for number in range(20):
            pixels = np.full((3, 4, 3), number, np.uint8)
            image = caffe_pb2.EncodedImage(channels=3, height=3, width=4)
            if number % 2:
                image.encoding, image.data = "png", cv2.imencode(".png", pixels)[1].tobytes()
            else:
                image.data = pixels.transpose(2, 0, 1).tobytes()
            put(f"{number:08}".encode(), caffe_pb2.DocumentDatum(image=image).SerializeToString())

    def make(changes="", more="", name="x"):
        text = f"""layer {{ name: "{name}" type: "DocData" top: "{name}" image_transform_param {{ {changes} rng_seed: 5 }}
            doc_data_param {{ sources: "pages" batch_size: 4 backend: LMDB {more} }} }}"""
        return caffe.Net(write("net.prototxt", text), caffe.TRAIN)

    return make


@exercises("DocData")
def test_pages_are_shifted_and_scaled(net_of):
    net = net_of("params { linear_params { shift: 2 shift: 0 shift: 1 scale: 0.5 } }")
    assert net.blobs["x"].shape == (4, 3, 3, 4)
    for first in (0, 4, 8, 12, 16, 0):
        net.forward()
        for row, number in enumerate(range(first, first + 4)):
            assert net.blobs["x"].data[row, :, 1, 2].tolist() == [(number - 2) / 2, number / 2, (number - 1) / 2]
    net.close()


def test_layers_of_one_seed_leave_out_the_same_pages_and_resume(net_of):
    def numbers(net, count):
        return [net.forward()["x"][:, 0, 0, 0].copy().tolist() for _ in range(count)]

    first, second = net_of(more="rand_advance_skip: 3 seed: 8"), net_of(more="rand_advance_skip: 3 seed: 8")
    read = numbers(first, 6)
    assert numbers(second, 2) == read[:2]
    steps = np.diff(np.concatenate(read)) % 20
    assert set(steps.astype(int)) == {1, 2, 3, 4}
    second.layers[0].seek_batch(4)
    assert numbers(second, 2) == read[4:]
    for net in (first, second):
        net.close()


def test_colours_jitter_by_channel(net_of):
    net = net_of("params { linear_params { shift: 0 scale: 1 } } params { color_jitter_params { sigma: 0.1 mean: 1 } }")
    noise = []
    for first in (0, 4, 8, 12, 16):
        net.forward()
        values = net.blobs["x"].data - np.arange(first, first + 4).reshape(4, 1, 1, 1)
        assert np.ptp(values, (2, 3)).max() < 1e-5
        noise.append(values[:, :, 0, 0])
    noise = np.concatenate(noise)
    assert abs(noise.mean() - 1) < 0.05
    assert 0.06 < noise.std() < 0.14
    assert len(np.unique(noise)) == 60
    net.close()


def test_faulty_settings_of_pages_are_named(net_of):
    with pytest.raises(caffe.LayerError, match="one of each, or one for each of 3 channels"):
        net_of("params { linear_params { shift: 1 shift: 2 scale: 1 } }")
    with pytest.raises(caffe.LayerError, match="one change in each"):
        net_of("params { }")
    with pytest.raises(caffe.LayerError, match="2 sources"):
        net_of(more='sources: "others"')

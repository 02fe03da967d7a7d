"""Colorization layers compared with loops over each pixel and place, their gradients with finite differences of those."""

import colorsys
import math

import cv2
import numpy as np
import pytest

import caffe
from tests.caffe.layer_checks import check, draw, exercises, layer_error, make_net, reseed


@pytest.fixture(autouse=True)
def _reseed(request):
    reseed(request.node.name)


@exercises("BgrToMunsell")
def test_hue_chroma_and_value(write):
    def convert(x):
        y = np.zeros_like(x)
        for n, i, j in np.ndindex(2, 3, 4):
            blue, green, red = x[n, :, i, j]
            hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
            y[n, :, i, j] = hue, saturation * value, value
        return y

    x = draw(2, 3, 3, 4, low=0, high=1)
    x[0, :, 0, 0], x[0, :, 0, 1] = 0.5, 0
    check(write, 'type: "BgrToMunsell"', convert, x, wrt=())
    assert "blue, green and red" in layer_error(write, 'type: "BgrToMunsell"', (1, 4, 2, 2)).expected


@exercises("UniformToHistogram", "StripDecimals")
def test_bins_and_whole_numbers(write):
    net = make_net(write, 'type: "UniformToHistogram" uniform_to_histogram_param { bins: 4 }', [(1, 1, 1, 5)])
    net.blobs["x0"].data[...] = np.reshape([0, 0.24, 0.25, 0.99, 1], (1, 1, 1, 5))
    assert net.forward()["y0"].argmax(1).ravel().tolist() == [0, 0, 1, 3, 3]
    assert net.blobs["y0"].data.sum() == 5
    assert layer_error(write, 'type: "UniformToHistogram"', (1, 2, 2, 2)).expected == "1 channel"
    check(write, 'type: "StripDecimals"', np.trunc, draw(2, 3, low=-4, high=4), wrt=())


PLACES = np.array([[[0, 0], [2, 3]], [[5, 4], [3, 1]]], float)


@exercises("SparseHistogramExtractor")
def test_histograms_of_windows(write):
    def extract(places, bins):
        tops = []
        for size in (3, 4):
            rows = []
            for n, p in np.ndindex(2, 2):
                y, x = (int(value) - size // 2 for value in places[n, p])
                window = bins[n, :, max(y, 0) : max(y + size, 0), max(x, 0) : max(x + size, 0)].sum((1, 2))
                rows.append(window / window.sum() if window.sum() else np.full(3, 1 / 3))
            tops.append(np.array(rows))
        return tuple(tops)

    layer = 'type: "SparseHistogramExtractor" sparse_histogram_extractor_param { size: 3 size: 4 }'
    check(write, layer, extract, PLACES, draw(2, 3, 6, 5, low=0, high=1), wrt=())
    far = PLACES.copy()
    far[0, 0] = 40, 40  # a window outside the map
    check(write, layer, extract, far, draw(2, 3, 6, 5, low=0, high=1), wrt=())
    assert "one, at least 1, for each top" in layer_error(write, layer, (2, 2, 2), (2, 3, 6, 5)).expected
    assert "as many images" in layer_error(write, layer, (2, 2, 2), (1, 3, 6, 5), tops=2).expected


@exercises("SparseHypercolumnExtractor")
def test_hypercolumns(write):
    def extract(places, *maps):
        rows = []
        for n, p in np.ndindex(2, 2):
            values = []
            for x, scale, offset, factor in zip(maps, (1, 2), ((0, 0), (1, 0.5)), (1, 3), strict=True):
                spots = []
                for place, shift, extent in zip(places[n, p], offset, x.shape[2:], strict=True):
                    spots.append(min(max((place - shift) / scale, 0), extent - 1.0001))
                (y, i), (z, j) = ((spot, int(spot)) for spot in spots)
                y, z = y - i, z - j
                corner = x[n, :, i : i + 2, j : j + 2]
                rest = (1 - y) * ((1 - z) * corner[:, 0, 0] + z * corner[:, 0, 1])
                values.append(factor * (rest + y * ((1 - z) * corner[:, 1, 0] + z * corner[:, 1, 1])))
            rows.append(np.concatenate(values))
        return np.array(rows)

    settings = "scale: 1 scale: 2 offset_height: 0 offset_height: 1 offset_width: 0 offset_width: 0.5"
    layer = f'type: "SparseHypercolumnExtractor" sparse_hypercolumn_extractor_param {{ {settings} %s }}'
    inputs = PLACES + 0.3, draw(2, 3, 6, 5), draw(2, 2, 3, 3)
    check(write, layer % "activation_mult: 1 activation_mult: 3", extract, *inputs, wrt=(1, 2))
    error = layer_error(write, layer % "", (2, 2, 2), (2, 3, 6, 5))
    assert error.found == "2 scale, 2 offset_height and 2 offset_width for 1 maps"
    assert "at least 2 rows" in layer_error(write, layer % "", (2, 2, 2), (2, 3, 6, 5), (2, 3, 1, 5)).expected


@pytest.mark.parametrize("normalization", ["VALID", "FULL", "BATCH_SIZE", "NONE"])
@pytest.mark.parametrize("kind", ["KL_DIVERGENCE", "CROSS_ENTROPY"])
@exercises("SoftmaxKLDLoss")
def test_divergence_of_a_softmax_from_distributions(write, kind, normalization):
    def divergence(scores, targets, *weights):
        loss = 0.0
        for n, i in np.ndindex(2, 4):
            p = np.exp(scores[n, :, i]) / np.exp(scores[n, :, i]).sum()
            for c in range(3):
                if (t := targets[n, c, i]) > 0:
                    loss += weights[0][n, i] * t * ((math.log(t) if kind == "KL_DIVERGENCE" else 0) - math.log(p[c]))
        return loss / {"VALID": weights[0].sum(), "FULL": 8, "BATCH_SIZE": 2, "NONE": 1}[normalization]

    layer = f'type: "SoftmaxKLDLoss" softmax_kld_loss_param {{ type: {kind} }} loss_param {{ normalization: {normalization} }}'
    targets = draw(2, 3, 4, low=0, high=1)
    targets[0, :, 0] = 0, 0, 1
    targets /= targets.sum(1, keepdims=True)
    check(write, layer, divergence, draw(2, 3, 4), targets, draw(2, 4, low=0.3, high=2))
    if normalization != "VALID":
        check(write, layer, lambda x, t: divergence(x, t, np.ones((2, 4))), draw(2, 3, 4), targets)
    assert "one for each position" in layer_error(write, layer, (2, 3, 4), (2, 3, 4), (2, 3)).expected


# ---- ExtendedImageData

DATA = """layer { name: "NAME" type: "ExtendedImageData" top: "NAME" TOP transform_param { crop_size: 10 mirror: true }
    image_data_param { source: "list.txt" batch_size: 3 shuffle: true }
    extended_image_data_param { image_type: PIXEL SETTINGS } }"""


@pytest.fixture
def net_of(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caffe.set_random_seed(2)
    for number in range(4):
        pixels = np.zeros((20, 40, 3), np.uint8)
        pixels[..., 0], pixels[..., 1] = number, np.arange(40) * 6
        cv2.imwrite(f"{number}.png", pixels)
    write("list.txt", "".join(f"{number}.png{f' {number}' * (number > 0)}\n" for number in range(4)))

    def make(*texts):
        return caffe.Net(write("net.prototxt", "".join(texts)), caffe.TRAIN)

    return make


def data(settings, name="x", top=""):
    return DATA.replace("SETTINGS", settings).replace("NAME", name).replace("TOP", top)


@exercises("ExtendedImageData")
def test_shorter_sides_are_drawn_and_layers_of_one_seed_match(net_of):
    settings = "shortest_side: 12 shortest_side_max: 30 random_seed: 7"
    net = net_of(data(settings, top='top: "label"'), data(settings, "z"))
    slopes = set()
    for _ in range(8):
        net.forward()
        np.testing.assert_array_equal(net.blobs["x"].data, net.blobs["z"].data)
        assert net.blobs["x"].data[:, 0].max((1, 2)).tolist() == net.blobs["label"].data.tolist()
        # Enlarged by f, a step of 6 from pixel to pixel becomes 6 / f.
        slopes |= {round(float(abs(each[1, 5, 8] - each[1, 5, 1])) / 7, 1) for each in net.blobs["x"].data}
    assert min(slopes) >= 6 * 20 / 30 - 0.5
    assert max(slopes) <= 6 * 20 / 12 + 0.5
    assert len(slopes) > 8
    net.close()


def test_other_kinds_of_files_and_sizes_out_of_order_are_refused(net_of):
    with pytest.raises(caffe.LayerError, match="image_type MAT"):
        net_of(data("").replace("PIXEL", "MAT"))
    with pytest.raises(caffe.LayerError, match="they must rise from 1"):
        net_of(data("shortest_side: 9 shortest_side_max: 8"))

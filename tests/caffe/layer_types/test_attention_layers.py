"""Layers of attention compared with plain loops over their definitions, their gradients with finite differences of those."""

import math

import numpy as np
import pytest

import caffe
from tests.caffe.layer_checks import check, draw, exercises, layer_error, make_net, reseed


@pytest.fixture(autouse=True)
def _reseed(request):
    reseed(request.node.name)


# ---- ChannelScale


def scale(x, factors):
    y = np.zeros_like(x)
    for n, c, h, w in np.ndindex(x.shape):
        y[n, c, h, w] = x[n, c, h, w] * factors[n, 0, h, w]
    return y


@exercises("ChannelScale")
def test_channel_scale(write):
    check(write, 'type: "ChannelScale"', scale, draw(2, 3, 2, 4), draw(2, 1, 2, 4), wrt=(0, 1))
    check(write, 'type: "ChannelScale"', lambda x, s: x * s[:, None], draw(2, 3), draw(2), wrt=(0, 1))
    assert layer_error(write, 'type: "ChannelScale"', (2, 3, 2, 2), (2, 3, 2, 2)).expected == "one for each image and position"


@pytest.mark.parametrize(("setting", "values", "of_x", "of_scale"), [
    ("do_forward", [[1, 2]], [[3, 3]], [3]),
    ("do_backward_feature", [[3, 6]], [[1, 1]], [3]),
    ("do_backward_scale", [[3, 6]], [[3, 3]], [0]),
])  # fmt: skip
def test_parts_of_channel_scale_can_be_left_out(write, setting, values, of_x, of_scale):
    net = make_net(write, f'type: "ChannelScale" channel_scale_param {{ {setting}: false }}', [(1, 2), (1,)])
    net.blobs["x0"].data[...], net.blobs["x1"].data[...] = [[1, 2]], 3
    assert net.forward()["y0"].tolist() == values
    net.blobs["y0"].diff[...] = 1
    net.backward()
    assert (net.blobs["x0"].diff.tolist(), net.blobs["x1"].diff.tolist()) == (of_x, of_scale)


# ---- AttPooling, PwAttend


def attend_locally(x, weights, side=3, stride=2, dilation=1, pad=1):
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    y = np.zeros((*x.shape[:2], *weights.shape[2:]))
    for n, c, i, j in np.ndindex(y.shape):
        for di, dj in np.ndindex(side, side):
            value = padded[n, c, i * stride + di * dilation, j * stride + dj * dilation]
            y[n, c, i, j] += value * weights[n, di * side + dj, i, j]
    return y


def attend_globally(x, weights):
    y = np.zeros((*x.shape[:2], *weights.shape[2:]))
    for n, c, i, j in np.ndindex(y.shape):
        y[n, c, i, j] = (x[n, c].ravel() * weights[n, :, i, j]).sum()
    return y


@pytest.mark.parametrize(("kind", "field"), [("AttPooling", "att_pooling_param"), ("PwAttend", "pw_attend_param")])
@exercises("AttPooling", "PwAttend", chosen_by="kind")
def test_attention_of_windows_and_of_whole_maps(write, kind, field):
    layer = f'type: "{kind}" {field} {{ kernel_size: 3 stride: 2 pad: 1 }}'
    check(write, layer, attend_locally, draw(2, 2, 5, 4), draw(2, 9, 3, 2), wrt=(0, 1))
    layer = f'type: "{kind}" {field} {{ kernel_size: 2 dilation: 2 }}'
    check(write, layer, lambda x, a: attend_locally(x, a, 2, 1, 2, 0), draw(1, 2, 4, 4), draw(1, 4, 2, 2), wrt=(0, 1))
    layer = f'type: "{kind}" {field} {{ att_mode: GLOBAL }}'
    check(write, layer, attend_globally, draw(2, 3, 3, 3), draw(2, 9, 2, 4), wrt=(0, 1))


def test_attention_says_what_it_takes(write):
    layer = 'type: "PwAttend" pw_attend_param { %s }'
    assert layer_error(write, layer % "", (1, 2, 3, 3), (1, 9, 3, 3)).found == "kernel_size is not given"
    error = layer_error(write, layer % "kernel_size: 3", (1, 2, 3, 3), (1, 4, 1, 1))
    assert error.expected == "1 images and kernel_size² = 9 channels"
    assert "1×1 windows" in layer_error(write, layer % "kernel_size: 3", (1, 2, 3, 3), (1, 9, 3, 3)).expected
    error = layer_error(write, layer % "att_mode: GLOBAL kernel_size: 2", (1, 2, 3, 3), (1, 4, 3, 3))
    assert error.expected == "GLOBAL needs one"


# ---- AUMaskBasedLand, AlignDataTransform

MASK = """type: "AUMaskBasedLand"
    au_mask_based_land_param { img_size: 40 spatial_ratio: 0.2 spatial_scale: 0.5 fill_coeff: 0.04 %s }"""


@exercises("AUMaskBasedLand")
def test_attention_around_landmarks(write):
    points = draw(2, 49, 2, low=4, high=36)
    net = make_net(write, MASK % "", [(2, 98)], tops=13)
    net.blobs["x0"].data[...] = points.reshape(2, 98)
    net.forward()
    points = net.blobs["x0"].data.reshape(2, 49, 2).astype(float)
    inner = np.abs(points[:, 22, 0] - points[:, 25, 0])
    # Of some units, the two landmarks and how far below them the centres lie.
    for unit, (landmarks, below) in {0: ((4, 5), -1 / 2), 1: ((1, 8), -1 / 3), 3: ((24, 29), 1), 9: ((39, 41), 1 / 2)}.items():
        wanted = np.zeros((2, 20, 20))
        for image in range(2):
            for landmark in landmarks:
                x, y = points[image, landmark] + (0, below * inner[image])
                limits = [[min(max(math.floor((c + sign * 3.9) * 0.5 + 0.5), 0), 19) for sign in (-1, 1)] for c in (y, x)]
                for i in range(limits[0][0], limits[0][1] + 1):
                    for j in range(limits[1][0], limits[1][1] + 1):
                        wanted[image, i, j] = max(0, 1 - (abs(i - y / 2) + abs(j - x / 2)) * 0.04 * 100 / 20)
        np.testing.assert_allclose(net.blobs[f"y{unit}"].data[:, 0], wanted, atol=1e-4)
    greatest = np.max([net.blobs[f"y{unit}"].data for unit in range(12)], axis=0)
    assert (net.blobs["y12"].data >= greatest).all()
    assert net.blobs["y12"].data.max() > 0.5
    np.testing.assert_array_equal(net.blobs["y7"].data, net.blobs["y6"].data)  # units of one muscle


def test_masks_say_what_they_take(write):
    assert layer_error(write, MASK % "", (2, 96), tops=13).expected == "x and y of 49 points for each image"
    assert 'fill_type "round"' in layer_error(write, MASK % 'fill_type: "round"', (2, 98), tops=13).found


@exercises("AlignDataTransform")
def test_landmarks_follow_crop_and_mirror(write):
    def align(points, crops, order):
        result = np.zeros_like(points)
        for n, (mirrored, side, upper, left) in enumerate(crops.reshape(-1, 4)):
            for i in range(3):
                source = int(order.ravel()[i]) - 1 if mirrored else i
                x, y = points[n, 2 * source] - left, points[n, 2 * source + 1] - upper
                result[n, 2 * i : 2 * i + 2] = side - 1 - x if mirrored else x, y
        return result

    crops = np.array([[0, 8, 1, 2], [1, 8, 2, 0]], float).reshape(2, 4, 1, 1)
    order = np.array([[2, 1, 3]] * 2, float)
    check(write, 'type: "AlignDataTransform"', align, draw(2, 6, low=0, high=9), crops, order)
    assert "4 values for each image" in layer_error(write, 'type: "AlignDataTransform"', (2, 6), (2, 3), (2, 3)).expected
    net = make_net(write, 'type: "AlignDataTransform"', [(2, 6), (2, 4), (3,)])
    net.blobs["x2"].data[...] = [1, 4, 2]
    with pytest.raises(caffe.LayerError, match="4 in the mirrored order"):
        net.forward()

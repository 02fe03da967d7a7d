"""Heatmap regression's layers, HED's source of edges and DeconvNet's unpooling, from real files and plain loops."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

import caffe
from caffe.proto import caffe_pb2
from tests.caffe.layer_checks import check, draw, exercises, layer_error, make_net, reseed


@pytest.fixture(autouse=True)
def _start(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reseed(request.node.name)
    caffe.set_random_seed(7)


# ---- heatmaps


def spots(path, places, height=48, width=64):
    """A black image with a bright disc of its own colour at each place (x, y)."""
    image = np.zeros((height, width, 3), np.uint8)
    for (x, y), colour in zip(places, ((0, 0, 255), (0, 255, 0), (255, 0, 0)), strict=True):
        cv2.circle(image, (round(x), round(y)), 2, colour, -1)
    cv2.imwrite(path, image)


JOINTS = [(30, 20), (22, 28), (40, 30)]


def heatmap_net(write, lines=None, settings="", name="list.txt"):
    if lines is None:
        spots("a.png", JOINTS)
        lines = ["a.png " + ",".join(f"{x},{y}" for x, y in JOINTS) + " 1,64,1,48,1 0"]
    write(name, "\n".join(lines) + "\n")
    sides = {"cropsize": 40, "outsize": 80, "label_width": 20, "label_height": 20}
    given = " ".join(f"{side}: {value}" for side, value in sides.items() if side not in settings)
    param = f'source: "{name}" batchsize: 1 {given} {settings}'
    text = f'layer {{ name: "d" type: "DataHeatmap" top: "x" top: "y" heatmap_data_param {{ {param} }} }}'
    return caffe.Net(write("net.prototxt", text), caffe.TRAIN)


@exercises("DataHeatmap")
def test_the_centre_of_an_image_and_the_maps_of_its_joints(write):
    net = heatmap_net(write, settings="scale: 0.5")
    assert [net.blobs[name].data.shape for name in "xy"] == [(1, 3, 80, 80), (1, 3, 20, 20)]
    net.forward()
    crop = cv2.imread("a.png")[4:44, 12:52, ::-1].astype(np.float32)
    np.testing.assert_allclose(net.blobs["x"].data[0], cv2.resize(crop, (80, 80)).transpose(2, 0, 1) * 0.5, rtol=1e-6)
    for joint, (x, y) in zip(net.blobs["y"].data[0], JOINTS, strict=True):
        for i, j in np.ndindex(20, 20):
            square = (i - (y - 4) / 2) ** 2 + (j - (x - 12) / 2) ** 2
            assert joint[i, j] == pytest.approx(4 / (1.5 * math.sqrt(2 * math.pi)) * math.exp(-0.5 * square / 1.5**2), rel=1e-4)
    net.close()


@exercises("DataHeatmap")
def test_joints_stay_on_their_discs_in_mirrored_rotated_crops(write):
    net = heatmap_net(write, settings="random_crop: true angle_max: 30 multfact: 1")
    orders, corners = set(), set()
    for _ in range(60):
        net.forward()
        image, maps = net.blobs["x"].data[0], net.blobs["y"].data[0]
        peaks = [np.array(np.unravel_index(joint.argmax(), joint.shape)) for joint in maps]
        discs = []
        for channel in range(3):  # RGB, in the order of the joints
            rows, columns = np.nonzero(image[channel] > 128)
            discs.append(np.array([rows.mean(), columns.mean()]) / 4 if len(rows) > 30 else None)
        order = [
            next((which for which, peak in enumerate(peaks) if disc is not None and abs(disc - peak).max() < 1.5), None)
            for disc in discs
        ]
        if None not in order:
            orders.add(tuple(order))
            corners.add(tuple(peaks[0]))
    assert orders == {(0, 1, 2), (0, 2, 1)}  # the first joint stays; the other two are exchanged in mirrored images
    assert len(corners) > 10
    net.close()


@exercises("DataHeatmap")
def test_chosen_joints_units_and_a_narrow_image(write):
    spots("b.png", JOINTS, width=32)
    lines = ["b.png 15,10,11,14,20,15 1,64,1,48,1 0"]
    net = heatmap_net(write, lines, 'labelinds: "3,4" multfact: 2')
    net.forward()
    assert net.blobs["y"].data.shape == (1, 1, 20, 20)
    assert np.unravel_index(net.blobs["y"].data[0, 0].argmax(), (20, 20)) == (12, 11)  # (28 - 4) / 2, 22 / 2
    assert not net.blobs["x"].data[0, :, :, 66:].any()
    net.close()


@exercises("DataHeatmap")
def test_the_background_of_a_segmentation_is_black(write):
    spots("a.png", JOINTS)
    Path("segs").mkdir()
    regions = np.zeros((48, 64), np.uint8)
    regions[:, 26:] = 41
    cv2.imwrite("segs/a.png", regions)
    net = heatmap_net(write, settings="segmentation: true")
    net.forward()
    assert [net.blobs["x"].data[0, channel].max() > 100 for channel in range(3)] == [True, False, True]
    net.close()


@exercises("DataHeatmap")
def test_classes_come_in_turn(write):
    lines = []
    for name, cluster in (("a", 1), ("b", 0), ("c", 1), ("d", 1)):
        spots(f"{name}.png", JOINTS)
        image = cv2.imread(f"{name}.png")
        image[20:24, 48:52] = ord(name)
        cv2.imwrite(f"{name}.png", image)
        lines.append(f"{name}.png 1,1 1,1 {cluster}")
    net = heatmap_net(write, lines, "sample_per_cluster: true")

    def name(net):
        net.forward()
        return chr(round(float(net.blobs["x"].data[0, 0, 36, 75])))

    names = [name(net) for _ in range(12)]
    assert names[::2] == ["b"] * 6
    assert sorted(names[1:7:2]) == ["a", "c", "d"]
    assert names[1:7:2] == names[7::2]
    state = caffe_pb2.LayerState()
    net.layers[0].keep(state)
    other = heatmap_net(write, lines, "sample_per_cluster: true")
    other.layers[0].resume(state)
    assert [name(net) for _ in range(4)] == [name(other) for _ in range(4)]
    for each in (net, other):
        each.close()


@pytest.mark.parametrize(
    ("line", "settings", "found"),
    [
        ("a.png 1,2 1", "", '"a.png 1,2 1"'),
        ("a.png 1,2,3 1 1", "", '"a.png 1,2,3 1 1"'),
        ("a.png 1,2 1 1", 'labelinds: "3,4"', '"a.png 1,2 1 1"'),
        ("a.png 1,2 1 1", 'meanfile: "m"', "meanfile"),
        ("a.png 1,2 1 1", "label_height: 3", "labels of 3×20"),
        ("a.png 1,2 1 1", "cropsize: 49", "48 rows"),
        ("a.png 1,2 1 1", "multfact: 0", "multfact 0"),
        ("a.png 1,2,3,4 1 1", "random_crop: true", "2 joints"),
        ("b.png 1,2 1 1", "", "b.png: no such image"),
    ],
)
def test_what_is_no_heatmap_is_refused(write, line, settings, found):
    spots("a.png", JOINTS)
    with pytest.raises(caffe.Error) as error:
        heatmap_net(write, [line], settings)
    assert error.value.found == found


def test_an_error_of_a_list_with_empty_lines_has_its_line(write):
    with pytest.raises(caffe.Error) as error:
        heatmap_net(write, ["", "a.png 1,2 1"])
    assert error.value.where == "list.txt:2"
    with pytest.raises(caffe.Error) as error:
        heatmap_net(write, ["", "", "b.png 1,2 1 1"])
    assert error.value.where == "list.txt:3"


@exercises("EuclideanLossHeatmap")
def test_the_gradient_of_a_heatmap_is_its_difference(write):
    a, b = draw(2, 3, 4, 4), draw(2, 3, 4, 4)
    net = check(write, 'type: "EuclideanLossHeatmap" loss_weight: 3', lambda a, b: ((a - b) ** 2).mean(), a, b, wrt=())
    np.testing.assert_allclose(net.blobs["x0"].diff, a - b, rtol=1e-5, atol=1e-6)
    shapes = [(2, 3, 4, 4)] * 2
    make_net(write, 'type: "EuclideanLossHeatmap"', [*shapes, (2, 3, 8, 8)]).forward()
    assert "same shape" in layer_error(write, 'type: "EuclideanLossHeatmap"', (1, 1, 2, 3), (1, 1, 3, 2)).expected


# ---- HED


def edge_net(write, settings="", transform="", line="image.png edges.png"):
    write("list.txt", line + "\n")
    param = f'image_data_param {{ source: "list.txt" {settings} }} transform_param {{ {transform} }}'
    return caffe.Net(
        write("net.prototxt", f'layer {{ name: "d" type: "ImageLabelmapData" top: "x" top: "y" {param} }}'), caffe.TEST
    )


def edge_images():
    generator = np.random.default_rng(0)
    image, edges = generator.integers(0, 256, (9, 12, 3)).astype(np.uint8), generator.integers(0, 256, (9, 12)).astype(np.uint8)
    edges[0, :4] = (0, 127, 128, 255)
    cv2.imwrite("image.png", image)
    cv2.imwrite("edges.png", edges)
    return image, edges


@exercises("ImageLabelmapData")
def test_edges_are_ones_from_the_middle_of_gray_on(write):
    image, edges = edge_images()
    net = edge_net(write, transform="mean_value: 104 mean_value: 117 mean_value: 123")
    net.forward()
    np.testing.assert_array_equal(net.blobs["x"].data[0], image.transpose(2, 0, 1) - np.array([[[104]], [[117]], [[123]]], float))
    np.testing.assert_array_equal(net.blobs["y"].data[0, 0], np.rint(edges / 255))
    net.close()


@exercises("ImageLabelmapData")
def test_edges_are_cropped_and_mirrored_with_their_image(write):
    image, edges = edge_images()
    net = edge_net(write, "new_height: 18 new_width: 24", "crop_size: 16 mirror: true")
    larger = cv2.resize(image, (24, 18))[1:17, 4:20].transpose(2, 0, 1)
    expected = cv2.resize(edges, (24, 18))[1:17, 4:20] > 127
    sides = set()
    for _ in range(20):
        net.forward()
        mirrored = not np.array_equal(net.blobs["x"].data[0], larger)
        step = -1 if mirrored else 1
        np.testing.assert_array_equal(net.blobs["x"].data[0], larger[:, :, ::step])
        np.testing.assert_array_equal(net.blobs["y"].data[0, 0], expected[:, ::step])
        sides.add(mirrored)
    assert sides == {True, False}
    net.close()


def test_a_list_of_edges_has_two_paths_and_equal_sizes(write):
    edge_images()
    with pytest.raises(caffe.Error, match="two paths"):
        edge_net(write, line="image.png 3 4")
    cv2.imwrite("small.png", np.zeros((3, 4), np.uint8))
    with pytest.raises(caffe.Error) as error:
        edge_net(write, line="image.png small.png")
    assert (error.value.found, error.value.expected) == ("edges of 3×4", "the image has 9×12")


# ---- DeconvNet

WINDOWS = [(2, 2, 2, 2), (3, 2, 2, 1), (2, 3, 3, 2)]


def unpool(x, kernel, stride, size, method, places=None):
    y = np.zeros((*x.shape[:2], *size))
    for n, c, i, j in np.ndindex(x.shape):
        if places is not None:
            y[n, c].flat[int(places[n, c, i, j])] = x[n, c, i, j]
            continue
        top, left = i * stride[0], j * stride[1]
        bottom, right = min(top + kernel[0], size[0]), min(left + kernel[1], size[1])
        if method == "MAX":
            y[n, c, top, left] = x[n, c, i, j]
        else:
            y[n, c, top:bottom, left:right] += x[n, c, i, j] / ((bottom - top) * (right - left) if method == "AVE" else 1)
    return y


@pytest.mark.parametrize("method", ["MAX", "AVE", "TILE"])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("cut", [0, 1])
@exercises("Unpooling")
def test_unpooling_fills_windows(write, method, window, cut):
    kernel, stride = window[:2], window[2:]
    size = [
        max((count - 1) * step + side, count * step + 1) - cut for count, side, step in zip((3, 4), kernel, stride, strict=True)
    ]
    settings = f"kernel_h: {kernel[0]} kernel_w: {kernel[1]} stride_h: {stride[0]} stride_w: {stride[1]} unpool: {method}"
    if cut:
        settings += f" unpool_h: {size[0]} unpool_w: {size[1]}"
    layer = f'type: "Unpooling" unpooling_param {{ {settings} }}'
    wrt = () if method == "TILE" else (0,)
    net = check(write, layer, lambda x: unpool(x, kernel, stride, size, method), draw(2, 2, 3, 4), wrt=wrt)
    if method == "TILE":  # the fork's gradient is that of the mean
        share = draw(2, 2, 3, 4)
        direction = net.blobs["y0"].diff.astype(float)
        step = 1e-6
        expected = np.zeros_like(share)
        for index in np.ndindex(share.shape):
            moved = share.copy()
            moved[index] += step
            change = unpool(moved, kernel, stride, size, "AVE") - unpool(share, kernel, stride, size, "AVE")
            expected[index] = (change * direction).sum() / step
        np.testing.assert_allclose(net.blobs["x0"].diff, expected, rtol=1e-3, atol=1e-4)


@exercises("Unpooling")
def test_unpooling_takes_the_positions_of_a_pooling(write):
    places = np.stack([np.random.default_rng(seed).permutation(16)[:4].reshape(2, 2) for seed in range(6)]).reshape(2, 3, 2, 2)
    layer = 'type: "Unpooling" unpooling_param { kernel_size: 2 stride: 2 unpool_size: 4 }'
    check(write, layer, lambda x, at: unpool(x, (2, 2), (2, 2), (4, 4), "MAX", at), draw(2, 3, 2, 2), places)
    net = make_net(write, layer, [(1, 1, 2, 2)] * 2)
    net.blobs["x1"].data[...] = 16
    with pytest.raises(caffe.Error) as error:
        net.forward()
    assert error.value.found == "position 16 in an image of 4×4"


def test_a_net_of_deconvnet_is_read(write):
    text = """input: "x" input_dim: 1 input_dim: 1 input_dim: 4 input_dim: 4
        layers { name: "pool" type: POOLING bottom: "x" top: "pool" top: "mask"
            pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
        layers { name: "un" type: UNPOOLING bottom: "pool" bottom: "mask" top: "un"
            unpooling_param { unpool: MAX kernel_size: 2 stride: 2 unpool_size: 4 } }"""
    net = caffe.Net(write("net.prototxt", text), caffe.TEST)
    net.blobs["x"].data[...] = np.arange(16).reshape(1, 1, 4, 4)
    assert sorted(net.forward()["un"].ravel()) == [0] * 12 + [5, 7, 13, 15]


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ("kernel_size: 2 pad: 1", "pad"),
        ("kernel_h: 2", "kernel_h or kernel_w"),
        ("kernel_size: 2 unpool_size: 4 unpool_h: 3 unpool_w: 3", "unpool_h or unpool_w"),
        ("stride: 2", "kernel (0, 0) and stride (2, 2)"),
    ],
)
def test_unpooling_says_what_it_takes(write, settings, found):
    assert layer_error(write, f'type: "Unpooling" unpooling_param {{ {settings} }}', (1, 1, 2, 2)).found == found


def test_unpooling_windows_must_start_inside(write):
    settings = "unpool: AVE kernel_size: 2 stride: 2 unpool_size: 2"
    error = layer_error(write, f'type: "Unpooling" unpooling_param {{ {settings} }}', (1, 1, 2, 2))
    assert error.expected == "none may start outside"

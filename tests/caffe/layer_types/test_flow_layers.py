"""FlowNet's sources, resampling and augmentation, compared with plain loops over their definitions."""

import itertools
import math
import struct
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest

import caffe
from caffe.engine import mode
from caffe.formats.flo import read_flo, write_flo
from caffe.proto import caffe_pb2
from caffe.transforms.flow_coefficients import DEFAULTS, NAMES, Drawing
from tests.caffe.layer_checks import check, draw, exercises, layer_error, make_net, reseed, rng


@pytest.fixture(autouse=True)
def _start(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reseed(request.node.name)
    caffe.set_random_seed(7)


# ---- .flo files


def test_a_flow_file_holds_pairs_of_numbers():
    flow = draw(2, 3, 5).astype(np.float32)
    write_flo("a.flo", flow)
    content = Path("a.flo").read_bytes()
    assert content[:4] == struct.pack("<f", 202021.25) == b"PIEH"
    assert struct.unpack("<iiff", content[4:20]) == (5, 3, flow[0, 0, 0], flow[1, 0, 0])
    np.testing.assert_array_equal(read_flo("a.flo"), flow)
    Path("a.flo").write_bytes(content[:-1])
    with pytest.raises(caffe.Error, match="131 bytes"):
        read_flo("a.flo")
    Path("a.flo").write_bytes(b"PNG" + content)
    with pytest.raises(caffe.Error, match=r"not a \.flo file"):
        read_flo("a.flo")


def test_a_flow_file_is_whole_or_as_it_was(monkeypatch):
    write_flo("a.flo", flow := draw(2, 3, 5).astype(np.float32))

    def full(path, content):
        path.open("wb").write(content[:20])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(caffe.Error):
            write_flo("a.flo", flow + 1)
    np.testing.assert_array_equal(read_flo("a.flo"), flow)
    assert [path.name for path in Path().iterdir()] == ["a.flo"]
    with pytest.raises(caffe.Error, match=r"a\.flo is a file, not a folder"):
        write_flo("a.flo/b.flo", flow)


@exercises("FloData")
def test_flow_of_a_list(write):
    flows = draw(3, 2, 4, 5).astype(np.float32)
    for number, flow in enumerate(flows):
        write_flo(f"{number}.flo", flow)
    write("list.txt", "0.flo\n1.flo\n2.flo\n")
    text = 'layer { name: "d" type: "FloData" top: "x" image_data_param { source: "list.txt" batch_size: 2 root_folder: "./" } }'
    net = caffe.Net(write("net.prototxt", text), caffe.TRAIN)
    for expected in ((0, 1), (2, 0), (1, 2)):
        np.testing.assert_array_equal(net.forward()["x"], flows[list(expected)])
    net.close()
    with pytest.raises(caffe.Error, match="flow is not transformed"):
        caffe.Net(write("net.prototxt", text[:-1] + "transform_param { scale: 2 } }"), caffe.TRAIN)
    write_flo("1.flo", flows[0][:, :3])
    net = caffe.Net(write("net.prototxt", text), caffe.TRAIN)
    with pytest.raises(caffe.Error, match="flows of different sizes"):
        net.forward()


@exercises("FLOWriter")
def test_flows_are_written_by_number(write):
    layer = 'type: "FLOWriter" writer_param {{ {} }}'
    net = make_net(write, layer.format('folder: "out/flows" prefix: "a" suffix: "-b"'), [(2, 2, 3, 4)], tops=0)
    net.blobs["x0"].data[...] = flow = draw(2, 2, 3, 4).astype(np.float32)
    net.forward()
    net.forward()
    names = [f"a{step:07}({number:03})-b.flo" for step in range(2) for number in range(2)]
    assert sorted(path.name for path in Path("out/flows").iterdir()) == names
    np.testing.assert_array_equal(read_flo("out/flows/" + names[3]), flow[1])
    net = make_net(write, layer.format('file: "one.flo"'), [(1, 2, 3, 4)], tops=0)
    net.blobs["x0"].data[...] = flow[:1]
    net.forward()
    np.testing.assert_array_equal(read_flo("one.flo"), flow[0])
    assert layer_error(write, 'type: "FLOWriter"', (1, 2, 3, 4), tops=0).found == "neither file nor folder"
    assert (
        layer_error(write, 'type: "FLOWriter" writer_param { file: "x" }', (1, 3, 3, 4), tops=0).expected
        == "a flow has 2 channels"
    )
    error = layer_error(write, 'type: "FLOWriter" writer_param { file: "x" }', (2, 2, 3, 4), tops=0)
    assert (error.found, error.do) == ("2 flows for one file", "give folder, not file")


@exercises("ImgReader")
def test_an_image_file_is_repeated(write):
    cv2.imwrite("a.png", image := rng.integers(0, 256, (5, 6, 3)).astype(np.uint8))
    text = 'layer { name: "r" type: "ImgReader" top: "x" reader_param { file: "a.png" num: 2 } transform_param { scale: 0.5 } }'
    net = caffe.Net(write("net.prototxt", text), caffe.TEST)
    np.testing.assert_allclose(net.forward()["x"], np.stack([image.transpose(2, 0, 1) * 0.5] * 2))
    with pytest.raises(caffe.Error, match="no such image"):
        caffe.Net(write("net.prototxt", text.replace("a.png", "b.png")), caffe.TEST)


# ---- CustomData

FLOW = np.array([[[0, 1, -1], [32, 33, 32767]], [[-32768, 5, 64], [7, 8, 9]]], "<i2")


def record(number):
    """3 channels of bytes, 2 of flow, 1 of bits, of 2×3 pixels."""
    colours = (np.arange(18) + number).astype(np.uint8)
    bits = np.array([1, 0, 1, 1, 0, 1], np.uint8)
    data = colours.tobytes() + FLOW.tobytes() + np.packbits(bits, bitorder="little").tobytes()
    return caffe_pb2.Datum(channels=6, height=2, width=3, data=data, label=number)


def custom(write, settings="", tops=3, count=10, data=record):
    if not Path("db").exists():
        with lmdb.open("db") as database, database.begin(write=True) as transaction:
            for number in range(count):
                transaction.put(f"{number:08}".encode(), data(number).SerializeToString())
    names = " ".join(f'top: "y{index}"' for index in range(tops))
    slices = "slice_point: 3 slice_point: 5 encoding: UINT8 encoding: UINT16FLOW encoding: BOOL1"
    settings = settings if "slice_point" in settings or data is not record else f"{slices} {settings}"
    param = f'data_param {{ source: "db" backend: LMDB batch_size: 2 {settings} }}'
    return caffe.Net(write("net.prototxt", f'layer {{ name: "d" type: "CustomData" {names} {param} }}'), caffe.TRAIN)


@exercises("CustomData")
def test_slices_are_decoded(write):
    net = custom(write, "subtract: 1 subtract: 2 subtract: 3 subtract: 0 subtract: 0 subtract: 0 scale: 0.5", 4)
    net.forward()
    shapes = [(2, 3, 2, 3), (2, 2, 2, 3), (2, 1, 2, 3), (2, 1, 1, 1)]
    assert [net.blobs[f"y{index}"].data.shape for index in range(4)] == shapes
    colours = (np.arange(18).reshape(3, 2, 3) - np.array([1, 2, 3]).reshape(3, 1, 1)) / 2
    np.testing.assert_allclose(net.blobs["y0"].data[0], colours)
    flow = np.where(FLOW == 32767, math.nan, FLOW / 32) / 2
    np.testing.assert_allclose(net.blobs["y1"].data[1], flow)
    np.testing.assert_array_equal(net.blobs["y2"].data[0, 0] * 2, [[1, 0, 1], [1, 0, 1]])
    assert net.blobs["y3"].data.ravel().tolist() == [0, 1]
    net.close()


@exercises("CustomData")
def test_records_of_floats_in_one_slice(write):
    values = draw(10, 12).astype(np.float32)
    data = lambda number: caffe_pb2.Datum(channels=2, height=2, width=3, float_data=values[number])  # noqa: E731
    net = custom(write, tops=1, data=data)
    np.testing.assert_allclose(net.forward()["y0"], values[:2].reshape(2, 2, 2, 3))
    net.close()


def labels(net, batches):
    found = [int(label) for _ in range(batches) for label in net.forward()["y3"].ravel()]
    net.close()
    return found


@exercises("CustomData")
def test_records_are_chosen_and_permuted(write):
    assert labels(custom(write, "range_start: 2 range_end: 5", 4), 4) == [2, 3, 4, 5, 2, 3, 4, 5]
    write("labels.txt", "1 0 1 1 0 1 1 0 0 1")
    chosen = 'preselection_file: "labels.txt" preselection_label: 1'
    assert labels(custom(write, chosen, 4), 3) == [0, 2, 3, 5, 6, 9]
    first = labels(custom(write, "rand_permute: true rand_permute_seed: 3 range_end: 3", 4), 4)
    assert first[:4] == first[4:]
    assert set(first) != {0, 1, 2, 3}  # permuted, then cut
    assert first == labels(custom(write, "rand_permute: true rand_permute_seed: 3 range_end: 3", 4), 4)
    last = labels(custom(write, "rand_permute: true range_end: 3 rand_permute_order: FIRST_RANGE_THEN_PERMUTE", 4), 2)
    assert sorted(last) == [0, 1, 2, 3]
    blocks = labels(custom(write, "rand_permute: true rand_permute_seed: 1 block_size: 5", 4), 5)
    assert sorted(blocks[:5]) == [0, 1, 2, 3, 4]
    assert sorted(blocks[5:]) == [5, 6, 7, 8, 9]


@exercises("CustomData")
def test_records_are_permuted_again_and_resumed(write):
    settings = "rand_permute: true permute_every_iter: 5"
    net, other = custom(write, settings, 4), custom(write, settings, 4)
    orders = [[int(label) for _ in range(5) for label in net.forward()["y3"].ravel()] for _ in range(3)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len(set(map(tuple, orders))) == 3
    net.forward()
    state = caffe_pb2.LayerState()
    net.layers[0].keep(state)
    other.layers[0].resume(caffe_pb2.LayerState.FromString(state.SerializeToString()))
    assert labels(net, 9) == labels(other, 9)


def test_a_solver_reads_all_records_in_its_own_order_or_its_share_of_a_common_one(write, monkeypatch):
    monkeypatch.setattr(mode, "solver_count", lambda: 2)
    assert sorted(labels(custom(write, "rand_permute: true", 4), 5)) == list(range(10))
    assert len(set(labels(custom(write, "rand_permute: true rand_permute_seed: 3", 4), 5))) == 5
    assert set(labels(custom(write, "", 4), 5)) == {0, 2, 4, 6, 8}


@pytest.mark.parametrize(
    ("settings", "tops", "found"),
    [
        ("mirror: true", 3, "crop_size, mirror, rand_skip, shuffle or transform_param"),
        ("slice_point: 5 slice_point: 3", 3, "slice_point 5, 3"),
        ("slice_point: 6", 2, "slice_point 6"),
        ("", 2, "2 tops for 3 slices"),
        ("subtract: 1", 3, "1 values of subtract"),
        ("slice_point: 3 encoding: UINT8 encoding: BOOL1", 2, "BOOL1 for a slice of 3 channels"),
        ("slice_point: 3", 2, "a record of 43 bytes"),
        ("slice_point: 3 encoding: UINT16FLOW encoding: UINT16FLOW", 2, "a record of 43 bytes"),
        ('preselection_file: "labels.txt"', 3, "preselection_file without preselection_label"),
        ('preselection_file: "labels.txt" preselection_label: 1', 3, "2 labels"),
    ],
)
def test_what_custom_data_cannot_read_is_refused(write, settings, tops, found):
    write("labels.txt", "1 0")
    with pytest.raises(caffe.Error) as error:
        custom(write, settings, tops)
    assert error.value.found == found


# ---- maps


def kernel(distance, kind):
    x = abs(distance)
    if kind == "LINEAR":
        return max(0, 1 - x)
    return x * x * (1.5 * x - 2.5) + 1 if x <= 1 else x * (x * (-0.5 * x + 2.5) - 4) + 2 if x < 2 else 0


@pytest.mark.parametrize("kind", ["LINEAR", "CUBIC", "NEAREST"])
@pytest.mark.parametrize("size", [(3, 3), (10, 10), (12, 3), (6, 5)])
@pytest.mark.parametrize("antialias", [True, False])
@exercises("Resample")
def test_resample_weighs_by_distance(write, kind, size, antialias):
    def resample(x, *_):
        fy, fx = x.shape[2] / size[0], x.shape[3] / size[1]
        widens = antialias and (fx > 1 or fy > 1)
        ax, ay = (1 / fx, 1 / fy) if widens else (1, 1)
        y = np.zeros((*x.shape[:2], *size))
        for i, j in np.ndindex(size):
            column, row = j * fx + fy / 2 - 0.5, i * fy + fx / 2 - 0.5
            if kind == "NEAREST":
                at = [
                    min(max(math.floor(place + 0.5), 0), old - 1) for place, old in zip((row, column), x.shape[2:], strict=True)
                ]
                y[:, :, i, j] = x[:, :, at[0], at[1]]
                continue
            total = 0
            for h, w in np.ndindex(x.shape[2:]):
                weight = ax * kernel(ax * (column - w), kind) * ay * kernel(ay * (row - h), kind)
                y[:, :, i, j] += weight * x[:, :, h, w]
                total += weight
            y[:, :, i, j] = y[:, :, i, j] / total if total else 0
        return y

    settings = f"type: {kind} antialias: {str(antialias).lower()}"
    x = draw(2, 2, 6, 5)
    check(write, f'type: "Resample" resample_param {{ {settings} height: {size[0]} width: {size[1]} }}', resample, x, rtol=1e-3)
    check(write, f'type: "Resample" resample_param {{ {settings} }}', resample, x, draw(1, 1, *size), wrt=(), rtol=1e-3)


def test_resample_says_what_it_takes(write):
    assert layer_error(write, 'type: "Resample" resample_param { width: 3 }', (1, 1, 4, 4)).found == "height 0 and width 3"
    settings = "resample_param { type: AREA width: 3 height: 3 }"
    assert layer_error(write, f'type: "Resample" {settings}', (1, 1, 4, 4)).found == "type AREA"
    assert "4 axes" in layer_error(write, 'type: "Resample"', (1, 4, 4)).expected


@exercises("ChannelNorm")
def test_channel_norm(write):
    def norm(x):
        return np.sqrt((x**2).sum(1, keepdims=True))

    net = check(write, 'type: "ChannelNorm"', norm, draw(2, 3, 2, 4))
    net.blobs["x0"].data[...] = 0
    net.forward()
    net.blobs["y0"].diff[...] = 1
    net.backward()
    assert not net.blobs["x0"].diff.any()
    assert "4 axes" in layer_error(write, 'type: "ChannelNorm"', (2, 3)).expected


# ---- augmentation


def blob(**changes):
    """Coefficients as they are stored; all others are their defaults."""
    values = [changes.get(name, default) for name, default in DEFAULTS.items()]
    return np.array([math.log(value) if default else value for value, default in zip(values, DEFAULTS.values(), strict=True)])


def matrix(size, crop, **changes):
    """The affine map of a crop, step by step, as 3 × 3 matrices."""
    c = {**DEFAULTS, **changes}
    steps = [
        [[-1, 0, crop[1] / 2], [0, 1, -crop[0] / 2]] if c["mirror"] else [[1, 0, -crop[1] / 2], [0, 1, -crop[0] / 2]],
        [[math.cos(c["angle"]), -math.sin(c["angle"]), 0], [math.sin(c["angle"]), math.cos(c["angle"]), 0]],
        [[1, 0, c["dx"] * crop[1]], [0, 1, c["dy"] * crop[0]]],
        [[1 / c["zoom_x"], 0, 0], [0, 1 / c["zoom_y"], 0]],
        [[1, 0, size[1] / 2], [0, 1, size[0] / 2]],
    ]
    result = np.eye(3)
    for step in steps:
        result = np.vstack([step, (0, 0, 1)]) @ result
    return result


def warped(image, crop, **changes):
    result = np.zeros((image.shape[0], *crop))
    height, width = image.shape[1:]
    for y, x in np.ndindex(crop):
        at_x, at_y, _ = matrix((height, width), crop, **changes) @ (x, y, 1)
        at_x, at_y = max(0, min(at_x, width - 1.05)), max(0, min(at_y, height - 1.05))
        left, top = math.floor(at_x), math.floor(at_y)
        for i, j in np.ndindex(2, 2):
            weight = (1 - abs(at_x - left - j)) * (1 - abs(at_y - top - i))
            result[:, y, x] += weight * image[:, top + i, left + j]
    return result


CROP = "crop_width: 6 crop_height: 5"
PLACES = [{}, {"mirror": 1}, {"angle": 0.5, "zoom_x": 1.5, "zoom_y": 1.2}, {"dx": 0.2, "dy": -0.1, "mirror": 1, "angle": -2}]


@exercises("DataAugmentation")
def test_a_crop_is_an_affine_map(write):
    images = draw(4, 2, 9, 11)
    given = np.stack([blob(**place) for place in PLACES]).reshape(4, -1, 1, 1)
    layer = f'type: "DataAugmentation" augmentation_param {{ {CROP} }}'

    def augment(x, _, passes):
        return np.stack([warped(image, (5, 6), **place) for image, place in zip(x, PLACES, strict=True)]), given

    net = check(write, layer, augment, images, given, params=[np.zeros((1, 1, 1, 1))], wrt=(), learned=(), rtol=1e-3, atol=1e-4)
    assert net.params["layer"][0].data.item() == 1


def test_the_coefficients_have_the_forks_order():
    assert len(NAMES) == 42
    order = ["mirror", "dx", "dy", "angle", "zoom_x", "zoom_y", "gamma", "brightness", "contrast", "color1", "color2", "color3"]
    assert list(NAMES[:12]) == order
    assert NAMES[12:24:3] == ("pow_nomean0", "add_nomean0", "mult_nomean0", "pow_withmean0")
    assert NAMES[30:] == (
        *("lmult_pow", "lmult_add", "lmult_mult", "col_angle", "fog_amount", "fog_size", "motion_blur_angle"),
        *("motion_blur_size", "shadow_angle", "shadow_distance", "shadow_strength", "noise"),
    )


def augmented(write, images, changes, settings="max_multiplier: 1"):
    """The images after the changes of colour of each, without a change of place."""
    count, _, height, width = images.shape
    text = f'type: "DataAugmentation" augmentation_param {{ crop_width: {width} crop_height: {height} {settings} }}'
    net = make_net(write, text, [images.shape, (count, 42, 1, 1)])
    net.blobs["x0"].data[...] = images
    net.blobs["x1"].data[...] = np.stack([blob(**each) for each in changes]).reshape(count, 42, 1, 1)
    return net.forward()["y0"]


COLOURS = [
    {"gamma": 1.4, "brightness": 0.1, "contrast": 0.7, "color1": 1.3, "color2": 0.8, "color3": 1.1},
    {"brightness": -0.2, "contrast": 1.5},
]


@exercises("DataAugmentation")
def test_colours_change_as_flownet_defines_it(write):
    images = draw(2, 3, 5, 6, low=0)
    got = augmented(write, images, COLOURS)
    for image, change, result in zip(images.astype(np.float32), COLOURS, got, strict=True):
        c = {**DEFAULTS, **change}
        image = warped(image, (5, 6))
        for y, x in np.ndindex(5, 6):
            pixel = image[:, y, x]
            moved = pixel * [c["color1"], c["color2"], c["color3"]]
            moved = np.clip(moved * pixel.sum() / (moved.sum() + 0.01), 0, 1) ** c["gamma"] + c["brightness"]
            np.testing.assert_allclose(result[:, y, x], np.clip(0.5 + (moved - 0.5) * c["contrast"], 0, 1), atol=1e-4)


@exercises("DataAugmentation")
def test_a_shadow_and_noise(write):
    images = draw(2, 3, 16, 20, low=0.5, high=0.9)
    changes = [{"shadow_angle": 0.7, "shadow_distance": 2, "shadow_strength": 0.3}, {"noise": 0.05}]
    got = augmented(write, images, changes)
    plain = np.stack([warped(image, (16, 20)) for image in images])
    for y, x in np.ndindex(16, 20):
        dark = (x - 10) * math.cos(0.7) + (y - 8) * math.sin(0.7) - 2 > 0
        np.testing.assert_allclose(got[0, :, y, x], plain[0, :, y, x] - 0.3 * dark, atol=1e-5)
    noise = got[1] - plain[1]
    assert abs(noise.mean()) < 0.006
    assert noise.std() == pytest.approx(0.05, rel=0.1)


EIGEN = [
    {
        **{
            "pow_nomean0": 1.2,
            "add_nomean0": 0.1,
            "mult_nomean0": 0.9,
            "pow_nomean1": 0.8,
            "add_nomean2": -0.1,
            "mult_nomean2": 1.2,
        },
        **{"pow_withmean0": 1.1, "add_withmean0": 0.05, "mult_withmean0": 0.95, "col_angle": 0.4},
        **{"pow_withmean1": 0.9, "add_withmean1": 0.1, "mult_withmean1": 1.3},
        **{"lmult_pow": 0.9, "lmult_add": 0.02, "lmult_mult": 1.1},
    },
    {"col_angle": -0.3, "lmult_mult": 0.8},
]
AXES = np.linalg.qr(np.array([[1.0, 0.2, 0.1], [1, -0.7, 0.5], [1, 0.4, -0.9]]))[0].T * [[-1], [1], [1]]


@exercises("DataAugmentation")
def test_colours_change_along_axes(write):
    images = draw(2, 3, 5, 6, low=0).astype(np.float32)
    vectors = " ".join(f"chromatic_eigvec: {value:.9g}" for value in AXES.ravel())
    got = augmented(write, images, EIGEN, f"max_multiplier: 1 {vectors}")
    pixels = images.transpose(0, 2, 3, 1).reshape(-1, 3).astype(float)
    extent = np.abs(pixels @ AXES.T).max(0)
    mean = pixels.mean(0)
    longest = np.sqrt((extent**2).sum())
    for image, change, result in zip(images, EIGEN, got, strict=True):
        c = {**DEFAULTS, **change}
        image = warped(image, (5, 6))
        for y, x in np.ndindex(5, 6):
            eig = AXES @ (image[:, y, x] - mean) / extent
            for axis in range(3):
                eig[axis] = math.copysign(abs(eig[axis]) ** c[f"pow_nomean{axis}"], eig[axis])
                eig[axis] = (eig[axis] + c[f"add_nomean{axis}"]) * c[f"mult_nomean{axis}"]
            eig += AXES @ mean / extent
            eig[0] = math.copysign(abs(eig[0]) ** c["pow_withmean0"], eig[0])
            eig[0] = (eig[0] + c["add_withmean0"]) * c["mult_withmean0"]
            s = s1 = math.hypot(eig[1], eig[2])
            if s > 0.01:
                s1 = max(s ** c["pow_withmean1"] + c["add_withmean1"], 0) * c["mult_withmean1"]
            cosine, sine = math.cos(c["col_angle"]), math.sin(c["col_angle"])
            eig[1], eig[2] = cosine * eig[1] - sine * eig[2], sine * eig[1] + cosine * eig[2]
            eig *= extent
            l1 = np.linalg.norm(eig) / longest
            if s > 0.01:
                eig[1:] *= s1 / s
            length = np.linalg.norm(eig)
            l1 = max(l1 ** c["lmult_pow"] + c["lmult_add"], 0) * c["lmult_mult"] * longest
            if length > 0.01:
                eig = np.minimum(eig / length * l1, extent)
            np.testing.assert_allclose(result[:, y, x], np.clip(AXES.T @ eig, 0, 1), atol=2e-4)


@pytest.mark.parametrize("per_pixel", [True, False])
@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST])
@exercises("DataAugmentation")
def test_the_mean_of_the_first_passes_is_subtracted(write, per_pixel, phase):
    settings = f"recompute_mean: 2 mean_per_pixel: {str(per_pixel).lower()}"
    net = make_net(write, f'type: "DataAugmentation" augmentation_param {{ {settings} }}', [(2, 3, 4, 5)], phase)
    batches = draw(4, 2, 3, 4, 5)
    means = [batches[0].mean(0), batches[:2].mean((0, 1)), batches[:2].mean((0, 1)), batches[:2].mean((0, 1))]
    for batch, mean in zip(batches, means, strict=True):
        net.blobs["x0"].data[...] = batch
        wanted = mean if per_pixel else mean.mean((1, 2), keepdims=True)
        np.testing.assert_allclose(net.forward()["y0"], batch - wanted, atol=1e-5)
    assert [blob.data.shape for blob in net.params["layer"]] == [(1, 1, 1, 1), (1, 3, 4, 5), (1, 3, 1, 1)]
    assert net.params["layer"][0].data.item() == 4
    # To images of another size, the channels' means are copied.
    net.save(str(Path("a.caffemodel").resolve()))
    other = make_net(write, f'type: "DataAugmentation" augmentation_param {{ {settings} }}', [(1, 3, 6, 2)], phase)
    other.copy_from(str(Path("a.caffemodel").resolve()))
    other.blobs["x0"].data[...] = 1
    expected = 1 - batches[:2].mean((0, 1, 3, 4)).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(other.forward()["y0"], np.broadcast_to(expected, (1, 3, 6, 2)), atol=1e-5)


@exercises("DataAugmentation")
def test_a_fixed_mean(write):
    layer = 'type: "DataAugmentation" augmentation_param { mean: 1 mean: 2 mean: 3 mean_per_pixel: false }'
    mean = np.array([1, 2, 3]).reshape(3, 1, 1)
    check(write, layer, lambda x, _: x - mean, draw(2, 3, 4, 5), params=[np.zeros((1, 1, 1, 1))], wrt=(), learned=())


DRAWN = """mirror { rand_type: "bernoulli" prob: 0.5 } translate { rand_type: "uniform_bernoulli" spread: 0.2 prob: 1 }
    rotate { spread: 0.3 } zoom { exp: true mean: 0.3 spread: 0.2 } squeeze { exp: true spread: 0.1 }
    gamma { rand_type: "gaussian_bernoulli" exp: true spread: 0.02 prob: 0.5 } noise { spread: 0.01 mean: 0.02 }"""


@exercises("DataAugmentation")
def test_drawn_places_lie_inside_and_are_given_to_the_second_image(write):
    text = f"""force_backward: true input: "a" input_shape {{ dim: 40 dim: 3 dim: 20 dim: 24 }}
        layer {{ name: "first" type: "DataAugmentation" bottom: "a" top: "x" top: "c" augmentation_param {{ {CROP} {DRAWN} }} }}
        layer {{ name: "second" type: "DataAugmentation" bottom: "a" bottom: "c" top: "y" augmentation_param {{ {CROP} }} }}"""
    net = caffe.Net(write("net.prototxt", text), caffe.TRAIN)
    net.blobs["a"].data[...] = draw(40, 3, 20, 24, low=0)
    net.forward()
    drawn = net.blobs["c"].data.reshape(40, 42)
    values = {name: drawn[:, number] for number, name in enumerate(NAMES)}
    assert set(values["mirror"]) == {0, 1}
    assert 0.25 < np.ptp(values["dx"]) < 0.4
    assert (np.abs(values["angle"]) <= 0.3).all()
    product = values["zoom_x"] + values["zoom_y"]  # logarithms: the squeeze cancels out
    assert (product >= 0.2 - 1e-5).all()
    assert (product <= 1 + 1e-5).all()
    assert (values["gamma"] == 0).any()
    assert (values["gamma"] != 0).any()
    for row in drawn:
        changes = {name: math.exp(value) if DEFAULTS[name] else value for name, value in zip(NAMES, row, strict=True)}
        for x, y in itertools.product((0, 5), (0, 4)):
            at_x, at_y, _ = np.floor(matrix((20, 24), (5, 6), **changes) @ (x, y, 1))
            assert 0 <= at_x <= 22
            assert 0 <= at_y <= 18
    difference = net.blobs["x"].data - net.blobs["y"].data  # of the noise, which is drawn for each
    assert 0.01 < difference.std() < 0.06
    testing = caffe.Net(write("net.prototxt", text), caffe.TEST)
    testing.forward()
    assert not testing.blobs["c"].data.any()
    assert net.layers[-1].batch_dependence()
    assert not testing.layers[-1].batch_dependence()


def test_the_spread_follows_its_schedule():
    schedule = caffe_pb2.CoeffScheduleParameter(half_life=10, initial_coeff=0.5, final_coeff=1)
    param = caffe_pb2.FlowAugmentationParameter(rotate={"spread": 1}, translate={"spread": 1, "apply_schedule": False})
    drawing = Drawing(param, schedule, "net")
    assert drawing.share(0) == pytest.approx(0.5)
    assert drawing.share(10) == pytest.approx(0.75, abs=1e-4)
    assert drawing.share(1000) == pytest.approx(1)
    numbers = [abs(drawing.number("rotate", mode.generator, 0.5)) for _ in range(400)]
    assert 0.45 < max(numbers) <= 0.5
    assert max(abs(drawing.number("translate", mode.generator, 0.5)) for _ in range(400)) > 0.9


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ({"rand_type": "gaussian", "mean": 2, "spread": 0.5}, (2, 0.5)),
        ({"rand_type": "uniform", "mean": 1, "spread": 3, "discretize": True, "multiplier": 10}, (10, 17.7)),
        ({"rand_type": "bernoulli", "prob": 0.3}, (0.3, 0.458)),
        ({"rand_type": "gaussian_bernoulli", "mean": 4, "spread": 0, "prob": 0.5}, (2, 2)),
        ({"rand_type": "uniform_bernoulli", "mean": 0, "spread": 0, "prob": 0.5, "exp": True}, (1, 0)),
    ],
)
def test_numbers_have_their_distribution(given, values):
    param = caffe_pb2.FlowAugmentationParameter(gamma=given)
    drawing = Drawing(param, caffe_pb2.CoeffScheduleParameter(), "net")
    numbers = np.array([drawing.number("gamma", mode.generator, 1) for _ in range(3000)])
    assert numbers.mean() == pytest.approx(values[0], abs=0.12 * max(1, values[1]))
    assert numbers.std() == pytest.approx(values[1], rel=0.1, abs=1e-9)
    if given.get("discretize"):
        assert set(numbers) <= {-20, -10, 0, 10, 20, 30, 40}


GENERATED = """rotate { mean: 0.1 } gamma { exp: true mean: 0.2 } color { mean: 1.5 } shadow_strength { mean: 0.4 }
    lmult_add { mean: 0.3 } sat_mult { mean: 2 } col_pow { mean: 1.2 } noise { mean: 0.5 } zoom { exp: true mean: 0.1 }"""


@pytest.mark.parametrize("how", ["add", "replace", "regenerate"])
@exercises("GenerateAugmentationParameters")
def test_drawn_coefficients_are_combined_with_the_given_ones(write, how):
    before = {"angle": 0.2, "dx": 0.05, "gamma": 1.1, "brightness": 0.3, "noise": 0.1, "zoom_x": 1.2, "zoom_y": 1.2}
    given = blob(**before)
    drawn = {"angle": 0.1, "zoom_x": math.exp(0.1), "zoom_y": math.exp(0.1), "gamma": math.exp(0.2)}
    drawn |= {"color1": 1.5, "color2": 1.5, "color3": 1.5, "shadow_strength": 0.4, "lmult_add": 0.3, "noise": 0.5}
    drawn |= {"mult_withmean1": 2, "mult_withmean2": 2, "pow_nomean1": 1.2, "pow_nomean2": 1.2}
    expected = {
        "add": given + blob(**drawn),
        "replace": blob(**{**before, "dx": 0, **drawn}),
        "regenerate": blob(**drawn),
    }[how]
    layer = f'type: "GenerateAugmentationParameters" augmentation_param {{ mode: "{how}" {GENERATED} }}'
    inputs = [np.tile(given, (2, 1)).reshape(2, 42, 1, 1), draw(2, 3, 30, 40), draw(2, 3, 8, 10)]
    check(write, layer, lambda *_: np.tile(expected, (2, 1)).reshape(2, 42, 1, 1), *inputs, wrt=())
    same = expected * 0 if how == "regenerate" else given
    check(write, layer, lambda *_: np.tile(same, (2, 1)).reshape(2, 42, 1, 1), *inputs, wrt=(), phase=caffe.TEST)


@exercises("GenerateAugmentationParameters")
def test_coefficients_for_images_and_sizes_from_settings(write):
    sizes = "crop_width: 10 crop_height: 8"
    layer = 'type: "GenerateAugmentationParameters" augmentation_param {{ rotate {{ mean: 0.1 }} {} }}'
    expected = np.tile(blob(angle=0.1), (2, 1)).reshape(2, 42, 1, 1)
    check(write, layer.format(sizes), lambda _: expected, draw(2, 3, 30, 40), wrt=())
    both = f"{sizes} bottomwidth: 40 bottomheight: 30"
    check(write, layer.format(both), lambda _: expected, np.zeros((2, 42, 1, 1)), wrt=())
    # A place that cannot be drawn inside leaves the given one.
    tight = "crop_width: 40 crop_height: 30 translate_x { mean: 0.5 }"
    check(write, layer.format(tight), lambda _: expected * 0, draw(2, 3, 30, 40), wrt=())


@exercises("FlowAugmentation")
def test_flow_between_two_crops(write):
    places = [({}, {"dx": 0.1}), ({"mirror": 1, "zoom_x": 1.3, "zoom_y": 1.3}, {"angle": 0.3, "mirror": 1})]
    flow = draw(2, 2, 12, 14, low=-3, high=3)
    first, second = (np.stack([blob(**pair[which]) for pair in places]).reshape(2, 42, 1, 1) for which in (0, 1))

    def augment(flow, *_):
        result = np.zeros((2, 2, 5, 6))
        for (n, changes), y, x in itertools.product(enumerate(places), range(5), range(6)):
            at = matrix((12, 14), (5, 6), **changes[0]) @ (x, y, 1)
            column, row = (min(max(int(place + 0.5), 0), extent - 1) for place, extent in ((at[0], 14), (at[1], 12)))
            moved = at + np.array([*flow[n, :, row, column], 0])
            back = np.linalg.inv(matrix((12, 14), (5, 6), **changes[1])) @ moved
            result[n, :, y, x] = back[:2] - (x, y)
        return result

    layer = f'type: "FlowAugmentation" augmentation_param {{ {CROP} }}'
    check(write, layer, augment, flow, first, second, wrt=(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "shapes", "found"),
    [
        ("DataAugmentation", [(1, 3, 4, 5)], "a crop of 5×6 on images of 4×5"),
        ("DataAugmentation gamma { mean: 2 }", [(1, 2, 8, 8)], "colours or effects of 2 channels"),
        ("DataAugmentation lmult_add { mean: 2 }", [(1, 3, 8, 8)], "0 values of chromatic_eigvec"),
        ('DataAugmentation rotate { rand_type: "even" }', [(1, 3, 8, 8)], 'rotate.rand_type "even"'),
        ("DataAugmentation mean: 1 mean: 2 mean: 3", [(1, 3, 8, 8)], "3 values of mean for 3 channels"),
        ("DataAugmentation", [(2, 3, 8, 8), (1, 42, 1, 1)], "coefficients of shape (1, 42, 1, 1)"),
        ("GenerateAugmentationParameters", [(2, 41, 1, 1)], "coefficients of shape (2, 41, 1, 1)"),
        ('GenerateAugmentationParameters mode: "multiply"', [(2, 42, 1, 1)], 'mode "multiply"'),
        ("GenerateAugmentationParameters rotate { }", [(2, 42, 1, 1)], "sizes of (0, 0) and (5, 6)"),
        ("GenerateAugmentationParameters", [(2, 42, 1, 1), (2, 3, 8, 8)], "2 bottoms"),
        ("FlowAugmentation", [(2, 3, 8, 8), (2, 42, 1, 1), (2, 42, 1, 1)], "a flow of shape (2, 3, 8, 8)"),
    ],
)
def test_augmentation_says_what_it_takes(write, layer, shapes, found):
    name, _, settings = layer.partition(" ")
    with pytest.raises(caffe.Error) as error:
        make_net(write, f'type: "{name}" augmentation_param {{ {CROP} {settings} }}', shapes)
    assert error.value.found == found


def test_a_schedule_needs_a_half_life(write):
    layer = f'type: "DataAugmentation" augmentation_param {{ {CROP} }} coeff_schedule_param {{ half_life: 0 }}'
    assert layer_error(write, layer, (1, 3, 8, 8)).found == "half_life 0"

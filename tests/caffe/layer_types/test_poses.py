"""CPMData on databases in genLMDB's form, and its maps compared with loops over each cell."""

import math

import numpy as np
import pytest

import caffe
from caffe.formats.db import DatabaseWriter
from caffe.proto import caffe_pb2
from caffe.transforms import pose_maps
from caffe.transforms.pose_maps import SKELETONS, Joints
from tests.caffe.layer_checks import exercises, reseed, rng


@pytest.fixture(autouse=True)
def _folder(request, tmp_path, monkeypatch):
    reseed(request.node.name)
    monkeypatch.chdir(tmp_path)
    caffe.set_random_seed(4)


WIDTH, HEIGHT = 160, 120


def record(people, image, scale=0.5, joints=17, centre=(60.0, 50.0)):
    """A Datum of people, each (joints, 3): x, y from 1 and visibility."""
    planes = np.zeros((6, HEIGHT, WIDTH), np.uint8)
    planes[:3], planes[4] = image.transpose(2, 0, 1), 255
    rows = planes[3]

    def put(row, *values, at=0):
        data = np.frombuffer(np.array(values, np.float32).tobytes(), np.uint8)
        rows[row, at : at + len(data)] = data

    others = len(people) - 1
    put(1, HEIGHT, WIDTH)
    rows[2, 1] = others
    put(3, *(value + 1 for value in centre))
    put(4, scale)
    for row, person in zip([5, *(9 + others + 3 * number for number in range(others))], people, strict=True):
        for axis in range(3):
            put(row + axis, *person[:, axis])
    return caffe_pb2.Datum(channels=6, height=HEIGHT, width=WIDTH, data=planes.tobytes())


def write_records(*datums, name="records"):
    with DatabaseWriter(name, "lmdb") as put:
        for number, datum in enumerate(datums):
            put(f"{number:08}".encode(), datum.SerializeToString())


STILL = "max_rotate_degree: 0 scale_prob: 0 center_perterb_max: 0 flip_prob: -1 target_dist: 0.5"


def net_of(write, settings, name="records", phase=caffe.TRAIN):
    text = f"""layer {{ name: "d" type: "CPMData" top: "x" top: "y" data_param {{ source: "{name}" batch_size: 2 backend: LMDB }}
        cpm_transform_param {{ stride: 8 crop_size_x: 80 crop_size_y: 64 {settings} }} }}"""
    return caffe.Net(write("net.prototxt", text), phase)


def people(count=2, joints=17, low=20, high=100):
    made = [np.column_stack((rng.uniform(low, high, (joints, 2)), np.ones(joints))) for _ in range(count)]
    return [person.astype(np.float32) for person in made]


def expected_maps(joints, skeleton, size, sigma=7.0, stride=8):
    """Fields, confidences and background of people's joints (people, joints, 3): x, y, whether it counts."""
    height, width = size
    fields = np.zeros((len(skeleton.limbs), 2, height, width))
    confidences = np.zeros((len(skeleton.sources), height, width))
    for person in joints:
        for number, (a, b) in enumerate(skeleton.limbs):
            if not (person[a, 2] and person[b, 2]):
                continue
            (ax, ay), (bx, by) = person[a, :2] / 8, person[b, :2] / 8
            length = math.hypot(bx - ax, by - ay)
            ux, uy = (bx - ax) / length, (by - ay) / length
            for i, j in np.ndindex(size):
                in_x = round(min(ax, bx) - 1) <= j < round(max(ax, bx) + 1)
                in_y = round(min(ay, by) - 1) <= i < round(max(ay, by) + 1)
                if in_x and in_y and abs((j - ax) * uy - (i - ay) * ux) <= 1:
                    fields[number, :, i, j] = ux, uy
        for number, (x, y, counts) in enumerate(person):
            for i, j in np.ndindex(size):
                exponent = ((3.5 + 8 * j - x) ** 2 + (3.5 + 8 * i - y) ** 2) / (2 * sigma**2)
                if counts and exponent <= 4.6052:
                    confidences[number, i, j] = min(1, confidences[number, i, j] + math.exp(-exponent))
    background = np.maximum(1 - confidences.max(0), 0)
    return np.concatenate((fields.reshape(-1, height, width), confidences, background[None]))


def middle(person, skeleton):
    """A record's joints as a skeleton's, places from 0."""
    rows = []
    for a, b in skeleton.sources:
        x, y = (person[a, :2] + person[b, :2]) / 2 - 1
        rows.append((x, y, 1))
    return np.array(rows)


@pytest.mark.parametrize(("parts", "joints"), [(56, 17), (43, 16)])
@exercises("CPMData")
def test_labels_of_an_image_that_is_only_cropped(write, parts, joints):
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    made = people(2, joints)
    made[1][3, 2] = 0  # hidden joints count
    write_records(record(made, image, joints=joints))
    net = net_of(write, f"{STILL} num_parts: {parts} np_in_lmdb: {joints}")
    channels = 2 * (parts + 1)
    assert (net.blobs["x"].shape, net.blobs["y"].shape) == ((2, 6, 64, 80), (2, channels, 8, 10))
    net.forward()
    # The crop is around (60, 50), from (20, 18) on.
    shown = image[18:82, 20:100].transpose(2, 0, 1).astype(float)
    # Turned by 0°, the image gets a row and a column of which cubic interpolation shifts half a pixel.
    np.testing.assert_allclose(net.blobs["x"].data[0, :3].mean(), (shown - 128).mean() / 256, atol=0.02)
    assert not net.blobs["x"].data[:, 3:].any()
    labels = net.blobs["y"].data[0]
    np.testing.assert_array_equal(labels[: parts + 1], 1)
    skeleton = SKELETONS[parts]
    rows = [middle(person, skeleton) for person in made]
    for row in rows:
        row[:, :2] += 0.5 - np.array([20, 18])
    found = labels[parts + 1 :]
    assert len(found) == 2 * len(skeleton.limbs) + len(skeleton.sources) + 1
    wanted = expected_maps(rows, skeleton, (8, 10))
    assert (np.abs(found - wanted) > 0.15).mean() < 0.02  # the crop's centre is rounded
    assert (np.abs(wanted) > 0.3).mean() > 0.05
    net.close()


def test_maps_of_people():
    for skeleton in SKELETONS.values():
        count = len(skeleton.sources)
        places = rng.uniform(-10, 90, (3, count, 2))
        states = rng.integers(0, 4, (3, count))
        rows = [np.column_stack((place, state <= 1)) for place, state in zip(places, states, strict=True)]
        found = pose_maps.maps(Joints(places, states), skeleton, 8, (9, 10), 7.0)
        np.testing.assert_allclose(found, expected_maps(rows, skeleton, (9, 10)), atol=1e-5)
    same = np.zeros((1, 18, 2))
    assert np.isfinite(pose_maps.maps(Joints(same, np.zeros((1, 18), int)), SKELETONS[56], 8, (4, 4), 7.0)).all()


def test_states_of_joints_that_are_the_middle_of_two():
    skeleton = SKELETONS[56]  # the neck is the middle of the shoulders, 5 and 6
    for first, second, wanted in [(1, 1, 1), (0, 1, 0), (2, 1, 2), (3, 1, 3), (2, 3, 2)]:
        states = np.ones((1, 17), int)
        states[0, 5], states[0, 6] = first, second
        assert Joints(np.zeros((1, 17, 2)), states).of(skeleton).states[0, 1] == wanted


def test_mirrored_people_swap_their_sides():
    places = rng.uniform(0, 50, (2, 18, 2))
    mirrored = Joints(places, np.arange(36).reshape(2, 18)).mirrored(SKELETONS[56], 64)
    np.testing.assert_allclose(mirrored.places[:, 2], [[63 - x, y] for x, y in places[:, 5]])
    np.testing.assert_allclose(mirrored.places[:, 0], [[63 - x, y] for x, y in places[:, 0]])
    assert mirrored.states[0, [2, 5, 0]].tolist() == [5, 2, 0]


def test_people_stay_on_their_pixels_through_all_changes(write):
    """A bright square at the nose of an image that is otherwise grey stays where the nose's confidence is greatest."""
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    image[44:57, 54:67] = 255
    person = np.column_stack((np.full(17, 61.0), np.full(17, 51.0), np.ones(17))).astype(np.float32)
    person[1:, :2] = 500  # outside
    write_records(record([person], image))
    net = net_of(write, "num_parts: 56 np_in_lmdb: 17 max_rotate_degree: 40 scale_prob: 1 scale_min: 0.7 scale_max: 1.4"
                 " center_perterb_max: 20 target_dist: 0.5")  # fmt: skip
    places = set()
    for _ in range(12):
        net.forward()
        for pixels, labels in zip(net.blobs["x"].data, net.blobs["y"].data, strict=True):
            rows, columns = np.nonzero(pixels[0] > 0.25)
            nose = labels[57 + 38]
            i, j = np.unravel_index(nose.argmax(), nose.shape)
            assert nose.max() > 0.5
            assert abs(columns.mean() - (3.5 + 8 * j)) < 8
            assert abs(rows.mean() - (3.5 + 8 * i)) < 8
            assert not labels[57 : 57 + 38].any()
            places.add((i, j))
    assert len(places) > 4
    net.close()


def test_unknown_joints_and_faulty_records(write):
    image = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    (person,) = people(1)
    person[0, 2] = 3
    write_records(record([person], image))
    net = net_of(write, f"{STILL} num_parts: 56 np_in_lmdb: 17")
    net.forward()
    labels = net.blobs["y"].data[0]
    assert not labels[0].any()
    assert labels[1:57].all()
    assert not labels[57 + 38].any()
    net.close()
    write_records(caffe_pb2.Datum(channels=3, height=2, width=2, data=bytes(12)), name="images")
    with pytest.raises(caffe.Error, match="3 channels, not 6"):
        net_of(write, "num_parts: 56 np_in_lmdb: 17", "images")
    for settings, said in (
        ("num_parts: 14", "num_parts 14"),
        ("num_parts: 56 np_in_lmdb: 16", "takes 17 joints"),
        ("num_parts: 56 np_in_lmdb: 17 do_clahe: true", "do_clahe"),
    ):
        with pytest.raises(caffe.LayerError, match=said):
            net_of(write, settings)
    with pytest.raises(caffe.LayerError, match="in training only"):
        net_of(write, "num_parts: 56 np_in_lmdb: 17", phase=caffe.TEST)

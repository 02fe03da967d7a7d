"""Sizes, colours and orders of images in data layers of forks: SSD's resize_param, Intel's random sizes, a pool of records."""

import cv2
import lmdb
import numpy as np
import pytest

import caffe
from caffe.numerics.generator import Generator
from caffe.proto import caffe_pb2
from caffe.transforms.resizing import RandomAspect, ShorterSide
from caffe.transforms.transform import Transformer

IMAGE = np.random.default_rng(0).integers(0, 256, (3, 40, 60)).astype(np.uint8)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caffe.set_random_seed(3)


def transformer(phase=caffe.TRAIN, seed=0, **fields):
    param = caffe_pb2.TransformationParameter(**fields)
    return Transformer(param, phase, "net", Generator(seed))


def size(**fields):
    return caffe_pb2.ResizeParameter(**fields)


def by_opencv(image, height, width, how=cv2.INTER_LINEAR):
    return cv2.resize(np.ascontiguousarray(image.transpose(1, 2, 0)), (width, height), interpolation=how).transpose(2, 0, 1)


# ---- resize_param


def test_a_data_layer_warps_images_to_one_size():
    small = IMAGE[:, :20, :25]
    batch = transformer(resize_param=[size(height=30, width=36)], scale=0.5)([IMAGE, small])
    for values, image in zip(batch.numpy(), (IMAGE, small), strict=True):
        np.testing.assert_allclose(values, by_opencv(image, 30, 36) * 0.5)


def test_a_fitted_image_is_padded_or_cropped():
    padded = transformer(resize_param=[size(height=30, width=30, resize_mode="FIT_LARGE_SIZE_AND_PAD", pad_value=[7])])([IMAGE])
    assert padded.shape == (1, 3, 30, 30)
    np.testing.assert_allclose(padded[0, :, 5:25], by_opencv(IMAGE, 20, 30))
    assert (padded[0, :, :5] == 7).all()
    assert (padded[0, :, 25:] == 7).all()
    fitted = transformer(phase=caffe.TEST, crop_size=30, resize_param=[size(height=30, width=30, resize_mode="FIT_SMALL_SIZE")])
    assert fitted.shape((3, 40, 60)) == (3, 30, 30)
    np.testing.assert_allclose(fitted([IMAGE]).numpy()[0], by_opencv(IMAGE, 30, 45)[:, :, 7:37])


@pytest.mark.parametrize("extents", [(3, 7), (7, 3), (101, 33), (500, 375), (333, 500)])
def test_the_shape_of_a_fitted_image_is_known_before(extents):
    reader = transformer(resize_param=[size(height=50, width=64, resize_mode="FIT_SMALL_SIZE")])
    image = np.zeros((1, *extents), np.uint8)
    assert tuple(reader([image]).shape[1:]) == reader.shape(image.shape)


def test_the_mean_image_is_that_of_the_resized_images(tmp_path):
    mean = np.random.default_rng(1).uniform(0, 255, (3, 20, 30)).astype(np.float32)
    (tmp_path / "mean.binaryproto").write_bytes(caffe.io.array_to_blobproto(mean[None]).SerializeToString())
    sized = [size(height=20, width=30)]
    reader = transformer(phase=caffe.TEST, mean_file="mean.binaryproto", crop_size=10, resize_param=sized)
    expected = (by_opencv(IMAGE, 20, 30) - mean)[:, 5:15, 10:20]
    np.testing.assert_allclose(reader([IMAGE]).numpy()[0], expected, rtol=1e-6)


# ---- Intel's


def test_the_shorter_side_is_drawn_between_min_and_max_size():
    def sizes(extents, **given):
        param = caffe_pb2.TransformationParameter(random_resize_param=caffe_pb2.RandomResizeParameter(**given))
        return {
            ShorterSide(param, (8, 8), "net", Generator(seed))(np.zeros((3, *extents), np.uint8)).shape[1:] for seed in range(60)
        }

    assert sizes((40, 60), min_size=20, max_size=22) == {(20, 30), (21, 31), (22, 33)}
    assert sizes((50, 25), min_size=20, max_size=20) == {(40, 20)}
    assert {min(extents) for extents in sizes((9, 12))} == {9, 10, 11, 12}


def test_a_drawn_size_is_cropped_and_interpolated_as_told():
    given = caffe_pb2.RandomResizeParameter(min_size=20, max_size=20, resize_param=size(interp_mode=["NEAREST"]))
    reader = transformer(phase=caffe.TEST, crop_size=16, random_resize_param=given)
    assert reader.shape((3, 40, 60)) == (3, 16, 16)
    np.testing.assert_allclose(reader([IMAGE]).numpy()[0], by_opencv(IMAGE, 20, 30, cv2.INTER_NEAREST)[:, 2:18, 7:23])


def test_crops_of_another_aspect_lie_within_the_bounds():
    rows, columns = np.mgrid[:200, :200].astype(np.float32)
    ramp = np.stack([rows, columns])
    given = caffe_pb2.RandomAspectRatioParameter(min_area_ratio=0.25, max_area_ratio=0.5, aspect_ratio_change=0.8)
    param = caffe_pb2.TransformationParameter(random_aspect_ratio_param=given)
    changes = []
    for seed in range(200):
        crop = RandomAspect(param, (50, 50), "net", Generator(seed))(ramp)
        assert crop.shape == (2, 50, 50)
        tall, wide = ((crop[axis].max() - crop[axis].min()) * 50 / 49 for axis in range(2))
        assert 0.24 < tall * wide / 200**2 < 0.51
        changes.append((tall / wide) ** 0.5)
    assert 0.78 < min(changes) < 0.85
    assert 1.18 < max(changes) < 1.28


def test_where_no_crop_fits_the_shorter_side_is_resized():
    given = caffe_pb2.RandomAspectRatioParameter(min_area_ratio=1, max_area_ratio=1)
    reader = transformer(phase=caffe.TEST, crop_size=20, random_aspect_ratio_param=given)
    np.testing.assert_allclose(reader([IMAGE]).numpy()[0], by_opencv(IMAGE, 20, 30)[:, :, 5:25])


@pytest.mark.parametrize("field", ["bgr2rgb", "cvt_bgr2rgb"])
def test_channels_are_reversed_before_the_mean_is_subtracted(field):
    batch = transformer(mean_value=[1, 2, 3], **{field: True})([IMAGE])
    np.testing.assert_allclose(batch.numpy()[0], IMAGE[::-1] - np.array([1, 2, 3]).reshape(3, 1, 1))


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"resize_param": [size(height=3)]}, "resize_param without height and width"),
        ({"resize_param": [size(height=3, width=3)] * 2}, "2 resize_param"),
        (
            {"resize_param": [size(height=3, width=3)], "crop_size": 2, "random_resize_param": {}},
            "several changes of size (random_resize_param, resize_param)",
        ),
        ({"random_resize_param": {}}, "random_resize_param and no crop"),
        ({"random_resize_param": {"min_size": 3}, "crop_size": 4}, "min_size 3 and a crop of 4×4"),
        ({"random_resize_param": {"min_size": 5, "max_size": 4}, "crop_size": 4}, "min_size 5 and max_size 4"),
        ({"random_aspect_ratio_param": {}}, "random_aspect_ratio_param and no crop_size"),
        (
            {"random_aspect_ratio_param": {"min_area_ratio": 0.7, "max_area_ratio": 0.5}, "crop_size": 4},
            "min_area_ratio 0.7 and max_area_ratio 0.5",
        ),
        ({"random_aspect_ratio_param": {"aspect_ratio_change": 2}, "crop_size": 4}, "aspect_ratio_change 2"),
    ],
)
def test_sizes_that_cannot_be_are_refused(fields, found):
    with pytest.raises(caffe.Error) as error:
        transformer(**fields)
    assert error.value.found == found


def test_an_image_that_a_drawn_size_cannot_have_is_refused():
    reader = transformer(crop_size=4, random_resize_param={"max_size": 10})
    with pytest.raises(caffe.Error, match="max_size 10 on an image of 40×60"):
        reader([IMAGE])


# ---- several resize_param


def annotated(write, tmp_path, policies, count=4):
    if not (tmp_path / "boxes").exists():
        datum = caffe_pb2.Datum(channels=3, height=40, width=60, data=IMAGE.tobytes())
        record = caffe_pb2.AnnotatedDatum(datum=datum, type="BBOX")
        box = record.annotation_group.add(group_label=1).annotation.add().bbox
        box.xmin, box.ymin, box.xmax, box.ymax = 0.1, 0.2, 0.5, 0.6
        with lmdb.open(str(tmp_path / "boxes")) as database, database.begin(write=True) as transaction:
            for number in range(count):
                transaction.put(f"{number:08}".encode(), record.SerializeToString())
    text = """layer {{ name: "d" type: "AnnotatedData" top: "x" top: "y"
        data_param {{ source: "boxes" backend: LMDB batch_size: 2 }} transform_param {{ {} }} }}"""
    return caffe.Net(write("net.prototxt", text.format(policies)), caffe.TRAIN)


POLICIES = " ".join(
    f"resize_param {{ prob: {prob} height: {side} width: {side + 4} interp_mode: LINEAR }}"
    for prob, side in ((0.2, 16), (0.5, 20), (0.3, 24))
)


def test_one_of_several_sizes_is_drawn_for_ten_batches_by_its_probability(write, tmp_path):
    net = annotated(write, tmp_path, POLICIES)
    assert net.blobs["x"].data.shape == (2, 3, 16, 20)
    sizes = []
    for _ in range(600):
        net.forward()
        sizes.append(net.blobs["x"].data.shape[2])
        assert net.blobs["x"].data.shape == (2, 3, sizes[-1], sizes[-1] + 4)
        np.testing.assert_allclose(net.blobs["y"].data[0, 0, :, 3:7], [[0.1, 0.2, 0.5, 0.6]] * 2, rtol=1e-6)
    np.testing.assert_allclose(net.blobs["x"].data[0], by_opencv(IMAGE, sizes[-1], sizes[-1] + 4))
    decades = np.array(sizes).reshape(60, 10)
    assert (decades == decades[:, :1]).all()
    for side, probability in ((16, 0.2), (20, 0.5), (24, 0.3)):
        assert abs((decades[:, 0] == side).mean() - probability) < 0.2
    net.close()


def test_a_resumed_layer_draws_the_same_sizes(write, tmp_path):
    net, other = annotated(write, tmp_path, POLICIES), annotated(write, tmp_path, POLICIES)
    for _ in range(13):
        net.forward()
    state = caffe_pb2.LayerState()
    net.layers[0].keep(state)
    other.layers[0].resume(caffe_pb2.LayerState.FromString(state.SerializeToString()))
    for _ in range(60):
        np.testing.assert_array_equal(net.forward()["x"], other.forward()["x"])
    for each in (net, other):
        each.close()


def test_several_sizes_need_probabilities_that_add_up_to_1(write, tmp_path):
    with pytest.raises(caffe.Error) as error:
        annotated(write, tmp_path, "resize_param { height: 3 width: 3 } " * 2)
    assert error.value.found == "2 resize_param of prob 2 in all"


# ---- shuffle_pool_size


def records(count=20):
    with lmdb.open("records") as database, database.begin(write=True) as transaction:
        for number in range(count):
            datum = caffe_pb2.Datum(channels=1, height=1, width=1, data=bytes([number]), label=number)
            transaction.put(f"{number:08}".encode(), datum.SerializeToString())


def pool_net(write, settings="shuffle_pool_size: 3", transform=""):
    param = f'source: "records" backend: LMDB batch_size: 2 {settings}'
    text = f'layer {{ name: "d" type: "Data" top: "x" top: "y" data_param {{ {param} }} {transform} }}'
    return caffe.Net(write("net.prototxt", text), caffe.TRAIN)


def test_records_are_drawn_from_a_pool_once_it_is_full(write):
    records()
    net = pool_net(write)
    given = [net.forward()["y"].astype(int).tolist() for _ in range(200)]
    assert given[:3] == [[0, 1], [2, 3], [4, 5]]
    waiting = list(range(6))
    for number, batch in enumerate(given[3:], 3):
        for label in batch:
            waiting.remove(label)  # raises if it was not in the pool
        waiting += [2 * number % 20, (2 * number + 1) % 20]
    assert given[3:] != [[2 * number % 20, (2 * number + 1) % 20] for number in range(3, 200)]
    assert net.layers[0].batch_dependence()
    net.close()


def test_a_resumed_pool_goes_on_with_its_records(write):
    records()
    net, other = pool_net(write), pool_net(write)
    for _ in range(9):
        net.forward()
    state = caffe_pb2.LayerState()
    net.layers[0].keep(state)
    other.layers[0].resume(caffe_pb2.LayerState.FromString(state.SerializeToString()))
    for _ in range(20):
        np.testing.assert_array_equal(net.forward()["y"], other.forward()["y"])
    for each in (net, other):
        each.close()


@pytest.mark.parametrize(
    ("settings", "transform", "found"),
    [
        ("shuffle: true shuffle_pool_size: 4", "", "shuffle and shuffle_pool_size 4"),
        ("", "transform_param { bgr2rgb: true }", "bgr2rgb"),
    ],
)
def test_what_a_database_layer_cannot_do_is_refused(write, settings, transform, found):
    records()
    with pytest.raises(caffe.Error) as error:
        pool_net(write, settings, transform)
    assert error.value.found == found

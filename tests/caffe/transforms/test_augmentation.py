"""Random augmentation of training images, one by one and batched, and records parsed without copying their pixels."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from google.protobuf.message import DecodeError

import caffe
from caffe.formats import datum
from caffe.proto import caffe_pb2
from caffe.transforms.augmentation import Augmentation
from caffe.transforms.batch_augmentation import augment_batch
from caffe.transforms.transform import Transformer
from tests import without_vector_code
from tests.conftest import ROOT

ALL = {
    **{"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "pca": 0.1},
    **{"min_area": 0.3, "max_aspect": 1.5, "horizontal_flip": 0.5, "vertical_flip": 0.5},
    **{"rotation": 20, "shear": 10, "translation": 0.1, "blur": 2},
}


@pytest.fixture(params=[3, 1], ids=["color", "gray"])
def image(request):
    """A smooth image with an edge, channels × 40 × 60."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (5, 8, 3), dtype=np.uint8)
    smooth = cv2.resize(small, (60, 40), interpolation=cv2.INTER_CUBIC)
    smooth[:, :20] = 255 - smooth[:, :20]
    return np.ascontiguousarray(smooth.transpose(2, 0, 1)[: request.param])


def augmentation(seed=1, **fields):
    return Augmentation(caffe_pb2.AugmentationParameter(**fields), "here", caffe.Generator(seed))


def augment(image, count=8, **fields):
    """Augment `count` copies of an image, one by one and as a batch."""
    made = augmentation(**fields)
    changes = made.draw(count)
    whole = torch.from_numpy(np.repeat(image[None], count, 0))
    return np.stack([made.apply(image, changes, index) for index in range(count)]), augment_batch(made, whole, changes).numpy()


@pytest.mark.parametrize("fields", [{name: ALL[name]} for name in ALL] + [ALL], ids=[*ALL, "all"])
def test_augmenting_one_by_one_agrees_with_augmenting_a_batch(image, fields):
    one, batch = augment(image, **fields)
    assert one.shape == batch.shape == (8, *image.shape)
    difference = np.abs(one.astype(int) - batch)
    # Places to 1/32 of a pixel differ by up to 1/64, along each axis, from those of float32.
    assert difference.max() <= 8
    assert difference.mean() < 0.3


def test_an_image_with_its_channels_last_in_memory_is_augmented_alike_and_left_as_it_is(image):
    made = augmentation(**ALL, noise=5)
    changes = made.draw(3)
    by_pixel = np.ascontiguousarray(image.transpose(1, 2, 0)).transpose(2, 0, 1)
    before = by_pixel.copy()
    for index in range(3):
        np.testing.assert_array_equal(made.apply(by_pixel, changes, index), made.apply(image, changes, index))
    np.testing.assert_array_equal(by_pixel, before)


def test_without_settings_images_are_unchanged(image):
    for made in augment(image):
        np.testing.assert_array_equal(made, np.repeat(image[None], 8, 0))


def test_flips_are_exact(image):
    for fields, meant in (({"horizontal_flip": 1}, image[:, :, ::-1]), ({"vertical_flip": 1}, image[:, ::-1])):
        for made in augment(image, **fields):
            np.testing.assert_array_equal(made, np.repeat(meant[None], 8, 0))
    halves, _ = augment(image, count=200, horizontal_flip=0.5)
    assert 70 < sum(np.array_equal(one, image) for one in halves) < 130


def test_min_area_scales_a_part_of_the_image_to_full_size():
    ramp = np.broadcast_to(np.arange(100, dtype=np.uint8), (1, 100, 100)).copy()
    made, _ = augment(ramp, count=50, min_area=0.25)
    spans = made[:, 0, 50, -1].astype(int) - made[:, 0, 50, 0]
    assert 49 <= spans.min() < 60  # a quarter of the area is half of the side
    assert spans.max() <= 99
    assert made[:, 0, 50, 0].min() < 10
    assert made[:, 0, 50, -1].max() > 89


def test_a_rotation_does_not_distort_images_that_are_not_square():
    disc = np.zeros((1, 100, 200), np.uint8)
    # Around the centre, in halves of pixels; so small that no turn by 45 degrees shows its reflection at a border.
    cv2.circle(disc[0], (199, 99), 40, 255, -1, shift=1)
    made, _ = augment(disc, count=100, rotation=45)
    assert np.abs(made.astype(int) - disc).mean(axis=(1, 2, 3)).max() < 1.2


@pytest.mark.parametrize("fields", [{"saturation": 1}, {"contrast": 1}, {"pca": 0.5}], ids=["saturation", "contrast", "pca"])
def test_rgb_and_bgr_images_are_augmented_alike(fields):
    image = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    for bgr, rgb in zip(augment(image, **fields), augment(np.ascontiguousarray(image[::-1]), rgb=True, **fields), strict=True):
        assert np.abs(bgr.astype(int) - rgb[:, ::-1]).max() <= 1
        assert (bgr != image).any()


def test_brightness_scales_values_and_contrast_scales_distances_from_the_mean():
    image = np.array([[[60, 80], [100, 120]]], np.uint8)
    made = augmentation(brightness=0.5, contrast=0.5)
    changes = made.draw(1)
    bright, contrast, _ = changes.factors[0]
    meant = (image.astype(float) - 90) * bright * contrast + 90 * bright
    assert np.abs(made.apply(image, changes, 0) - meant).max() <= 0.51


def test_saturation_ranges_from_gray_to_double_and_keeps_the_luminance():
    image = np.array([100, 110, 130], np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    made, _ = augment(image, count=100, saturation=1)
    spread = made[:, 2, 0, 0].astype(int) - made[:, 0, 0, 0]
    assert spread.min() < 6
    assert spread.max() > 54
    assert np.abs(made[:, :, 0, 0] @ [0.114, 0.587, 0.299] - image[:, 0, 0] @ [0.114, 0.587, 0.299]).max() < 1


def test_pca_shifts_all_pixels_alike_mostly_along_gray():
    image = np.full((3, 6, 6), 128, np.uint8)
    made, _ = augment(image, count=200, pca=0.5)
    assert (made == made[:, :, :1, :1]).all()
    shifts = made[:, :, 0, 0].astype(float) - 128
    assert 10 < shifts.std() < 30
    assert np.corrcoef(shifts.T).min() > 0.9


def test_noise_has_at_most_the_given_deviation_and_depends_on_the_seed():
    image = np.full((3, 64, 64), 128, np.uint8)
    for made in augment(image, count=40, noise=10):
        deviations = made.std((1, 2, 3))
        assert deviations.max() < 10.5
        assert deviations.max() > 8
        assert deviations.min() < 3
        assert abs(made.mean() - 128) < 0.3
    np.testing.assert_array_equal(augment(image, noise=10)[0], augment(image, noise=10)[0])


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"brightness": 1.5}, "brightness 1.5"),
        ({"rotation": -3}, "rotation -3"),
        ({"min_area": 0}, "min_area 0 and max_aspect 1"),
        ({"max_aspect": 0.5}, "max_aspect 0.5"),
    ],
)
def test_invalid_settings_are_refused(fields, found):
    with pytest.raises(caffe.Error) as error:
        augmentation(**fields)
    assert found in str(error.value)


def test_images_of_other_channels_or_types_are_refused():
    made = augmentation(brightness=0.1)
    for image in (np.zeros((2, 4, 4), np.uint8), np.zeros((3, 4, 4), np.float32)):
        with pytest.raises(caffe.Error, match="1 or 3 channels of bytes"):
            made.apply(image, made.draw(1), 0)


# ---- in a transformation


def transformer(phase=caffe_pb2.TRAIN, **fields):
    return Transformer(caffe_pb2.TransformationParameter(**fields), phase, "here", caffe.Generator(3))


@pytest.mark.parametrize(
    "mean", [{}, {"mean_value": [1, 2, 3]}, {"mean_file": "mean.binaryproto"}], ids=["none", "values", "file"]
)
def test_cropping_and_normalising_on_the_device_gives_the_same_batch(mean, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    blob = caffe.io.array_to_blobproto(rng.random((1, 3, 12, 10)))
    (tmp_path / "mean.binaryproto").write_bytes(blob.SerializeToString())
    images = [rng.integers(0, 256, (3, 12, 10), dtype=np.uint8) for _ in range(9)]
    made = transformer(crop_size=8, mirror=True, scale=0.5, **mean)
    windows = made.draw(images)
    assert len(set(zip(*windows, strict=True))) > 3
    here = made.normalize(made.crop(images, windows), windows)
    there = made.normalize_on_device(made.crop_on_device(torch.from_numpy(np.stack(images)), windows), windows)
    np.testing.assert_array_equal(here, there.numpy())


def test_training_images_are_augmented_before_the_crop_and_test_images_are_not():
    image = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4)
    fields = {"crop_size": 2, "augmentation_param": {"vertical_flip": 1}}
    np.testing.assert_array_equal(transformer(caffe_pb2.TEST, **fields)([image])[0], image[:, 1:3, 1:3])
    made = transformer(**fields)
    windows = made.draw([image])
    top, left = windows.tops[0], windows.lefts[0]
    made.rng = caffe.Generator(3)
    np.testing.assert_array_equal(made([image])[0], image[:, ::-1][:, top : top + 2, left : left + 2])


def test_batches_do_not_depend_on_the_number_of_threads(monkeypatch):
    images = [np.random.default_rng(0).integers(0, 256, (3, 20, 20), dtype=np.uint8) for _ in range(7)]
    fields = {"mirror": True, "crop_size": 16, "augmentation_param": {**ALL, "noise": 5}}
    first = transformer(**fields)(images)
    monkeypatch.setattr("caffe.transforms.transform.WORKERS", 5)
    assert torch.equal(first, transformer(**fields)(images))


# ---- records


@pytest.mark.parametrize(
    "fields",
    [
        {"channels": 3, "height": 2, "width": 1, "data": b"abcdef", "label": 7},
        {"channels": 300, "height": 70000, "width": 1, "data": b"x" * 300, "label": -5, "encoded": True},
        {"channels": 1, "height": 1, "width": 2, "float_data": [1.5, 2], "label": 2**31 - 1},
        {},
    ],
)
def test_parsed_records_agree_with_protobuf(fields):
    message = caffe_pb2.Datum(**fields)
    found = datum.parse_datum(memoryview(message.SerializeToString()))
    for name in datum.Record._fields:
        value, meant = getattr(found, name), getattr(message, name)
        kind = {"data": bytes, "float_data": list}.get(name, int)
        assert kind(value) == kind(meant)


def test_records_that_begin_alike_differ_in_what_follows():
    parse = datum.Parser()
    for label, encoded, data in ((1, False, b"abcdef"), (300, False, b"ghijkl"), (0, True, b"mnopqr"), (2, False, b"too long")):
        record = caffe_pb2.Datum(channels=3, height=2, width=1, data=data, label=label, encoded=encoded).SerializeToString()
        found = parse(memoryview(record))
        assert (found.channels, bytes(found.data), found.label, found.encoded) == (3, data, label, encoded)


def test_damaged_records_are_parsed_or_refused_as_by_protobuf():
    whole = caffe_pb2.Datum(channels=3, height=2, width=1, data=b"abcdef", label=7).SerializeToString()
    rng = np.random.default_rng(0)
    parse = datum.Parser()
    for _ in range(2000):
        assert parse(whole).label == 7
        damaged = bytearray(whole[: rng.integers(len(whole) + 1)])
        if damaged:
            damaged[rng.integers(len(damaged))] = rng.integers(256)
        try:
            meant = caffe_pb2.Datum.FromString(bytes(damaged))
        except DecodeError:
            with pytest.raises(DecodeError):
                parse(bytes(damaged))
        else:
            found = parse(bytes(damaged))
            assert (found.channels, bytes(found.data), found.label) == (meant.channels, meant.data, meant.label)


WARPED = """
import hashlib, numpy, caffe
from caffe.transforms.augmentation import parts, places, warped
draw = numpy.random.RandomState(1)
made = hashlib.sha256()
for channels in (1, 3):
    pixels = draw.randint(0, 256, (227, 227, channels)).astype(numpy.uint8).squeeze()
    for _ in range(10):
        matrix = draw.uniform([[0.5, -0.5, -60], [-0.5, 0.5, -60]], [[1.1, 0.5, 60], [0.5, 1.1, 60]])
        whole, shares = places(*parts(matrix[None], 227, 227))
        made.update(warped(pixels, whole[0], shares[0]))
print(made.hexdigest())
"""


def test_a_warp_does_not_depend_on_vector_code():
    plain, scalar = (
        subprocess.run(
            [sys.executable, "-c", WARPED],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for environment in ({}, without_vector_code.environment())
    )
    assert plain == scalar

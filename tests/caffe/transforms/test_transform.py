"""Images in any memory layout, and batches of any size, are transformed to the same values."""

import numpy as np
import pytest
import torch

import caffe
from caffe.proto import caffe_pb2
from caffe.transforms import transform


def transformed(images, by_pixel=False, **param):
    """The batch that a Transformer makes in training, with the same crops and mirrors each time."""
    transformer = transform.Transformer(caffe_pb2.TransformationParameter(**param), caffe.TRAIN, "here", caffe.Generator(3))
    transformer.pixel_after_pixel = by_pixel
    batch = transformer(images)
    memory = torch.channels_last if by_pixel and batch.shape[1] == 3 else torch.contiguous_format
    assert batch.is_contiguous(memory_format=memory)
    return batch.numpy()


def expected(images, crop=0, mirror=False, mean=0.0, scale=1.0):
    """The same, image by image."""
    draw, size = caffe.Generator(3), images[0].shape[1:]
    room = np.array([size] * len(images)) - (crop or np.array(size))
    corners = draw.integers(room + 1, room.shape) if crop else room
    mirrored = draw.integers(2, len(images)) if mirror else np.zeros(len(images))
    mean = np.broadcast_to(np.float32(mean), images[0].shape)
    batch = []
    for image, (top, left), flips in zip(images, corners, mirrored, strict=True):
        window = (slice(None), slice(top, top + crop if crop else None), slice(left, left + crop if crop else None))
        values = (image[window].astype(np.float32) - mean[window]) * np.float32(scale)
        batch.append(values[:, :, ::-1] if flips else values)
    return np.stack(batch)


@pytest.mark.parametrize("count", [1, 7, 150])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("alone", [True, False], ids=["one thread", "workers"])
@pytest.mark.parametrize("by_pixel", [True, False], ids=["channels last", "channels first"])
@pytest.mark.parametrize(
    ("param", "given"),
    [
        ({}, {}),
        ({"mean_value": [100.0], "scale": 0.5}, {"mean": 100, "scale": 0.5}),
        ({"mirror": True, "mean_value": [100.0]}, {"mirror": True, "mean": 100}),
        ({"crop_size": 20, "mirror": True, "scale": 2.0}, {"crop": 20, "mirror": True, "scale": 2}),
    ],
    ids=["as they are", "mean and scale", "mirrored", "cropped"],
)
def test_images_are_transformed_alike_in_any_layout(monkeypatch, count, channels, alone, by_pixel, param, given):
    if not alone:
        monkeypatch.setattr(transform, "ALONE", 0)
    pixels = np.random.default_rng(1).integers(0, 256, (count, 30, 24, channels), np.uint8)
    decoded = [image.transpose(2, 0, 1) for image in pixels]  # pixel after pixel, as OpenCV decodes
    stored = [np.ascontiguousarray(image) for image in decoded]  # channel after channel, as records have them
    batch = expected(stored, **given)
    for images in (decoded, stored):
        assert np.array_equal(transformed(images, by_pixel, **param), batch)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (2, 3)])
def test_tiny_images_are_transformed_alike(size):
    pixels = np.random.default_rng(1).integers(0, 256, (9, *size, 3), np.uint8)
    decoded = [image.transpose(2, 0, 1) for image in pixels]
    for images in (decoded, [np.ascontiguousarray(image) for image in decoded]):
        for by_pixel in (False, True):
            found = transformed(images, by_pixel, mirror=True, mean_value=[3.0])
            assert np.array_equal(found, expected(images, mirror=True, mean=3))


def test_a_mean_image_is_cropped_and_mirrored_like_its_image(tmp_path):
    draw = np.random.default_rng(1)
    images = list(draw.integers(0, 256, (40, 3, 9, 8), np.uint8))
    mean = draw.uniform(0, 255, (1, 3, 9, 8)).astype(np.float32)
    path = tmp_path / "mean.binaryproto"
    path.write_bytes(caffe.io.array_to_blobproto(mean).SerializeToString())
    for param, given in (
        ({}, {}),
        ({"mirror": True}, {"mirror": True}),
        ({"crop_size": 6, "mirror": True}, {"crop": 6, "mirror": True}),
    ):
        for by_pixel in (False, True):
            found = transformed(images, by_pixel, mean_file=str(path), **param)
            assert np.array_equal(found, expected(images, mean=mean[0], **given))

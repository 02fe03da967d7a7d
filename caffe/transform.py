"""What transform_param does to images on their way into a net: crop, mirror, mean, scale."""

from __future__ import annotations

import cv2
import numpy as np

from caffe.errors import Error
from caffe.proto import caffe_pb2
from caffe.stored import read_array

FORKS = 20000
"""Numbers of the schema's fields of forks are above it."""


def read_mean(path: str) -> np.ndarray:
    """The mean image of a binaryproto: channels × height × width, float32."""
    array = read_array(path, "mean file", "compute it with compute_image_mean, or correct transform_param.mean_file")
    return array.reshape(array.shape[-3:])


def pixels_of(datum: caffe_pb2.Datum, color: bool | None, where: str) -> np.ndarray:
    """A record's image, channels × height × width: uint8 as stored or decoded (BGR), or float32.

    color  True or False decodes encoded images to three channels or one; None keeps their own number
    """
    if datum.encoded:
        flag = cv2.IMREAD_UNCHANGED if color is None else (cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE)
        try:
            image = cv2.imdecode(np.frombuffer(datum.data, np.uint8), flag)
        except cv2.error:  # nothing at all, or more pixels than OpenCV takes
            image = None
        if image is None:
            raise Error(where, "an encoded record that does not decode", do="rebuild the database")
        return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    shape = (datum.channels, datum.height, datum.width)
    pixels = np.frombuffer(datum.data, np.uint8) if datum.data else np.asarray(datum.float_data, np.float32)
    if min(shape) < 1 or pixels.size != shape[0] * shape[1] * shape[2]:
        raise Error(where, f"a record of {pixels.size} values for shape {shape}", do="rebuild the database")
    return pixels.reshape(shape)


class Transformer:
    """Applies a TransformationParameter to images of one batch.

    rng  the generator that training draws crops, and both phases draw mirrors from
    """

    def __init__(self, param: caffe_pb2.TransformationParameter, phase: int, where: str, rng: np.random.Generator):
        if param.mean_file and param.mean_value:
            raise Error(where, "both mean_file and mean_value", "one of them is wanted")
        if param.force_color and param.force_gray:
            raise Error(where, "both force_color and force_gray", "one of them is wanted")
        for field, _ in param.ListFields():
            if field.number > FORKS:
                raise Error(where, f"transform_param has {field.name}", "only AnnotatedData applies it", "leave it out")
        self.param = param
        self.training = phase == caffe_pb2.TRAIN
        self.where = where
        self.rng = rng
        self.color = True if param.force_color else (False if param.force_gray else None)
        self.mean = read_mean(param.mean_file) if param.mean_file else None

    def shape(self, image: tuple[int, int, int]) -> tuple[int, int, int]:
        """Channels, height and width after the transformation of an image of that shape."""
        crop = self.param.crop_size
        if crop > min(image[1:]):
            raise Error(self.where, f"crop_size {crop} on images of {image[1]}×{image[2]}", "the crop must fit into the image")
        if self.mean is not None and self.mean.shape != tuple(image):
            raise Error(
                self.where,
                f"{self.param.mean_file} has shape {self.mean.shape}",
                f"the images have {tuple(image)}",
                "compute the mean from this database",
            )
        if len(self.param.mean_value) not in (0, 1, image[0]):
            raise Error(
                self.where,
                f"{len(self.param.mean_value)} mean values",
                f"the images have {image[0]} channels",
                "give one, or one each",
            )
        return (image[0], crop, crop) if crop else tuple(image)

    def __call__(self, images: list[np.ndarray]) -> np.ndarray:
        """float32 batch × channels × height × width: (crop(image) - mean) · scale, mirrored at random where asked for."""
        channels, height, width = self.shape(images[0].shape)
        batch = np.empty((len(images), channels, height, width), np.float32)
        values = np.asarray(self.param.mean_value, np.float32)[:, None, None] if self.param.mean_value else None
        for image, target in zip(images, batch, strict=True):
            if image.shape[0] != channels or self.shape(image.shape) != (channels, height, width):
                raise Error(
                    self.where,
                    f"an image of shape {image.shape} in a batch of {images[0].shape}",
                    do="resize them alike, or set crop_size",
                )
            top, left = self.corner(image.shape[1] - height, image.shape[2] - width)
            window = np.s_[:, top : top + height, left : left + width]
            if self.param.mirror and self.rng.integers(2):
                target = target[:, :, ::-1]
            if self.mean is not None:
                np.subtract(image[window], self.mean[window], out=target)
            elif values is not None:
                np.subtract(image[window], values, out=target)
            else:
                target[...] = image[window]
        if self.param.scale != 1:
            batch *= np.float32(self.param.scale)
        return batch

    def corner(self, down: int, right: int) -> tuple[int, int]:
        """Where the crop begins, given how far it can move: at random in training, in the middle in testing."""
        if self.training and self.param.crop_size:
            return int(self.rng.integers(down + 1)), int(self.rng.integers(right + 1))
        return down // 2, right // 2

"""What transform_param does to images on their way into a net: random changes, crop, mirror, mean, scale."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
import torch

from caffe.errors import Error
from caffe.formats.stored import read_array
from caffe.proto import caffe_pb2
from caffe.transforms.augmentation import Augmentation, Changes
from caffe.transforms.batch_augmentation import changed_batch

SSD = range(20001, 21000)
"""Numbers of the schema's fields of SSD, which AnnotatedData applies."""
WORKERS = min(8, os.cpu_count() or 1)
"""Threads that work on the images of one batch."""


@functools.cache
def workers() -> ThreadPoolExecutor:
    """The threads that all readers of the process share."""
    return ThreadPoolExecutor(WORKERS, thread_name_prefix="images")


def read_mean(path: str) -> np.ndarray:
    """The mean image of a binaryproto: channels × height × width, float32."""
    array = read_array(path, "mean file", "compute it with compute_image_mean, or correct transform_param.mean_file")
    return array.reshape(array.shape[-3:])


class Windows(NamedTuple):
    """Where each image of a batch is cropped, and whether it is mirrored then: arrays of N."""

    tops: np.ndarray
    lefts: np.ndarray
    mirrored: np.ndarray


class Transformer:
    """Applies a TransformationParameter to images of one batch.

    rng     the generator that training draws crops and changes, and both phases draw mirrors from
    device  where batches are made; on a GPU, images come as bytes and are changed and made floats there
    """

    def __init__(
        self,
        param: caffe_pb2.TransformationParameter,
        phase: int,
        where: str,
        rng: np.random.Generator,
        device: torch.device = torch.device("cpu"),  # noqa: B008, it does not change
    ):
        if param.mean_file and param.mean_value:
            raise Error(where, "both mean_file and mean_value", "one of them is wanted")
        if param.force_color and param.force_gray:
            raise Error(where, "both force_color and force_gray", "one of them is wanted")
        for field, _ in param.ListFields():
            if field.number in SSD:
                raise Error(where, f"transform_param has {field.name}", "only AnnotatedData applies it", "leave it out")
        self.param, self.where, self.rng, self.device = param, where, rng, device
        self.training = phase == caffe_pb2.TRAIN
        self.color = True if param.force_color else (False if param.force_gray else None)
        self.mean = read_mean(param.mean_file) if param.mean_file else None
        self.augmentation = None
        if param.HasField("augmentation_param") and self.training:
            self.augmentation = Augmentation(param.augmentation_param, where, rng)

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

    def __call__(self, images: list[np.ndarray]) -> torch.Tensor:
        """float32 batch × channels × height × width: (crop(change(image)) - mean) · scale, mirrored at random where asked for."""
        windows = self.draw(images)
        changes = self.augmentation.draw(len(images)) if self.augmentation else None
        if self.device.type == "cpu":
            return torch.from_numpy(self.values(self.cut(images, windows, changes), windows))
        if changes and len({image.shape for image in images}) == 1:
            whole = torch.from_numpy(np.stack(images)).to(self.device)
            return self.values_there(self.cut_there(changed_batch(self.augmentation, whole, changes), windows), windows)
        return self.values_there(torch.from_numpy(self.cut(images, windows, changes)).to(self.device), windows)

    def draw(self, images: list[np.ndarray]) -> Windows:
        """Crops, at random in training, in the middle in testing; and mirrors."""
        channels, height, width = shape = self.shape(images[0].shape)
        for image in images:
            if image.shape != images[0].shape and (len(image) != channels or self.shape(image.shape) != shape):
                raise Error(
                    self.where,
                    f"an image of shape {image.shape} in a batch of {images[0].shape}",
                    do="resize them alike, or set crop_size",
                )
        room = np.array([image.shape[1:] for image in images]) - (height, width)
        corners = self.rng.integers(room + 1) if self.training and self.param.crop_size else room // 2
        mirrored = self.rng.integers(2, size=len(images)) if self.param.mirror else np.zeros(len(images), int)
        return Windows(corners[:, 0], corners[:, 1], mirrored.astype(bool))

    # ---- on the CPU

    def cut(self, images: list[np.ndarray], windows: Windows, changes: Changes | None = None) -> np.ndarray:
        """The images, changed, in their windows: batch × channels × height × width, of the images' type."""
        batch = np.empty((len(images), *self.shape(images[0].shape)), images[0].dtype)
        height, width = batch.shape[2:]

        def one(index: int) -> None:
            image, target = images[index], batch[index]
            if changes:
                image = self.augmentation.changed(image, changes, index)
            top, left = windows.tops[index], windows.lefts[index]
            window = image[:, top : top + height, left : left + width]
            if windows.mirrored[index] and image.dtype == batch.dtype:
                for plane, into in zip(window, target, strict=True):
                    cv2.flip(plane, 1, into)
            else:
                target[...] = window[:, :, ::-1] if windows.mirrored[index] else window

        self._for_each(one, len(images))
        return batch

    def values(self, pixels: np.ndarray, windows: Windows) -> np.ndarray:
        """Less the mean, as far as it lies in the window, and scaled; float32."""
        batch = np.empty(pixels.shape, np.float32)
        given = self.param.mean_value
        mean = np.asarray(given, np.float32)[:, None, None] if given else None
        height, width = pixels.shape[2:]

        def one(index: int) -> None:
            target, under = batch[index], mean
            target[...] = pixels[index]
            if self.mean is not None:
                top, left = windows.tops[index], windows.lefts[index]
                under = self.mean[:, top : top + height, left : left + width]
                under = under[:, :, ::-1] if windows.mirrored[index] else under
            if under is not None:
                target -= under
            if self.param.scale != 1:
                target *= np.float32(self.param.scale)

        self._for_each(one, len(pixels))
        return batch

    @staticmethod
    def _for_each(one: Callable[[int], None], count: int) -> None:
        """one(0) … one(count - 1), each worker a part of them."""

        def some(worker: int) -> None:
            for index in range(worker, count, WORKERS):
                one(index)

        list(workers().map(some, range(WORKERS)))

    # ---- on the device

    def places(self, windows: Windows, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and column of each pixel of the windows, to index with: N × 1 × height × 1 and N × 1 × 1 × width."""
        rows = windows.tops[:, None] + np.arange(height)
        columns = np.where(windows.mirrored[:, None], np.arange(width)[::-1], np.arange(width)) + windows.lefts[:, None]
        rows, columns = (torch.from_numpy(one).to(self.device) for one in (rows, columns))
        return rows[:, None, :, None], columns[:, None, None, :]

    def cut_there(self, images: torch.Tensor, windows: Windows) -> torch.Tensor:
        """`cut` of images of one size, batch × channels × height × width, on the device."""
        rows, columns = self.places(windows, *self.shape(images.shape[1:])[1:])
        numbers, channels = (torch.arange(extent, device=self.device) for extent in images.shape[:2])
        return images[numbers[:, None, None, None], channels[:, None, None], rows, columns]

    def values_there(self, pixels: torch.Tensor, windows: Windows) -> torch.Tensor:
        """`values` on the device."""
        batch = pixels.float()
        if self.mean is not None:
            rows, columns = self.places(windows, *pixels.shape[2:])
            channels = torch.arange(pixels.shape[1], device=self.device)[:, None, None]
            batch -= torch.from_numpy(self.mean).to(self.device)[channels, rows, columns]
        elif self.param.mean_value:
            batch -= torch.tensor(list(self.param.mean_value), device=self.device)[:, None, None]
        return batch.mul_(self.param.scale) if self.param.scale != 1 else batch

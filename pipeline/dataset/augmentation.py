"""A dataset's augmentation as Caffe's message, and copies of images that it changes."""

from __future__ import annotations

import numpy as np

from caffe.augmentation import Augmentation
from caffe.proto import caffe_pb2
from pipeline.options.dataset import Augmentation as AugmentationOptions


def as_param(changes: AugmentationOptions) -> caffe_pb2.AugmentationParameter:
    """The changes as Caffe's layers take them."""
    return caffe_pb2.AugmentationParameter(**changes.model_dump(exclude_none=True))


def of_records(changes: caffe_pb2.AugmentationParameter, channels: str) -> caffe_pb2.AugmentationParameter:
    """The same changes for records whose channels are in that order: BGR or RGB."""
    made = caffe_pb2.AugmentationParameter()
    made.CopyFrom(changes)
    if channels == "RGB":
        made.rgb = True
    return made


def changed(image: np.ndarray, param: caffe_pb2.AugmentationParameter, seed: tuple[int, ...]) -> np.ndarray:
    """A changed copy of an image, uint8, height × width × 3 (BGR) or height × width; equal seeds change it alike."""
    augmentation = Augmentation(param, "augmentation", np.random.default_rng(seed))
    planes = image.transpose(2, 0, 1) if image.ndim == 3 else image[None]
    made = augmentation.changed(planes, augmentation.draw(1), 0)
    return made.transpose(1, 2, 0) if image.ndim == 3 else made[0]

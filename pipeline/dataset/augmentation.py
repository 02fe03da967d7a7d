"""Data augmentation of a dataset: its parameters as Caffe's message, and augmented copies of images."""

import numpy as np

import caffe
from caffe.augmentation import Augmentation
from caffe.proto import caffe_pb2
from pipeline.options.dataset import Augmentation as AugmentationOptions


def as_param(augmentation: AugmentationOptions) -> caffe_pb2.AugmentationParameter:
    """The augmentation as Caffe's layers take it."""
    return caffe_pb2.AugmentationParameter(**augmentation.model_dump(exclude_none=True))


def for_channels(param: caffe_pb2.AugmentationParameter, channels: str) -> caffe_pb2.AugmentationParameter:
    """The same augmentation for records with this channel order: BGR or RGB."""
    copy = caffe_pb2.AugmentationParameter()
    copy.CopyFrom(param)
    if channels == "RGB":
        copy.rgb = True
    return copy


def augment(image: np.ndarray, param: caffe_pb2.AugmentationParameter, seed: tuple[int, ...]) -> np.ndarray:
    """An augmented copy of an image, uint8, height × width × 3 (BGR) or height × width, by seed."""
    augmentation = Augmentation(param, "augmentation", caffe.Generator(*seed))
    planes = image.transpose(2, 0, 1) if image.ndim == 3 else image[None]
    augmented = augmentation.apply(planes, augmentation.draw(1), 0)
    return augmented.transpose(1, 2, 0) if image.ndim == 3 else augmented[0]

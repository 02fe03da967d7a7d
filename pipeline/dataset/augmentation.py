"""A dataset's augmentation, as steps are told of it, and copies changed by it."""

from __future__ import annotations

import numpy as np
from google.protobuf import json_format

from caffe.augmentation import Augmentation
from caffe.proto import caffe_pb2
from pipeline.errors import InputError


def parsed(fields: str) -> caffe_pb2.AugmentationParameter:
    """The changes that a JSON object of AugmentationParameter's fields asks for."""
    try:
        return json_format.Parse(fields, caffe_pb2.AugmentationParameter())
    except json_format.ParseError as error:
        found = str(error).splitlines()[0]
        raise InputError("augmentation", found, "a JSON object of AugmentationParameter's fields is wanted") from None


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
    made = augmentation.apply(planes, augmentation.draw(1), 0)
    return made.transpose(1, 2, 0) if image.ndim == 3 else made[0]

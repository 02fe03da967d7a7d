"""caffe.io: load, resize and preprocess images; convert blobs and datums to arrays and back.

Images are height × width × channels, RGB, float32 from 0 to 1, as in scikit-image; a Transformer converts them to a net's input.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from caffe.errors import ImageError
from caffe.formats.stored import add_array, add_values, shape_of, values_of
from caffe.proto import caffe_pb2


def blobproto_to_array(blob: caffe_pb2.BlobProto, return_diff: bool = False) -> np.ndarray:
    """The values of a stored blob (or its gradient) in its shape; float64, as in pycaffe."""
    return values_of(blob, return_diff).astype(float).reshape(shape_of(blob))


def array_to_blobproto(array: np.ndarray, diff: np.ndarray | None = None) -> caffe_pb2.BlobProto:
    """An array, and its gradient if given, as a stored blob."""
    blob = caffe_pb2.BlobProto()
    add_array(blob, array)
    if diff is not None:
        add_values(blob, diff, diff=True)
    return blob


def arraylist_to_blobprotovector_str(arrays: list[np.ndarray]) -> bytes:
    """A serialised BlobProtoVector of several arrays."""
    return bytes(caffe_pb2.BlobProtoVector(blobs=[array_to_blobproto(array) for array in arrays]).SerializeToString())


arraylist_to_blobprotovecor_str = arraylist_to_blobprotovector_str
"""BVLC Caffe's spelling."""


def blobprotovector_str_to_arraylist(string: bytes) -> list[np.ndarray]:
    """The arrays of a serialised BlobProtoVector."""
    return [blobproto_to_array(blob) for blob in caffe_pb2.BlobProtoVector.FromString(string).blobs]


def array_to_datum(array: np.ndarray, label: int | None = None) -> caffe_pb2.Datum:
    """An image, channels × height × width, as a record: uint8 as bytes, anything else as floats."""
    if array.ndim != 3:
        raise ValueError(f"an array of shape {array.shape}, but a datum has 3 axes (channels, height, width)")
    datum = caffe_pb2.Datum(channels=array.shape[0], height=array.shape[1], width=array.shape[2])
    if array.dtype == np.uint8:
        datum.data = array.tobytes()
    else:
        datum.float_data.extend(array.astype(float).flat)
    if label is not None:
        datum.label = label
    return datum


def datum_to_array(datum: caffe_pb2.Datum) -> np.ndarray:
    """The pixels of a record that is not encoded, copied, channels × height × width: uint8, or float if it holds floats."""
    shape = (datum.channels, datum.height, datum.width)
    if len(datum.data):
        return np.frombuffer(datum.data, dtype=np.uint8).reshape(shape).copy()
    return np.array(datum.float_data, dtype=float).reshape(shape)


# ---- images

LUMINANCE = np.array([0.2125, 0.7154, 0.0721], np.float32)
"""Weights of red, green and blue in gray, as in scikit-image (Rec. 709)."""


def load_image(filename: str | os.PathLike[str], color: bool = True) -> npt.NDArray[np.float32]:
    """Load an image file: height × width × 3, RGB, or × 1 with `color=False`; float32 from 0 to 1. Drops an alpha channel."""
    import cv2

    if not Path(filename).exists():
        raise ImageError(str(filename), "no such image")
    loaded: np.ndarray | None = cv2.imread(str(filename), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if loaded is None:
        raise ImageError(str(filename), "not an image that OpenCV can read")
    full_scale = np.iinfo(loaded.dtype).max if loaded.dtype.kind == "u" else 1
    image: npt.NDArray[np.float32] = loaded.astype(np.float32) / np.float32(full_scale)
    if image.ndim == 2:
        image = image[:, :, None]
        return np.repeat(image, 3, axis=2) if color else image
    image = np.ascontiguousarray(image[:, :, 2::-1])
    return image if color else (image @ LUMINANCE)[:, :, None]


def resize_image(im: np.ndarray, new_dims: Sequence[int] | np.ndarray, interp_order: int = 1) -> npt.NDArray[np.float32]:
    """Resize an image: height × width × K to new_dims (height, width) × K, float32.

    interp_order  of the spline: 0 nearest, 1 linear, up to 5. Images of 1 or 3 channels are resized as by scikit-image: when
    shrinking first smoothed by a Gaussian of standard deviation (factor - 1) / 2, with zeros beyond the edge; images of any
    other number of channels are zoomed with aligned corners.
    """
    from scipy import ndimage

    if im.shape[-1] not in (1, 3):
        factors = (*(new / old for new, old in zip(new_dims, im.shape[:2], strict=True)), 1)
        return np.asarray(ndimage.zoom(im, factors, order=interp_order), np.float32)
    low, high = im.min(), im.max()
    if low == high:
        return np.full((*new_dims, im.shape[-1]), low, dtype=np.float32)
    standard = ((im - low) / (high - low)).astype(np.float32)
    shrinks = [old / new for old, new in zip(im.shape[:2], new_dims, strict=True)]
    if max(shrinks) > 1 and interp_order > 0:
        deviations = (*(max(0.0, (shrink - 1) / 2) for shrink in shrinks), 0)
        standard = ndimage.gaussian_filter(standard, deviations, mode="constant")
    factors = (*(1 / shrink for shrink in shrinks), 1)
    resized = ndimage.zoom(standard, factors, order=interp_order, mode="grid-constant", grid_mode=True)
    unscaled: npt.NDArray[np.float32] = resized.astype(np.float32) * (high - low) + low
    return unscaled


def oversample(images: Sequence[np.ndarray] | np.ndarray, crop_dims: Sequence[int] | np.ndarray) -> npt.NDArray[np.float32]:
    """Ten crops of each image: four corners and the centre, and the mirror image of each.

    images     height × width × K, all of one shape
    crop_dims  (height, width)
    Returns 10 N × height × width × K, float32: the five crops of an image, then their mirror images.
    """
    shape = np.array(images[0].shape[:2])
    crop = np.array(crop_dims)
    rows, columns = ((0, int(extra)) for extra in shape - crop)
    centre = (shape - crop) / 2
    corners = [(row, column) for row in rows for column in columns] + [tuple(int(start) for start in centre)]
    crops = []
    for image in images:
        straight = [image[row : row + crop[0], column : column + crop[1]] for row, column in corners]
        crops += straight + [part[:, ::-1] for part in straight]
    return np.array(crops, dtype=np.float32)


class Transformer:
    """Preprocesses images for a net's inputs, and reverts it.

        transformer = caffe.io.Transformer({"data": net.blobs["data"].data.shape})
        transformer.set_transpose("data", (2, 0, 1))        # channels first
        transformer.set_channel_swap("data", (2, 1, 0))     # RGB to BGR
        transformer.set_raw_scale("data", 255)              # from 0–1 to 0–255
        transformer.set_mean("data", mean)
        net.blobs["data"].data[...] = transformer.preprocess("data", caffe.io.load_image(path))

    inputs  {input blob: shape (N, C, H, W)}
    In `preprocess` the steps run in the order: resize, transpose, channel swap, raw scale, mean, input scale.
    """

    def __init__(self, inputs: Mapping[str, Sequence[int]]):
        self.inputs = inputs
        self.transpose: dict[str, Sequence[int]] = {}
        self.channel_swap: dict[str, Sequence[int]] = {}
        self.raw_scale: dict[str, float] = {}
        self.mean: dict[str, np.ndarray] = {}
        self.input_scale: dict[str, float] = {}

    def _check(self, in_: str) -> None:
        if in_ not in self.inputs:
            raise Exception(f"{in_} is not one of the net inputs: {self.inputs}")

    def preprocess(self, in_: str, data: np.ndarray) -> np.ndarray:
        """Preprocess an image, height × width × channels, for input `in_`: channels × height × width with the usual transpose."""
        self._check(in_)
        result: np.ndarray = data.astype(np.float32, copy=False)
        dims = tuple(self.inputs[in_][2:])
        if result.shape[:2] != dims:
            result = resize_image(result, dims)
        if (transpose := self.transpose.get(in_)) is not None:
            result = result.transpose(transpose)
        if (swap := self.channel_swap.get(in_)) is not None:
            result = result[list(swap), :, :]
        if (raw_scale := self.raw_scale.get(in_)) is not None:
            result = result * np.float32(raw_scale)
        if (mean := self.mean.get(in_)) is not None:
            result = (result - mean).astype(np.float32, copy=False)
        if (input_scale := self.input_scale.get(in_)) is not None:
            result = result * np.float32(input_scale)
        return result

    def deprocess(self, in_: str, data: np.ndarray) -> np.ndarray:
        """Revert `preprocess`, except for the resizing."""
        self._check(in_)
        result = data.copy().squeeze()
        if (input_scale := self.input_scale.get(in_)) is not None:
            result /= input_scale
        if (mean := self.mean.get(in_)) is not None:
            result += mean
        if (raw_scale := self.raw_scale.get(in_)) is not None:
            result /= raw_scale
        if (swap := self.channel_swap.get(in_)) is not None:
            result = result[np.argsort(swap), :, :]
        if (transpose := self.transpose.get(in_)) is not None:
            result = result.transpose(np.argsort(transpose))
        return result

    def set_transpose(self, in_: str, order: Sequence[int]) -> None:
        """Set the order of the axes: (2, 0, 1) puts channels first."""
        self._check(in_)
        if len(order) != len(self.inputs[in_]) - 1:
            raise Exception("Transpose order needs to have the same number of dimensions as the input.")
        self.transpose[in_] = order

    def set_channel_swap(self, in_: str, order: Sequence[int]) -> None:
        """Set the order of the channels: (2, 1, 0) converts RGB to BGR."""
        self._check(in_)
        if len(order) != self.inputs[in_][1]:
            raise Exception("Channel swap needs to have the same number of dimensions as the input channels.")
        self.channel_swap[in_] = order

    def set_raw_scale(self, in_: str, scale: float) -> None:
        """Set the factor applied before the mean is subtracted: 255 if the mean is of pixels from 0 to 255."""
        self._check(in_)
        self.raw_scale[in_] = scale

    def set_mean(self, in_: str, mean: np.ndarray) -> None:
        """Set the mean to subtract: one value for each channel, or an image, which is resized to the input's size."""
        self._check(in_)
        channels, *size = self.inputs[in_][1:]
        shape = {1: (*mean.shape, 1, 1), 2: (1, *mean.shape)}.get(mean.ndim, mean.shape)
        if len(shape) != 3:
            raise ValueError("Mean shape invalid")
        if shape[0] != channels:
            raise ValueError("Mean channels incompatible with input.")
        if mean.ndim == 1:
            mean = mean.reshape(shape)
        elif shape[1:] != tuple(size):
            low, high = mean.min(), mean.max()
            span = (high - low) or 1
            image = (mean.reshape(shape) - low).transpose(1, 2, 0) / span
            mean = resize_image(image, size).transpose(2, 0, 1) * span + low
        self.mean[in_] = mean

    def set_input_scale(self, in_: str, scale: float) -> None:
        """Set the factor applied after the mean is subtracted."""
        self._check(in_)
        self.input_scale[in_] = scale

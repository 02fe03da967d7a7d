"""Images to a net's inputs: load, resize, crop and preprocess. `caffe.io` has these names.

Images are height × width × channels, RGB, float32 from 0 to 1, as in scikit-image; a Transformer converts them to a net's input.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from caffe.errors import FileError, ImageError
from caffe.formats.stored import read_array


def mean_of(mean: str | os.PathLike[str] | np.ndarray) -> np.ndarray:
    """A mean: an array as it is, or read from a .npy or .binaryproto file, channels × height × width.

    Raises FileError if there is no such file, or if it is of another kind.
    """
    if isinstance(mean, np.ndarray):
        return mean
    path, do = os.fsdecode(mean), "give a .npy file of an array, or a .binaryproto file"
    if not path.endswith(".npy"):
        image = read_array(path, "mean file", do).astype(float)
        return image[0] if image.ndim == 4 else image
    try:
        return np.asarray(np.load(path))
    except FileNotFoundError:
        raise FileError(path, "no such mean file", do=do) from None
    except ValueError as error:
        raise FileError(path, f"not a mean file ({error})", do=do) from error


LUMINANCE = np.array([0.2125, 0.7154, 0.0721], np.float32)
"""Weights of red, green and blue in gray, as in scikit-image (Rec. 709)."""


def load_image(filename: str | os.PathLike[str] | IO[bytes], color: bool = True) -> npt.NDArray[np.float32]:
    """Load an image file: height × width × 3, RGB, or × 1 with `color=False`; float32 from 0 to 1. Drops an alpha channel.

    filename  a path, or a file open for reading bytes
    """
    import cv2

    if isinstance(filename, (str, os.PathLike)):
        name = os.fsdecode(filename)
        if not Path(name).exists():
            raise ImageError(name, "no such image")
        content = Path(name).read_bytes()
    else:
        name, content = str(getattr(filename, "name", "the given file")), filename.read()
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    loaded: np.ndarray | None = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content else None
    if loaded is None:
        raise ImageError(name, "not an image that OpenCV can read")
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

    def set_mean(self, in_: str, mean: np.ndarray | str | os.PathLike[str]) -> None:
        """Set the mean to subtract: one value for each channel, or an image, which is resized to the input's size.

        mean  an array, or a .npy or .binaryproto file
        """
        self._check(in_)
        values = mean_of(mean)
        channels, *size = self.inputs[in_][1:]
        shape = {1: (*values.shape, 1, 1), 2: (1, *values.shape)}.get(values.ndim, values.shape)
        if len(shape) != 3:
            raise ValueError("Mean shape invalid")
        if shape[0] != channels:
            raise ValueError("Mean channels incompatible with input.")
        if values.ndim == 1:
            values = values.reshape(shape)
        elif shape[1:] != tuple(size):
            low, high = values.min(), values.max()
            span = (high - low) or 1
            image = (values.reshape(shape) - low).transpose(1, 2, 0) / span
            values = resize_image(image, size).transpose(2, 0, 1) * span + low
        self.mean[in_] = values

    def set_input_scale(self, in_: str, scale: float) -> None:
        """Set the factor applied after the mean is subtracted."""
        self._check(in_)
        self.input_scale[in_] = scale

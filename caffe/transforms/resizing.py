"""Resizing by a ResizeParameter: SSD's policies of size, aspect and padding, and the sizes that Intel's fork draws with it."""

import cv2
import numpy as np

from caffe.errors import Error
from caffe.numerics.generator import Generator
from caffe.proto import caffe_pb2

RESIZE = caffe_pb2.ResizeParameter
_INTERPOLATIONS: dict[int, int] = {value: getattr(cv2, f"INTER_{name}") for name, value in RESIZE.Interp_mode.items()}
_BORDERS = {
    RESIZE.CONSTANT: cv2.BORDER_CONSTANT,
    RESIZE.MIRRORED: cv2.BORDER_REFLECT_101,
    RESIZE.REPEAT_NEAREST: cv2.BORDER_REPLICATE,
}


class Resizing:
    """Applies a ResizeParameter to images, height × width × channels, as ApplyResize of SSD's im_transforms.cpp."""

    def __init__(self, param: RESIZE, where: str, rng: Generator):
        if not (param.height and param.width):
            raise Error(where, "resize_param without height and width", "both must be given")
        self.param, self.where, self.rng = param, where, rng

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The image in its new size, padded if resize_mode says so."""
        if image.shape[2] > 4:
            raise Error(self.where, f"resize_param for images of {image.shape[2]} channels", "at most 4 can be resized")
        p = self.param
        height, width = self.size(image.shape[:2])
        image = interpolated(image, height, width, p, self.rng)
        if p.resize_mode != RESIZE.FIT_LARGE_SIZE_AND_PAD:
            return image
        top, left = (p.height - height) // 2, (p.width - width) // 2
        values = np.resize(np.asarray(p.pad_value or [0], float), 4).tolist()
        around = (top, p.height - height - top, left, p.width - width - left)
        return cv2.copyMakeBorder(image, *around, _BORDERS[p.pad_mode], value=values).reshape(p.height, p.width, -1)

    def size(self, extents: tuple[int, ...]) -> tuple[int, int]:
        """Height and width after resizing an image of these extents, without padding."""
        p = self.param
        if p.resize_mode == RESIZE.WARP:
            return p.height, p.width
        aspect = extents[1] / extents[0]
        by_width = (aspect > p.width / p.height) == (p.resize_mode == RESIZE.FIT_LARGE_SIZE_AND_PAD)
        return (max(1, int(p.width / aspect)), p.width) if by_width else (p.height, max(1, int(aspect * p.height)))

    def extents(self, extents: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of the result for an image of these extents, with its padding."""
        p = self.param
        return (p.height, p.width) if p.resize_mode == RESIZE.FIT_LARGE_SIZE_AND_PAD else self.size(extents)


def interpolated(image: np.ndarray, height: int, width: int, param: RESIZE, rng: Generator) -> np.ndarray:
    """The image, height × width × channels, in another size, by one of interp_mode that is drawn; LINEAR if there is none."""
    modes = list(param.interp_mode) or [RESIZE.LINEAR]
    mode = _INTERPOLATIONS[modes[rng.integers(len(modes))]]
    # OpenCV drops the axis of a single channel.
    return cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=mode).reshape(height, width, -1)


class ShorterSide:
    """random_resize_param of intel/caffe's data_transformer.cpp, in both phases.

    The shorter side gets a length from min_size to max_size, and the other follows, rounded down. Where they are not given, they
    are the image's own shorter and longer side. Images are channels × height × width.
    """

    def __init__(self, param: caffe_pb2.TransformationParameter, crop: tuple[int, int], where: str, rng: Generator):
        p = param.random_resize_param
        if not all(crop):
            raise Error(where, "random_resize_param and no crop", "a batch has one size", "give crop_size")
        if p.min_size and p.min_size < max(crop):
            raise Error(where, f"min_size {p.min_size} and a crop of {crop[0]}×{crop[1]}", "the crop must fit into the image")
        if p.min_size and p.max_size and p.max_size < p.min_size:
            raise Error(where, f"min_size {p.min_size} and max_size {p.max_size}", "they must rise")
        self.param, self.where, self.rng = p, where, rng

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The image in a size that is drawn."""
        shorter, longer = sorted(image.shape[1:])
        least, greatest = self.param.min_size or shorter, self.param.max_size or longer
        if greatest < least:
            found = f"max_size {greatest} on an image of {image.shape[1]}×{image.shape[2]}"
            raise Error(self.where, found, "without min_size it must not be below the shorter side", "give min_size")
        return with_shorter_side(image, least + int(self.rng.integers(greatest - least + 1)), self.param.resize_param, self.rng)


class RandomAspect:
    """random_aspect_ratio_param of intel/caffe's data_transformer.cpp, in both phases: crops of another area and aspect.

    The area is a share of the image's, from min_area_ratio to max_area_ratio; the sides are its root times and divided by a
    factor from aspect_ratio_change to its inverse, in an order that is drawn. If none of max_attempt crops fits, the shorter side
    is resized to crop_size instead. Images are channels × height × width.
    """

    def __init__(self, param: caffe_pb2.TransformationParameter, crop: tuple[int, int], where: str, rng: Generator):
        p = param.random_aspect_ratio_param
        if not all(crop) or crop[0] != crop[1]:
            raise Error(where, "random_aspect_ratio_param and no crop_size", "it is the size of the crops", "give crop_size")
        if not 0 < p.min_area_ratio <= p.max_area_ratio <= 1:
            found = f"min_area_ratio {p.min_area_ratio:g} and max_area_ratio {p.max_area_ratio:g}"
            raise Error(where, found, "they must rise within (0, 1]")
        if not 0 < p.aspect_ratio_change <= 1:
            raise Error(where, f"aspect_ratio_change {p.aspect_ratio_change:g}", "it must lie within (0, 1]")
        self.param, self.side, self.rng = p, crop[0], rng

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """A crop of the image, of crop_size."""
        p = self.param
        height, width = image.shape[1:]
        for _ in range(p.max_attempt):
            root = (self.rng.uniform(p.min_area_ratio, p.max_area_ratio) * height * width) ** 0.5
            change = self.rng.uniform(p.aspect_ratio_change, 1 / p.aspect_ratio_change)
            tall, wide = max(1, int(root * change)), max(1, int(root / change))
            if self.rng.integers(2):
                tall, wide = wide, tall
            if tall <= height and wide <= width:
                top, left = int(self.rng.integers(height - tall + 1)), int(self.rng.integers(width - wide + 1))
                window = image[:, top : top + tall, left : left + wide].transpose(1, 2, 0)
                return interpolated(window, self.side, self.side, p.resize_param, self.rng).transpose(2, 0, 1)
        return with_shorter_side(image, self.side, p.resize_param, self.rng)


def with_shorter_side(image: np.ndarray, side: int, param: RESIZE, rng: Generator) -> np.ndarray:
    """The image, channels × height × width, with its shorter side resized to `side`; the other follows, rounded down."""
    shorter = min(image.shape[1:])
    height, width = (side if extent == shorter else extent * side // shorter for extent in image.shape[1:])
    return interpolated(image.transpose(1, 2, 0), height, width, param, rng).transpose(2, 0, 1)

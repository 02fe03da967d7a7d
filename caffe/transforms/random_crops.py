"""Changes of an image's size, drawn before its crop, as forks of Caffe have them: NVIDIA's random resizing, yjxiong's crops.

Images are channels × height × width.
"""

import cv2
import numpy as np

from caffe.errors import Error
from caffe.numerics.generator import Generator
from caffe.proto.caffe_pb2 import TransformationParameter

_SHARES = (1, 0.875, 0.75, 0.66)
"""Extents of yjxiong's crops, as shares of the shorter side, where none are given."""
_ALGORITHMS: dict[int, int] = {value: getattr(cv2, name) for name, value in TransformationParameter.InterpolationAlgo.items()}
_PLACES = ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))
_MORE_PLACES = ((0, 2), (4, 2), (2, 0), (2, 4), (1, 1), (1, 3), (3, 1), (3, 3))
"""Places of yjxiong's crops, in quarters of the room that a crop has down and across."""


def resized(image: np.ndarray, height: int, width: int, how: int = cv2.INTER_LINEAR) -> np.ndarray:
    """The image in another size."""
    pixels = cv2.resize(np.ascontiguousarray(image.transpose(1, 2, 0)), (width, height), interpolation=how)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


class RandomResize:
    """Resizing as in NVIDIA/caffe's data_transformer.cpp, in both phases.

    The shorter side gets a length from img_rand_resize_lower to img_rand_resize_upper and the other follows; then height and
    width are multiplied by factors from vertical_stretch_lower to _upper and horizontal_stretch_lower to _upper. No side becomes
    shorter than the crop or, unless allow_upscale, longer than it was.
    """

    FIELDS = frozenset(
        f"{way}_{end}" for way in ("img_rand_resize", "vertical_stretch", "horizontal_stretch") for end in ("lower", "upper")
    )

    def __init__(self, param: TransformationParameter, crop: tuple[int, int], where: str, rng: Generator):
        low, high = param.img_rand_resize_lower, param.img_rand_resize_upper
        if bool(low) != bool(high) or low > high:
            raise Error(where, f"img_rand_resize_lower {low} and img_rand_resize_upper {high}", "give both, and they must rise")
        if not all(crop):
            raise Error(where, "images of random sizes and no crop", "a batch has one size", "give crop_size")
        self.param, self.crop, self.rng = param, crop, rng

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The image in a size that is drawn."""
        p = self.param
        extents = image.shape[1:]
        shorter = min(extents)
        if p.img_rand_resize_lower:
            shorter = p.img_rand_resize_lower + int(self.rng.integers(p.img_rand_resize_upper - p.img_rand_resize_lower + 1))
        stretches = (
            self.rng.uniform(p.vertical_stretch_lower, p.vertical_stretch_upper),
            self.rng.uniform(p.horizontal_stretch_lower, p.horizontal_stretch_upper),
        )
        scale = shorter / min(extents)
        sides = zip(extents, stretches, self.crop, strict=True)
        size = [max(crop, int(extent * scale * stretch + 0.5)) for extent, stretch, crop in sides]
        if not p.allow_upscale:
            size = [min(new, old) for new, old in zip(size, extents, strict=True)]
        if tuple(size) == extents:
            return image
        smaller = all(new <= old for new, old in zip(size, extents, strict=True))
        return resized(image, size[0], size[1], _ALGORITHMS[p.interpolation_algo_down if smaller else p.interpolation_algo_up])


class FixedCrops:
    """Crops in training as in yjxiong/caffe's data_transformer.cpp (Wang et al. 2015).

    With multi_scale, height and width are two of scale_ratios of the shorter side, at most max_distort places apart in the list,
    and the crop is resized to crop_size. With fix_crop, its place is one of 5, or of 13 with more_fix_crop.
    """

    FIELDS = frozenset(("fix_crop", "multi_scale"))

    def __init__(self, param: TransformationParameter, crop: tuple[int, int], where: str, rng: Generator):
        if not all(crop):
            raise Error(where, "fix_crop or multi_scale and no crop", do="give crop_size")
        if param.multi_scale and param.mean_file:
            raise Error(where, "mean_file and multi_scale", "crops of other sizes have no mean image", "give mean_value")
        self.param, self.crop, self.rng = param, crop, rng
        self.places = _PLACES + _MORE_PLACES * param.more_fix_crop

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """A crop of the image, of crop_size."""
        height, width = self.size(min(image.shape[1:]))
        room = image.shape[1] - height, image.shape[2] - width
        if self.param.fix_crop:
            place = self.places[self.rng.integers(len(self.places))]
            top, left = (free // 4 * quarters for free, quarters in zip(room, place, strict=True))
        else:
            top, left = (int(self.rng.integers(free + 1)) for free in room)
        window = image[:, top : top + height, left : left + width]
        return window if (height, width) == self.crop else resized(window, *self.crop)

    def size(self, shorter: int) -> tuple[int, int]:
        """Height and width of a crop of an image whose shorter side is that long; within 2 pixels of crop_size they are it."""
        if not self.param.multi_scale:
            return self.crop
        shares = tuple(self.param.scale_ratios) or _SHARES
        numbers = range(len(shares))
        pairs = [(i, j) for i in numbers for j in numbers if abs(i - j) <= self.param.max_distort]
        height, width = (int(shorter * shares[number]) for number in pairs[self.rng.integers(len(pairs))])
        crop_height, crop_width = self.crop
        return (
            crop_height if abs(height - crop_height) < 3 else height,
            crop_width if abs(width - crop_width) < 3 else width,
        )

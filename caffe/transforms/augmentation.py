"""Random augmentation of training images: affine transformation, colour, blur and noise.

Parameters are drawn for a batch, then applied: image by image by OpenCV, or to the whole batch on a GPU. All geometric changes
are one affine map and all colour changes one matrix, so that an image is resampled only once. Images are uint8, of 1 or 3
channels (BGR, or RGB with `rgb`), and keep their size.
"""

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from caffe.errors import Error
from caffe.numerics import scalars
from caffe.numerics.generator import Generator
from caffe.proto import caffe_pb2

LUMINANCE = np.array([0.114, 0.587, 0.299])
"""Weights of blue, green and red in gray (ITU-R BT.601)."""
COLOUR_AXES = (
    np.array([0.2175, 0.0188, 0.0045])
    * np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
)[::-1] * 255
"""Principal components of the colours of ImageNet's pixels, each times its eigenvalue: B, G, R × 3 (Krizhevsky et al. 2012)."""

SHARES = ("brightness", "contrast", "saturation", "min_area", "horizontal_flip", "vertical_flip", "translation")


@dataclass
class Changes:
    """Random parameters for N images; None for a change that is not configured.

    matrices   N × 2 × 3: maps x, y of the result to those of the source, both relative to the centre; the third column, the
               translation, in fractions of width and height
    factors    N × 3: brightness, contrast and saturation
    shifts     N × 3: added to each channel
    blurs      N: standard deviation in pixels
    noises     N: standard deviation in levels of 0–255
    seeds      N: seeds of the noise
    """

    matrices: np.ndarray | None
    factors: np.ndarray | None
    shifts: np.ndarray | None
    blurs: np.ndarray | None
    noises: np.ndarray | None
    seeds: np.ndarray
    _kept: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """What `places` has computed for all images at once, by height and width."""
    _colours: dict[bytes, tuple[np.ndarray, list[float]]] = field(default_factory=dict)
    """What `colours` has computed, by the bytes of `gray`."""

    def places(self, index: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the map of an image of that size leads, as `warped` takes it."""
        assert self.matrices is not None
        is_small = height * width * len(self.matrices) <= SMALL
        found = self._kept.get((height, width))
        if found is None:
            found = parts(pixel_matrices(self.matrices, height, width), height, width)
            self._kept[height, width] = found = places(*found) if is_small else found
        one, other = found[0][index], found[1][index]
        return (one, other) if is_small else places(one, other)

    def colours(self, gray: np.ndarray) -> tuple[np.ndarray, list[float]]:
        """Affine colour transformations of all images, N × channels × (channels + 1), and the N factors of each one's mean gray
        that its last column is without: what contrast adds.

        gray  shares of the channels in gray; a single channel has no saturation
        """
        key, channels = gray.tobytes(), len(gray)
        if key not in self._colours:
            factors = np.ones((len(self.seeds), 3)) if self.factors is None else self.factors
            brightness, contrast, saturation = factors.T[:, :, None, None]
            scales = brightness * contrast
            shifts = np.zeros((len(factors), channels, 1))
            if channels == 3:
                scales = (saturation * np.eye(3) + (1 - saturation) * gray) * scales
                shifts = shifts if self.shifts is None else self.shifts[:, :, None]
            matrices = np.concatenate([scales, shifts], 2)
            self._colours[key] = matrices, (brightness * (1 - contrast)).ravel().tolist()
        return self._colours[key]

    def noise(self, index: int, shape: tuple[int, ...]) -> np.ndarray:
        """The noise of an image of that shape."""
        assert self.noises is not None
        return Generator(int(self.seeds[index])).normal(0, self.noises[index], shape)


class Augmentation:
    """Draws and applies the changes of an AugmentationParameter; errors call it `where`."""

    def __init__(self, param: caffe_pb2.AugmentationParameter, where: str, rng: Generator):
        for setting, value in param.ListFields():
            top = 1 if setting.name in SHARES else np.inf
            if not 0 <= value <= top:
                raise Error(where, f"augmentation_param.{setting.name} {value:g}", f"it must be between 0 and {top:g}")
        if param.min_area == 0 or param.max_aspect < 1:
            found = f"augmentation_param.min_area {param.min_area:g} and max_aspect {param.max_aspect:g}"
            raise Error(where, found, "min_area must be above 0, max_aspect at least 1")
        self.param, self.where, self.rng = param, where, rng
        order = slice(None, None, -1 if param.rgb else 1)
        self._luminance, self._colour_axes = LUMINANCE[order], COLOUR_AXES[order]

    def draw(self, count: int) -> Changes:
        """Draw the changes of `count` images."""
        p, uniform = self.param, self.rng.uniform
        factors = shifts = None
        if p.brightness or p.contrast or p.saturation:
            spread = np.array([p.brightness, p.contrast, p.saturation])
            factors = uniform(1 - spread, 1 + spread, (count, 3))
        if p.pca:
            shifts = dot(self._colour_axes, self.rng.normal(0, p.pca, (count, 1, 3)))
        return Changes(
            matrices=self._matrices(count),
            factors=factors,
            shifts=shifts,
            blurs=uniform(0, p.blur, count) if p.blur else None,
            noises=uniform(0, p.noise, count) if p.noise else None,
            seeds=self.rng.integers(2**31, count),
        )

    def _matrices(self, count: int) -> np.ndarray | None:
        p, uniform = self.param, self.rng.uniform
        moved = (p.rotation, p.shear, p.translation, p.horizontal_flip, p.vertical_flip, 1 - p.min_area, p.max_aspect - 1)
        if not any(moved):
            return None
        area = uniform(p.min_area, 1, count)
        widest = scalars.log(p.max_aspect)
        bound = np.minimum(widest, -scalars.logs(area))  # a crop is no wider or higher than the image
        aspect = scalars.exps(bound * uniform(-1, 1, count))
        sides = np.stack([np.sqrt(area * aspect), np.sqrt(area / aspect)], 1)
        offset = uniform(-1, 1, (count, 2)) * (1 - sides) / 2 + uniform(-p.translation, p.translation, (count, 2))
        flipped = np.where(self.rng.random((count, 2)) < (p.horizontal_flip, p.vertical_flip), -1.0, 1.0)
        angles = (uniform(-limit, limit, count) / 360 for limit in (p.rotation, p.shear))
        (cosine, sine), (across, down) = map(scalars.cosines_and_sines, angles)
        turn = np.stack([cosine, -sine, sine, cosine], 1).reshape(-1, 2, 2)
        turn[:, :, 1] += turn[:, :, 0] * (down / across)[:, None]
        return np.concatenate([sides[:, :, None] * turn * flipped[:, None, :], offset[:, :, None]], 2)

    def apply(self, image: np.ndarray, changes: Changes, index: int) -> np.ndarray:
        """Apply the changes of that index to an image, channels × height × width.

        The result may have its channels last in memory, and be the same array if nothing changes it.
        """
        self.check(image.shape[0], image.dtype == np.uint8)
        pixels = image[0] if len(image) == 1 else by_pixel(image)
        if changes.factors is not None or changes.shifts is not None:
            pixels = cv2.transform(pixels, self.colour_matrix(cv2.mean(pixels)[: len(image)], changes, index))
        if changes.matrices is not None:
            pixels = warped(pixels, *changes.places(index, *image.shape[1:]))
        if changes.blurs is not None and (sigma := changes.blurs[index]) > LEAST_BLUR:
            side = 2 * blur_radius(sigma) + 1
            pixels = cv2.GaussianBlur(pixels, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101)
        if changes.noises is not None:
            noisy = pixels + changes.noise(index, image.shape).transpose(1, 2, 0).reshape(pixels.shape)
            pixels = np.rint(noisy).clip(0, 255).astype(np.uint8)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def check(self, channels: int, is_bytes: bool) -> None:
        """Raise Error for images that cannot be augmented."""
        if channels not in (1, 3) or not is_bytes:
            found = f"augmentation_param for images of {channels} channels" + ("" if is_bytes else " of floats")
            raise Error(self.where, found, "it needs images of 1 or 3 channels of bytes", "leave it out")

    def colour_matrix(self, mean: Sequence[float], changes: Changes, index: int) -> np.ndarray:
        """Affine colour transformation, channels × (channels + 1), for an image of that mean colour.

        Brightness scales, contrast then scales the difference from the mean gray, saturation that from each pixel's gray; gray
        images have no saturation.
        """
        channels = len(mean)
        gray = self._luminance if channels == 3 else np.ones(1)
        matrices, shares = changes.colours(gray)
        # In the order of the channels; `sum` would round otherwise from Python 3.12 on.
        term = shares[index] * functools.reduce(operator.add, map(operator.mul, gray.tolist(), mean))
        found: np.ndarray = matrices[index].copy()
        found[:, -1] += term
        return found


SMALL = 1 << 18
"""Pixels of a batch up to which the places of all are computed at once."""
LEAST_BLUR = 0.2
"""Standard deviation in pixels below which a blur is invisible."""


def parts(matrices: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Maps between pixels, N × 2 × 3, in 1/32 of a pixel as sums of two parts: by column, N × 2 × 1 × width, and by row."""
    scaled = (matrices * 32)[:, :, :, None, None]
    return scaled[:, :, 0] * np.arange(width), scaled[:, :, 1] * np.arange(height)[:, None] + scaled[:, :, 2]


def places(by_column: np.ndarray, by_row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sums of the parts: whole pixels, x and y, int16, … × height × width × 2, and 32nds of both, 32 y + x, uint16."""
    exact = by_column + by_row
    both = np.rint(exact, out=exact).astype(np.int32)
    whole = np.empty((*both.shape[:-3], *both.shape[-2:], 2), np.int16)
    np.right_shift(both, 5, out=np.moveaxis(whole, -1, -3), casting="unsafe")
    both &= 31
    return whole, (both[..., 1, :, :] << 5 | both[..., 0, :, :]).astype(np.uint16)


def warped(pixels: np.ndarray, whole: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """An image whose pixels are those of `pixels` at `places`, bilinear; borders reflect.

    By OpenCV's `remap` with whole numbers, as its `warpAffine` rounds differently where a processor lacks fused additions.
    """
    return cv2.remap(pixels, whole, shares, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def pixel_matrices(matrices: np.ndarray, height: int, width: int) -> np.ndarray:
    """Convert maps relative to the centre, translated by fractions of the sides, to ones between pixel coordinates; N × 2 × 3."""
    linear, centre = matrices[:, :, :2], np.array([width - 1, height - 1]) / 2
    terms = matrices[:, :, 2] * (width, height) + centre - dot(linear, centre)
    return np.concatenate([linear, terms[:, :, None]], 2)


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sums of products over the last axis, of at most 7 terms: in their order, where BLAS may fuse products and sums."""
    return np.asarray((a * b).sum(-1))


def by_pixel(image: np.ndarray) -> np.ndarray:
    """An image of several channels, channels × height × width, as height × width × channels, for OpenCV."""
    pixels = image.transpose(1, 2, 0)
    return pixels if pixels.flags.c_contiguous else cv2.merge(tuple(image))


def blur_radius(sigma: float) -> int:
    """Radius in pixels of a Gaussian blur's kernel."""
    return max(1, int(np.ceil(3 * sigma)))

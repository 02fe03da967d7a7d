"""Resizing and rotation of images in floating point, by sums in a fixed order, so that every machine rounds them alike."""

import numpy as np

SHARPNESS = -0.75
"""Coefficient of the cubic kernel (Keys 1981), as in OpenCV."""


def resized_cubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image (C, H, W) in another size, bicubic between the 4 × 4 nearest pixels; edges are repeated. As INTER_CUBIC."""
    for axis, extent in ((1, height), (2, width)):
        image = _along(image, axis, extent)
    return image


def _along(image: np.ndarray, axis: int, extent: int) -> np.ndarray:
    own = image.shape[axis]
    if own == extent:
        return image
    places = (np.arange(extent) + 0.5) * (own / extent) - 0.5
    first = np.floor(places).astype(np.int64)
    part = places - first
    shape = [extent if each == axis else 1 for each in range(3)]
    total = np.zeros((), np.float32)
    for tap in range(-1, 3):
        weights = _kernel(np.abs(part - tap)).astype(np.float32).reshape(shape)
        total = total + image.take(np.clip(first + tap, 0, own - 1), axis) * weights
    return total


def _kernel(distance: np.ndarray) -> np.ndarray:
    a, d = SHARPNESS, distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.asarray(np.where(d <= 1, near, far))


def rotated(image: np.ndarray, matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """The image (C, H, W) mapped by an affine matrix (2, 3) of its pixels (x, y, 1) onto a canvas, bilinear; 0 beyond it."""
    (a, b, c), (d, e, f) = matrix
    determinant = a * e - b * d
    across, down = np.arange(width)[None, :] - c, np.arange(height)[:, None] - f
    x, y = (e * across - b * down) / determinant, (a * down - d * across) / determinant
    rows, columns = image.shape[1:]
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    inside = (left >= 0) & (top >= 0) & (left < columns - 1) & (top < rows - 1)
    left, top = np.where(inside, left, 0), np.where(inside, top, 0)
    right, below = np.minimum(left + 1, columns - 1), np.minimum(top + 1, rows - 1)
    share_x, share_y = ((place - first).astype(np.float32) for place, first in ((x, left), (y, top)))
    upper = image[:, top, left] * (1 - share_x) + image[:, top, right] * share_x
    lower = image[:, below, left] * (1 - share_x) + image[:, below, right] * share_x
    return np.where(inside, upper * (1 - share_y) + lower * share_y, np.float32(0))

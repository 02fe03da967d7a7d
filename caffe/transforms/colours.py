"""Changes of hue and saturation of images in floating point."""

import numpy as np


def with_hue_and_saturation(image: np.ndarray, degrees: float, factor: float) -> np.ndarray:
    """An image (3, H, W) of blue, green and red from 0 to 1 with its hue turned, and its saturation multiplied.

    Saturation is the difference of the largest and smallest channel by the largest, which does not change.
    """
    if degrees == 0 and factor == 1:
        return image
    blue, green, red = image
    value = image.max(0)
    range_ = value - image.min(0)
    divisor = np.where(range_ > 0, range_, 1)
    hue = np.where(value == red, (green - blue) / divisor % 6, (red - green) / divisor + 4)
    hue = np.where((value == green) & (value != red), (blue - red) / divisor + 2, hue)
    place = (hue + np.float32(degrees / 60)) + np.array([1, 3, 5], np.float32)[:, None, None]
    place = place % 6
    share = np.clip(np.minimum(place, 4 - place), 0, 1)
    return np.asarray(value - range_ * np.float32(factor) * share, np.float32)

"""Normally distributed numbers by Box and Muller's method (1958), from single operations on float32 numbers."""

import math

import numpy as np

from caffe.numerics.scalars import ATANH, COSINE, SINE

LOG2 = float.fromhex("0x1.62e42fefa39efp-1")
LOGARITHM, COSINES, SINES = ATANH[:6], COSINE[:6], SINE[:5]
"""As many terms as float32 has bits for."""
ROOT_HALF = 0x3F3504F3
"""The bits of √½ as float32."""


def pairs(words: np.ndarray) -> np.ndarray:
    """Pairs of normal numbers from pairs of integers of 32 bits, uint32: N × 2 → N × 2, float32.

    The upper 24 bits of the first give the radius; those of the second an angle in a quarter of a circle, and its lower bits the
    quarter.
    """
    first, second = np.ascontiguousarray(words[:, 0]), np.ascontiguousarray(words[:, 1])
    radius = _log(((first >> 8).astype(np.int32).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-24))
    radius = np.sqrt(np.negative(radius, out=radius), out=radius)  # √(-2 log u) · √½
    angle = (second >> 8).astype(np.int32).astype(np.float32)
    angle *= np.float32(math.pi / 2 * 2.0**-24)
    angle -= np.float32(math.pi / 4)
    square = angle * angle
    across, up = _polynomial(square, COSINES), _polynomial(square, SINES)
    up *= angle
    # From -45° to 45°, and then turned by 45°: both are positive.
    result = np.empty(words.shape, np.float32)
    for side, value in enumerate((across - up, across + up)):
        value *= radius
        value.view(np.uint32)[...] ^= (second << (31 - side)) & 0x80000000
        result[:, side] = value
    return result


def _polynomial(x: np.ndarray, coefficients: list[float]) -> np.ndarray:
    """Horner's scheme, lowest coefficient first."""
    y = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        y *= x
        y += np.float32(coefficient)
    return y


def _log(x: np.ndarray) -> np.ndarray:
    """log x for normal numbers up to 1."""
    bits = x.view(np.int32) + (0x3F800000 - ROOT_HALF)
    k = (bits >> 23) - 127
    m = ((bits & 0x7FFFFF) + ROOT_HALF).view(np.float32)  # from √½ to √2
    s = (m - np.float32(1)) / (m + np.float32(1))
    y = _polynomial(s * s, LOGARITHM)
    y *= s
    y += k.astype(np.float32) * np.float32(LOG2)
    return y

"""Maps of people's joints and limbs (Cao et al. 2017): skeletons of COCO and MPII, part affinity fields, confidence maps."""

import math
from typing import NamedTuple

import numpy as np

from caffe.transforms.boxes import Floats

_NEAREST = 4.6052
"""Exponent of a Gaussian from which it counts as 0, the logarithm of 100."""
_FIELD_STEP = 8
"""Pixels of a cell of a field, whatever the stride."""
_WIDE = 1
"""How far from its limb a field reaches, in cells."""
HIDDEN, SEEN, OUTSIDE, UNKNOWN = 0, 1, 2, 3


class Skeleton(NamedTuple):
    """Joints of a training, each the middle of two of a record's; pairs of them that swap in a mirror; limbs; all from 0."""

    sources: tuple[tuple[int, int], ...]
    mirrored: tuple[tuple[int, int], ...]
    limbs: tuple[tuple[int, int], ...]


def _pairs(first: list[int], second: list[int], base: int = 1) -> tuple[tuple[int, int], ...]:
    return tuple((a - base, b - base) for a, b in zip(first, second, strict=True))


SKELETONS = {
    56: Skeleton(
        _pairs(
            [1, 6, 7, 9, 11, 6, 8, 10, 13, 15, 17, 12, 14, 16, 3, 2, 5, 4],
            [1, 7, 7, 9, 11, 6, 8, 10, 13, 15, 17, 12, 14, 16, 3, 2, 5, 4],
        ),
        _pairs([3, 4, 5, 9, 10, 11, 15, 17], [6, 7, 8, 12, 13, 14, 16, 18]),
        _pairs(
            [2, 9, 10, 2, 12, 13, 2, 3, 4, 3, 2, 6, 7, 6, 2, 1, 1, 15, 16],
            [9, 10, 11, 12, 13, 14, 3, 4, 5, 17, 6, 7, 8, 18, 1, 15, 16, 17, 18],
        ),
    ),
    43: Skeleton(
        _pairs([9, 8, 12, 11, 10, 13, 14, 15, 2, 1, 0, 3, 4, 5, 7], [9, 8, 12, 11, 10, 13, 14, 15, 2, 1, 0, 3, 4, 5, 6], 0),
        _pairs([3, 4, 5, 9, 10, 11], [6, 7, 8, 12, 13, 14]),
        _pairs([0, 1, 2, 3, 1, 5, 6, 1, 14, 8, 9, 14, 11, 12], [1, 2, 3, 4, 5, 6, 7, 14, 8, 9, 10, 11, 12, 13], 0),
    ),
}
"""{num_parts: skeleton}: 38 and 18 channels of COCO's 19 limbs and 18 joints; 28 and 15 of MPII's 14 limbs and 15 joints."""


class Joints(NamedTuple):
    """Places x, y in pixels, (people, joints, 2), and states (people, joints): hidden, seen, outside the image or unknown."""

    places: Floats
    states: np.ndarray

    def of(self, skeleton: Skeleton) -> "Joints":
        """The joints of a skeleton, from those of records."""
        first, second = (list(each) for each in zip(*skeleton.sources, strict=True))
        a, b = self.states[:, first], self.states[:, second]
        states = ((a > HIDDEN) & (b > HIDDEN)).astype(int)
        for state in (UNKNOWN, OUTSIDE):
            states[(a == state) | (b == state)] = state
        return Joints((self.places[:, first] + self.places[:, second]) / 2, states)

    def mirrored(self, skeleton: Skeleton, width: int) -> "Joints":
        """The joints in an image of that width, mirrored."""
        order = np.arange(len(skeleton.sources))
        for right, left in skeleton.mirrored:
            order[[right, left]] = left, right
        places = self.places[:, order].copy()
        places[..., 0] = width - 1 - places[..., 0]
        return Joints(places, self.states[:, order])


def maps(joints: Joints, skeleton: Skeleton, stride: int, size: tuple[int, int], sigma: float) -> Floats:
    """Fields of limbs, x and y of each, confidences of joints, and the background: (2 · limbs + joints + 1, height, width).

    joints  of all people; those that are outside the image or unknown are left out
    stride  pixels of a cell
    size    height and width in cells
    sigma   of the joints' Gaussians, in pixels
    """
    known = joints.states <= SEEN
    fields = np.zeros((len(skeleton.limbs), 2, *size), np.float32)
    for field, (first, last) in zip(fields, skeleton.limbs, strict=True):
        for places in joints.places[known[:, first] & known[:, last]]:
            _draw_limb(field, places[first] / _FIELD_STEP, places[last] / _FIELD_STEP)
    confidences = np.zeros((len(skeleton.sources), *size), np.float32)
    for number, confidence in enumerate(confidences):
        for place in joints.places[known[:, number], number]:
            _draw_joint(confidence, place, stride, sigma)
    background = np.maximum(1 - confidences.max(0), 0)
    return np.concatenate((fields.reshape(-1, *size), confidences, background[None]))


def _draw_limb(field: Floats, first: Floats, last: Floats) -> None:
    """Set a field (2, height, width) to the direction of a limb near it, over those of other people."""
    along = last - first
    length = math.hypot(*along)
    if not length:
        return
    along = along / length
    extents = np.array(field.shape[:0:-1])
    low = np.maximum(_nearest(np.minimum(first, last) - _WIDE), 0)
    high = np.minimum(_nearest(np.maximum(first, last) + _WIDE), extents)
    if (high <= low).any():
        return
    columns, rows = np.arange(low[0], high[0]), np.arange(low[1], high[1])[:, None]
    near = np.abs((columns - first[0]) * along[1] - (rows - first[1]) * along[0]) <= _WIDE
    window = field[:, low[1] : high[1], low[0] : high[0]]
    window[:] = np.where(near, along[:, None, None], window)


def _nearest(values: Floats) -> np.ndarray:
    """Nearest whole numbers, halves away from 0."""
    return (np.sign(values) * np.floor(np.abs(values) + 0.5)).astype(int)


def _draw_joint(confidence: Floats, place: Floats, stride: int, sigma: float) -> None:
    """Add a Gaussian around a place to a map, up to 1."""
    rows, columns = (stride / 2 - 0.5 + np.arange(extent) * stride for extent in confidence.shape)
    exponents = ((columns - place[0]) ** 2 + (rows[:, None] - place[1]) ** 2) / (2 * sigma * sigma)
    confidence += np.where(exponents > _NEAREST, 0, np.exp(-exponents))
    np.minimum(confidence, 1, out=confidence)

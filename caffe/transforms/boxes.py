"""Bounding boxes of SSD (Liu et al. 2016): overlaps, encoding relative to priors, matching, non-maximum suppression.

A box is xmin, ymin, xmax, ymax, the last axis of float32 arrays.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from caffe.numerics import elementary
from caffe.proto import caffe_pb2

CODES = caffe_pb2.PriorBoxParameter
UNMATCHED, IGNORED = -1, -2
Floats = npt.NDArray[np.floating]
Boxes = Floats
# Predictions of an untrained net may be infinite or NaN; such boxes overlap nothing.
_allow_overflow = np.errstate(over="ignore", invalid="ignore")


def areas(boxes: Boxes) -> Floats:
    """Width times height; 0 for a box with a negative side."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return np.where((sides < 0).any(-1), np.float32(0), sides[..., 0] * sides[..., 1])


def intersections(first: Boxes, second: Boxes) -> Floats:
    """Intersection areas of boxes (…, 4) and boxes (…, 4), broadcast; 0 if they only touch."""
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    return np.where((sides > 0).all(-1), sides[..., 0] * sides[..., 1], np.float32(0))


def overlaps(first: Boxes, second: Boxes) -> Floats:
    """Intersection over union of boxes (N, 4) and boxes (M, 4): (N, M)."""
    common = intersections(first[:, None], second)
    union = areas(first)[:, None] + areas(second) - common
    return np.divide(common, union, out=np.zeros_like(common), where=common > 0)


def encode(boxes: Boxes, priors: Boxes, variances: Boxes, code: int) -> Boxes:
    """Boxes (N, 4) as offsets from priors (N, 4), divided by the priors' variances (N, 4)."""
    if code == CODES.CORNER:
        return (boxes - priors) / variances
    sides = priors[..., 2:] - priors[..., :2]
    if code == CODES.CORNER_SIZE:
        return (boxes - priors) / np.concatenate((sides, sides), -1) / variances
    shift = (_centres(boxes) - _centres(priors)) / sides
    growth = _computed(elementary.log, (boxes[..., 2:] - boxes[..., :2]) / sides)
    return np.concatenate((shift, growth), -1) / variances


@_allow_overflow
def decode(offsets: Boxes, priors: Boxes, variances: Boxes, code: int) -> Boxes:
    """The inverse of `encode`: boxes from their offsets (…, N, 4) from priors (N, 4)."""
    offsets = variances * offsets
    if code == CODES.CORNER:
        return priors + offsets
    sides = priors[..., 2:] - priors[..., :2]
    if code == CODES.CORNER_SIZE:
        return priors + offsets * np.concatenate((sides, sides), -1)
    centre = offsets[..., :2] * sides + _centres(priors)
    half = _computed(elementary.exp, offsets[..., 2:]) * sides / 2
    return np.concatenate((centre - half, centre + half), -1)


def _computed(function: Callable[[torch.Tensor], torch.Tensor], values: Boxes) -> Floats:
    """A function of caffe.numerics, as NumPy's log and exp differ between processors."""
    return function(torch.from_numpy(values.astype(np.float64))).numpy().astype(values.dtype)


def _centres(boxes: Boxes) -> Floats:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


@_allow_overflow
def suppress(
    boxes: Boxes, threshold: float, eta: float = 1.0, overlap: Callable[[Boxes, Boxes], Floats] | None = None
) -> npt.NDArray[np.int64]:
    """Non-maximum suppression of boxes (N, 4), best first: indices of those that overlap no kept box by more than `threshold`.

    eta      factor of the threshold after each kept box, as long as it is above 0.5
    overlap  of a kept box (1, 4) and others (M, 4), (1, M); by default `overlaps`
    """
    overlap = overlap or overlaps
    kept: list[int] = []
    rest = np.arange(len(boxes))
    worst = np.zeros(len(boxes), np.float32)
    while len(rest):
        best = rest[0]
        kept.append(int(best))
        rest = rest[1:]
        worst[rest] = np.maximum(worst[rest], overlap(boxes[best : best + 1], boxes[rest])[0])
        if eta < 1 and threshold > 0.5:
            threshold *= eta
        fitting = worst[rest] <= np.float32(threshold)
        # With eta, later boxes are tested again against the threshold at their turn.
        rest = rest[fitting] if eta == 1 else rest[int(fitting.argmax()) if fitting.any() else len(rest) :]
    return np.array(kept, np.int64)


@_allow_overflow
def match(
    candidates: Boxes, truths: Boxes, threshold: float | None, inside: bool = False
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Match candidates (P, 4) to true boxes (G, 4): each candidate's true box or UNMATCHED, and its greatest overlap with any.

    Each true box, the most overlapped first, gets the candidate that overlaps it most; then each remaining candidate gets the
    true box that it overlaps most, if by `threshold` or more (None: skip this second step).
    inside  candidates that extend beyond the image, 0 to 1, are IGNORED
    """
    matches = np.full(len(candidates), UNMATCHED)
    if not len(truths):
        return matches, np.zeros(len(candidates), np.float32)
    table = overlaps(candidates, truths)
    if inside:
        outside = ((candidates < 0) | (candidates > 1)).any(1)
        matches[outside] = IGNORED
        table[outside] = 0
    table[table <= 1e-6] = 0
    greatest = table.max(1)
    left = table.copy()
    for _ in truths:
        candidate, truth = np.unravel_index(left.argmax(), left.shape)
        if not left[candidate, truth]:
            break
        matches[candidate], greatest[candidate] = truth, left[candidate, truth]
        left[candidate] = left[:, truth] = 0
    if threshold is not None:
        free = (matches == UNMATCHED) & (greatest >= np.float32(threshold)) & (greatest > 0)
        matches[free] = table[free].argmax(1)
    return matches, greatest

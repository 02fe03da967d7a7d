"""Boxes of objects: overlaps, codes relative to priors, matches and suppression, as SSD has them (Liu et al. 2016).

A box is xmin, ymin, xmax, ymax; arrays are float32 and have it as their last axis.
"""

from __future__ import annotations

import numpy as np

from caffe.proto import caffe_pb2

CODES = caffe_pb2.PriorBoxParameter
UNMATCHED, IGNORED = -1, -2
# What an untrained net predicts may have no end; such boxes overlap nothing.
_of_any_size = np.errstate(over="ignore", invalid="ignore")


def areas(boxes: np.ndarray) -> np.ndarray:
    """Width times height; 0 for a box that ends before it begins."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return np.where((sides < 0).any(-1), np.float32(0), sides[..., 0] * sides[..., 1])


def intersections(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Areas that boxes (…, 4) and boxes (…, 4), broadcast, have in common; 0 where they only touch."""
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    return np.where((sides > 0).all(-1), sides[..., 0] * sides[..., 1], np.float32(0))


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (N, 4) and boxes (M, 4): (N, M)."""
    common = intersections(first[:, None], second)
    union = areas(first)[:, None] + areas(second) - common
    return np.divide(common, union, out=np.zeros_like(common), where=common > 0)


def encode(boxes: np.ndarray, priors: np.ndarray, variances: np.ndarray, code: int) -> np.ndarray:
    """Boxes (N, 4) as offsets from priors (N, 4), divided by the priors' variances (N, 4); 1 leaves them as they are."""
    if code == CODES.CORNER:
        return (boxes - priors) / variances
    sides = priors[..., 2:] - priors[..., :2]
    if code == CODES.CORNER_SIZE:
        return (boxes - priors) / np.concatenate((sides, sides), -1) / variances
    shift = (_centres(boxes) - _centres(priors)) / sides
    growth = np.log((boxes[..., 2:] - boxes[..., :2]) / sides)
    return np.concatenate((shift, growth), -1) / variances


@_of_any_size
def decode(offsets: np.ndarray, priors: np.ndarray, variances: np.ndarray, code: int) -> np.ndarray:
    """What `encode` was given: boxes from offsets (…, N, 4) from priors (N, 4)."""
    offsets = variances * offsets
    if code == CODES.CORNER:
        return priors + offsets
    sides = priors[..., 2:] - priors[..., :2]
    if code == CODES.CORNER_SIZE:
        return priors + offsets * np.concatenate((sides, sides), -1)
    centre = offsets[..., :2] * sides + _centres(priors)
    half = np.exp(offsets[..., 2:]) * sides / 2
    return np.concatenate((centre - half, centre + half), -1)


def _centres(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


@_of_any_size
def suppress(boxes: np.ndarray, threshold: float, eta: float = 1.0) -> np.ndarray:
    """Positions of the boxes (N, 4), best first, that overlap none of those kept before by more than the threshold.

    eta  what the threshold is multiplied by after each box that is kept, while it is above 0.5
    """
    kept = []
    rest = np.arange(len(boxes))
    worst = np.zeros(len(boxes), np.float32)
    while len(rest):
        best = rest[0]
        kept.append(best)
        rest = rest[1:]
        worst[rest] = np.maximum(worst[rest], overlaps(boxes[best : best + 1], boxes[rest])[0])
        if eta < 1 and threshold > 0.5:
            threshold *= eta
        fitting = worst[rest] <= np.float32(threshold)
        # With eta, the boxes behind the next one are tried again, by the threshold of their turn.
        rest = rest[fitting] if eta == 1 else rest[int(fitting.argmax()) if fitting.any() else len(rest) :]
    return np.array(kept, np.int64)


@_of_any_size
def match(
    candidates: np.ndarray, truths: np.ndarray, threshold: float | None, inside: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """For each candidate (P, 4), the position of its true box (G, 4), or UNMATCHED; and its greatest overlap with any of them.

    Each true box, the most overlapped first, gets the candidate that overlaps it most; then each candidate that is left gets
    the true box that it overlaps most, if by the threshold or more (None: only the first).
    inside  candidates that reach past the image, 0 to 1, are IGNORED
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

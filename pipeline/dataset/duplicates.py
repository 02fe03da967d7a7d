"""Find near-duplicates: images that were cropped, recompressed or resized from one another.

A fingerprint (difference hash) is 128 bits: whether the gray level of an image falls or rises between neighbours in a grid of
9 × 9, along rows and along columns. If two differ in few bits, their pixels are compared.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import cv2
import numpy as np

MOST_BITS = 6
"""Most bits in which fingerprints of near-duplicates differ. If up to 7 differ, at least one of their 8 bands is equal."""
MOST_LEVELS = 8
"""Largest mean difference of gray levels, 0 to 255, of near-duplicates, each of 32 × 32 pixels with its mean subtracted."""
LARGEST_BAND = 1000
"""Most images with the same value of a band; a more frequent value (flat images, black borders) is ignored."""
TRIES = 8
"""Most nearest images by fingerprint whose pixels are compared."""
AT_ONCE = 250
"""Images that are looked up together, to bound memory."""


def fingerprint(image: np.ndarray) -> bytes:
    """The fingerprint of an image, uint8, height × width × 3 (BGR) or height × width: 16 bytes."""
    # Resized in two steps: integer factors are far faster.
    small = cv2.resize(_small_gray(image), (9, 9), interpolation=cv2.INTER_AREA)
    bits = np.concatenate([(small[:8, 1:] > small[:8, :8]).ravel(), (small[1:, :8] > small[:8, :8]).ravel()])
    return np.packbits(bits).tobytes()


def are_near_duplicates(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two images have nearly the same pixels, whatever their size and brightness."""
    difference = np.subtract(*(_small_gray(image).astype(np.int64) for image in (first, second)))
    from_mean = difference * difference.size - difference.sum()  # times the number of pixels, in integers: exact
    return bool(np.abs(from_mean).sum() <= MOST_LEVELS * difference.size**2)


def _small_gray(image: np.ndarray) -> np.ndarray:
    """The image as 32 × 32 gray levels."""
    small = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_BGR2GRAY) if small.ndim == 3 else small


def nearest_duplicates(
    queries: np.ndarray, others: np.ndarray, images: Callable[[int, int], tuple[np.ndarray, np.ndarray]]
) -> dict[int, tuple[int, int]]:
    """{query: (its nearest near-duplicate among the others, the bits in which they differ)}.

    queries, others  fingerprints, N × 16 bytes
    images           (query, other) → their pixels
    """
    result = {}
    for query, near in _candidates(queries, others):
        match = next((pair for pair in near if are_near_duplicates(*images(query, pair[0]))), None)
        if match:
            result[query] = match
    return result


def _candidates(queries: np.ndarray, others: np.ndarray) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """(query, [(other, bits), …]) for each query with candidates: the TRIES nearest, nearest first."""
    many, few = (np.ascontiguousarray(side).view(np.uint16).reshape(-1, 8) for side in (others, queries))
    orders = [np.argsort(many[:, band], kind="stable") for band in range(8)]
    sorted_bands = [many[order, band] for band, order in enumerate(orders)]
    for start in range(0, len(few), AT_ONCE):
        part = few[start : start + AT_ONCE]
        matches = []
        for band, (order, values) in enumerate(zip(orders, sorted_bands, strict=True)):
            begins, ends = (np.searchsorted(values, part[:, band], side) for side in ("left", "right"))
            sizes = np.where(ends - begins > LARGEST_BAND, 0, ends - begins)
            query = np.repeat(np.arange(len(part)), sizes)
            within = np.arange(len(query)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            matches.append(np.stack([query, order[np.repeat(begins, sizes) + within]]))
        query, other = np.concatenate(matches, axis=1)
        bits = np.bitwise_count(part[query] ^ many[other]).sum(1)
        near = bits <= MOST_BITS
        rows = np.unique(np.stack([query[near], bits[near].astype(int), other[near]]), axis=1)  # in that order
        firsts = np.flatnonzero(np.diff(rows[0], prepend=-1))
        for first, last in pairwise([*firsts, rows.shape[1]]):
            chosen = rows[:, first : min(last, first + TRIES)]
            yield start + int(rows[0, first]), list(zip(chosen[2].tolist(), chosen[1].tolist(), strict=True))

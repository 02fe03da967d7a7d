"""Random numbers that a seed determines for good: Philox's integers, transformed by operations that every machine rounds alike.

Philox 4×64 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") gives integers by position; NumPy promises that
its bit generators keep their streams. NumPy's and PyTorch's own distributions promise no such thing, and PyTorch's differ
between CPU and GPU.
"""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np

from caffe.numerics.normal import pairs

Size = int | tuple[int, ...]


class Generator:
    """A stream of random numbers; equal seeds give equal streams, and each number in `seed` another one.

    Numbers are float64 and int64 arrays of the given size, or single ones without a size.
    """

    def __init__(self, *seed: int):
        # With their number, as NumPy takes (1, 0) for 1.
        words = np.random.SeedSequence((len(seed), *seed) if seed else secrets.randbits(128)).generate_state(2, np.uint64)
        self._start([int(word) for word in words], 0)

    def _start(self, key: Sequence[int], position: int) -> None:
        self._key, self._position = list(key), position
        self._philox = np.random.Philox(key=np.array(key, np.uint64), counter=position // 4)
        self._philox.random_raw(position % 4, output=False)

    @property
    def state(self) -> dict[str, Any]:
        """The key and how many integers have been drawn, for JSON."""
        return {"key": self._key, "position": self._position}

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        self._start(state["key"], state["position"])

    def ahead(self, count: int) -> "Generator":
        """A generator for the next `count` integers, which this one passes over, in no time."""
        other = Generator.__new__(Generator)
        other._start(self._key, self._position)
        self._start(self._key, self._position + count)
        return other

    def raw(self, count: int) -> np.ndarray:
        """`count` integers of 64 bits, uint64."""
        self._position += count
        return np.asarray(self._philox.random_raw(count))

    def seed(self) -> int:
        """A seed for another generator, from 0 to 2^63 - 1."""
        return int(self.raw(1)[0] >> np.uint64(1))

    @overload
    def random(self) -> float: ...
    @overload
    def random(self, size: Size) -> np.ndarray: ...
    def random(self, size: Size | None = None) -> float | np.ndarray:
        """Multiples of 2^-53 from 0 to 1, without 1."""
        numbers = (self.raw(_count(size)) >> np.uint64(11)) * 2.0**-53
        return float(numbers[0]) if size is None else numbers.reshape(size)

    @overload
    def uniform(self, low: float, high: float) -> float: ...
    @overload
    def uniform(self, low: float | np.ndarray, high: float | np.ndarray, size: Size) -> np.ndarray: ...
    def uniform(self, low: Any, high: Any, size: Size | None = None) -> float | np.ndarray:
        """Numbers from low to high."""
        numbers: float | np.ndarray = low + (high - low) * (self.random() if size is None else self.random(size))
        return numbers

    @overload
    def integers(self, bound: int) -> int: ...
    @overload
    def integers(self, bound: int | np.ndarray, size: Size) -> np.ndarray: ...
    def integers(self, bound: Any, size: Size | None = None) -> int | np.ndarray:
        """Integers from 0 to bound - 1, for bounds up to 2^31."""
        numbers = (self.raw(_count(size)) >> np.uint64(32)).astype(np.int64)
        if size is None:
            return int(numbers[0]) * int(bound) >> 32
        drawn: np.ndarray = numbers.reshape(size) * bound >> 32
        return drawn

    def chosen(self, probability: float, size: Size) -> np.ndarray:
        """Which of `size` places are chosen, each with that probability (to 2^-32): truth values."""
        return (self._words(_count(size)) < min(round(probability * 2**32), 2**32)).reshape(size)

    def permutation(self, count: int) -> np.ndarray:
        """The numbers from 0 to count - 1 in random order."""
        return np.argsort(self.raw(count), kind="stable")

    def normal(self, mean: float, deviation: float, size: Size) -> np.ndarray:
        """Normally distributed numbers, float32, two by two from pairs of integers of 24 bits; at most 5.9 deviations."""
        count = _count(size)
        words = self._words((count + 1) // 2 * 2).reshape(-1, 2)
        numbers = pairs(words).reshape(-1)[:count].reshape(size)
        return numbers * np.float32(deviation) + np.float32(mean)

    def _words(self, count: int) -> np.ndarray:
        """Integers of 32 bits."""
        return self.raw((count + 1) // 2).view(np.dtype(np.uint32).newbyteorder("<"))[:count]


def _count(size: Size | None) -> int:
    return 1 if size is None else int(np.prod(size))

"""Split more inputs than a net's batch holds into batches, and join the results."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np


def split(inputs: Mapping[str, np.ndarray], size: int) -> Iterator[dict[str, np.ndarray]]:
    """The inputs, all of one length, in batches of `size` rows, the last one padded with zeros."""
    for first in range(0, count_of(inputs), size):
        batch = {name: np.asarray(values[first : first + size]) for name, values in inputs.items()}
        yield {name: _padded(values, size - len(values)) for name, values in batch.items()}


def count_of(inputs: Mapping[str, np.ndarray]) -> int:
    """Number of rows of the inputs; 0 without inputs."""
    return len(next(iter(inputs.values()), ()))


def _padded(values: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([values, np.zeros((rows, *values.shape[1:]), values.dtype)]) if rows else values


def join(results: Sequence[Mapping[str, np.ndarray]], names: Iterable[str], count: int) -> dict[str, np.ndarray]:
    """{name: the first `count` rows of the batches' results}; rows of padding come last."""
    return {name: np.asarray([row for result in results for row in result[name]][:count]) for name in names}

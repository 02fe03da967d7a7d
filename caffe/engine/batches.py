"""Split more inputs than a net's batch holds into batches, and join the results."""

from collections.abc import Collection, Iterator, Mapping

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


class Rows:
    """Arrays by name, joined from those of each batch."""

    def __init__(self, names: Collection[str]):
        self._rows: dict[str, list[np.ndarray]] = {name: [] for name in names}

    def extend(self, batch: Mapping[str, np.ndarray]) -> None:
        """Append copies of a batch's rows."""
        for name, values in batch.items():
            self._rows[name].extend(values.copy())

    def arrays(self, count: int) -> dict[str, np.ndarray]:
        """The first `count` rows of each; those of padding come last."""
        return {name: np.asarray(rows[:count]) for name, rows in self._rows.items()}

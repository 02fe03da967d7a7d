"""The last losses of a training, which average_loss smooths."""

import math
from collections import deque
from collections.abc import Iterable

import torch


class RecentLosses:
    """The losses of the last iterations."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque()
        self._recalled = False

    def begin(self, window: int) -> None:
        """Begin a run that keeps the last `window` losses; after `recall`, with those of the earlier run."""
        self._losses = deque(self._losses if self._recalled else (), window)
        self._recalled = False

    def recall(self, losses: Iterable[float]) -> None:
        """Let the next run begin with the last losses of an earlier one."""
        self._losses = deque(losses)
        self._recalled = True

    def append(self, loss: torch.Tensor) -> float:
        """Add the loss of an iteration; returns its value."""
        self._losses.append(float(loss))
        return self._losses[-1]

    def mean(self) -> float:
        """The smoothed loss."""
        return math.fsum(self._losses) / len(self._losses)

    def values(self) -> list[float]:
        """The losses, the latest last."""
        return list(self._losses)

"""When to write checkpoints: at intervals, the first early, and for at most a share of the time."""

import time
from collections.abc import Callable

MINUTES = 10.0
"""Between checkpoints: the training time that a killed process loses at most."""
FIRST_SECONDS, FIRST_SHARE = 60.0, 0.01
"""The first checkpoint of a process is written after 60 s or 1 % of the run's iterations, whichever is sooner."""
WRITING_SHARE = 0.05
"""Largest share of the time spent on writing; the first checkpoint is written after FIRST_SECONDS nevertheless."""
BYTES_PER_SECOND = 100e6
"""Assumed writing speed of the disk, until the first checkpoint was timed."""


class Schedule:
    """The times of checkpoints, counted from its construction.

    iteration   iterations done before this process
    iterations  max_iter of the training
    size        approximate bytes of a checkpoint
    minutes     between checkpoints; 0: one after each iteration
    clock       returns seconds
    """

    def __init__(
        self, iteration: int, iterations: int, size: int, minutes: float = MINUTES, clock: Callable[[], float] = time.monotonic
    ):
        self._clock, self._interval = clock, 60 * minutes
        self._early = iteration + FIRST_SHARE * iterations
        self._writing = size / BYTES_PER_SECOND
        self._last, self._first = clock(), True

    def is_due(self, iteration: int) -> bool:
        """Whether to write a checkpoint after this iteration."""
        waited, affordable = self._clock() - self._last, self._writing / WRITING_SHARE
        if not self._interval:
            return True
        if not self._first:
            return waited >= max(self._interval, affordable)
        early = iteration >= self._early and waited >= affordable
        return early or waited >= min(FIRST_SECONDS, self._interval)

    def restart(self, seconds: float) -> None:
        """Count from now on; the checkpoint just written took so many seconds."""
        self._writing, self._last, self._first = seconds, self._clock(), False

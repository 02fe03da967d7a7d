"""When a training writes a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable

MINUTES = 10.0
"""Between checkpoints: how much training a killed process loses at most."""
FIRST_SECONDS, FIRST_SHARE = 60.0, 0.01
"""The first checkpoint of a process comes after 60 s or 1 % of the run's iterations, whichever is sooner."""
WRITING_SHARE = 0.05
"""At most this share of the time goes into writing; the 60 s above hold even so."""
BYTES_PER_SECOND = 100e6
"""What a disk is assumed to write until the first checkpoint has shown it."""


class Schedule:
    """Says when a checkpoint is due; starts with the training.

    iteration   iterations done before this process
    iterations  of the whole run
    size        of a checkpoint in bytes, about
    minutes     between checkpoints; 0: one after each iteration
    clock       gives seconds
    """

    def __init__(
        self,
        iteration: int,
        iterations: int,
        size: int,
        minutes: float = MINUTES,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._clock, self._interval = clock, 60 * minutes
        self._early = iteration + FIRST_SHARE * iterations
        self._writing = size / BYTES_PER_SECOND
        self._begun, self._first = clock(), True

    def is_due(self, iteration: int) -> bool:
        """Whether to write a checkpoint after this iteration."""
        waited, affordable = self._clock() - self._begun, self._writing / WRITING_SHARE
        if not self._interval:
            return True
        if not self._first:
            return waited >= max(self._interval, affordable)
        early = iteration >= self._early and waited >= affordable
        return early or waited >= min(FIRST_SECONDS, self._interval)

    def wrote(self, seconds: float) -> None:
        """Count from now on; a checkpoint took so many seconds to write."""
        self._writing, self._begun, self._first = seconds, self._clock(), False

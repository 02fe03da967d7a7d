"""caffe.Timer: a stopwatch that waits for the GPU."""

from __future__ import annotations

import time

import torch

from caffe.engine import mode


class Timer:
    """Measures the time from `start` to `stop`; what the GPU was given before either is finished first."""

    def __init__(self):
        self._started: float | None = None
        self._seconds = 0.0

    def start(self) -> None:
        """Begin to measure; does nothing while it runs."""
        if self._started is None:
            self._started = _now()

    def stop(self) -> None:
        """End the measurement; does nothing while it does not run."""
        if self._started is not None:
            self._seconds = _now() - self._started
            self._started = None

    @property
    def ms(self) -> float:
        """Milliseconds of the last measurement, which ends here if it still runs; 0 before the first."""
        self.stop()
        return self._seconds * 1e3


def _now() -> float:
    if mode.device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()

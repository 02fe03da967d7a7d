"""caffe.Timer: a stopwatch that synchronises with the GPU."""

import time

import torch

from caffe.engine import mode


class Timer:
    """Measures the time from `start` to `stop`; both first wait for the GPU's queued work."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._seconds = 0.0

    def start(self) -> None:
        """Start measuring; does nothing if already running."""
        if self._started is None:
            self._started = _now()

    def stop(self) -> None:
        """Stop measuring; does nothing if not running."""
        if self._started is not None:
            self._seconds = _now() - self._started
            self._started = None

    @property
    def ms(self) -> float:
        """Milliseconds of the last measurement, stopping it if it is running; 0 before the first."""
        self.stop()
        return self._seconds * 1e3


def _now() -> float:
    if mode.device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()

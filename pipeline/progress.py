"""How a step shows how far it is: a bar on a terminal, and a line a minute in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator

MINUTE = 60.0


class Lines:
    """tqdm's figures, on a line of their own each time that a minute is over; the part of tqdm's interface that steps use."""

    def __init__(self, iterable: Iterable | None, total: int | None, desc: str, unit: str):
        self._iterable, self._total, self._desc, self._unit = iterable, total, desc, unit
        self._done, self._start = 0, time.monotonic()
        self._next = self._start + MINUTE

    def __iter__(self) -> Iterator:
        for one in self._iterable:
            yield one
            self.update()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        """There is nothing to close: the step says itself what it has done."""

    def update(self, count: int = 1) -> None:
        """Note that so many more are done."""
        self._done += count
        now = time.monotonic()
        if now >= self._next:
            self._next = now + MINUTE
            from tqdm import tqdm  # loaded where it is needed: most steps end before

            meter = tqdm.format_meter(self._done, self._total, now - self._start, ncols=0, prefix=self._desc, unit=self._unit)
            print(meter, file=sys.stderr, flush=True)


def progress(iterable: Iterable | None = None, *, total: int | None = None, desc: str = "", unit: str = " images"):
    """What goes over `iterable`, or is told by `update(n)`, and shows how much is done, how fast, and the time left."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        return tqdm(iterable, total=total, desc=desc, unit=unit)
    return Lines(iterable, total, desc, unit)

"""Progress of a step: a tqdm bar on a terminal, a line per minute in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self

MINUTE = 60.0

if TYPE_CHECKING:
    from tqdm import tqdm


class ProgressLines:
    """A line with tqdm's meter each minute; the part of tqdm's interface that steps use."""

    def __init__(self, iterable: Iterable[Any] | None, total: int | None, desc: str, unit: str):
        self._iterable, self._total, self._desc, self._unit = iterable or (), total, desc, unit
        self._done, self._start = 0, time.monotonic()
        self._next = self._start + MINUTE

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable:
            yield item
            self.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to close: steps print their own summary."""

    def update(self, count: int = 1) -> None:
        """Count so many more items as done."""
        self._done += count
        now = time.monotonic()
        if now >= self._next:
            self._next = now + MINUTE
            from tqdm import tqdm  # imported late: most steps end before

            meter = tqdm.format_meter(self._done, self._total, now - self._start, ncols=0, prefix=self._desc, unit=self._unit)
            print(meter, file=sys.stderr, flush=True)


def progress(
    iterable: Iterable[Any] | None = None, *, total: int | None = None, desc: str = "", unit: str = " images"
) -> tqdm[Any] | ProgressLines:
    """Show count, rate and remaining time while iterating over `iterable`, or by calls of `update`."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        return tqdm(iterable, total=total, desc=desc, unit=unit)
    return ProgressLines(iterable, total, desc, unit)

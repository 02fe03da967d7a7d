"""How a step shows how far it is: a bar on a terminal, and a line a minute in a log."""

from __future__ import annotations

import sys

from tqdm import tqdm

MINUTE = 60.0


class _Lines(tqdm):
    """tqdm's figures, each on a line of its own."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        self.fp.write(f"{msg or self}\n")
        self.fp.flush()


def progress(iterable=None, *, total: int | None = None, desc: str = "", unit: str = " images"):
    """A tqdm over `iterable`, or to be told by `update(n)`: done, rate and time left."""
    if sys.stderr.isatty():
        return tqdm(iterable, total=total, desc=desc, unit=unit)
    return _Lines(iterable, total=total, desc=desc, unit=unit, mininterval=MINUTE, maxinterval=MINUTE, delay=MINUTE, ncols=0)

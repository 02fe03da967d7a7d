"""What goes wrong, said in one line: where, what was found, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Error(Exception):
    """Base of everything that Roastery raises for bad input.

    where     the file, line, layer or key, such as `train.prototxt:17: layer "conv1"`
    found     what stands there
    expected  what could stand there
    do        what to do about it
    """

    def __init__(self, where: str, found: str, expected: str = "", do: str = ""):
        self.where = str(where)
        self.found = found
        self.expected = expected
        self.do = do
        super().__init__(self._message())

    def _message(self) -> str:
        message = f"{self.where}: {self.found}" if self.where else self.found
        if self.expected:
            message += f", but {self.expected}"
        if self.do:
            message += f"; {self.do}"
        return message

    def __reduce__(self):
        return type(self), (self.where, self.found, self.expected, self.do)


class FileError(Error, RuntimeError):
    """A file that is missing, cannot be read, or is not what it should be; a RuntimeError too, as pycaffe has it."""


class ImageError(FileError, OSError):
    """An image that is missing or cannot be read; an OSError too, since scripts pass over such images by `except IOError`."""


class ParseError(Error):
    """A prototxt that does not follow the schema."""


class LayerError(Error):
    """A layer whose type, parameters or bottoms cannot work."""


class WeightsError(Error):
    """Weights that do not fit the net.

    layers  {name: (found, expected, do)} of each layer that does not fit
    """

    def __init__(self, where: str, found: str, expected: str = "", do: str = "", layers: dict | None = None):
        super().__init__(where, found, expected, do)
        self.layers: dict[str, tuple[str, str, str]] = layers or {}

    def __reduce__(self):
        return type(self), (self.where, self.found, self.expected, self.do, self.layers)


class SolverError(Error):
    """A solver definition or state that cannot work."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean "ReLU"?` for a name like one or two of the known ones, whatever the case; "" for one like none."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=2, cutoff=0.7)
    return "did you mean " + " or ".join(f'"{by_lower[match]}"' for match in near) + "?" if near else ""

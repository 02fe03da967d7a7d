"""Exceptions whose message says in one line where, what was found, what was expected and what to do."""

import difflib
import os
from collections.abc import Iterable
from typing import Any

LayerProblems = dict[str, tuple[str, str, str]]


class Error(Exception):
    """Base of everything that Roastery raises for bad input.

    where     the file, line, layer or key, such as `train.prototxt:17: layer "conv1"`
    found     what is wrong there
    expected  what would be right there; follows `but` in the message
    do        how to fix it
    """

    def __init__(self, where: str | os.PathLike[str], found: str, expected: str = "", do: str = ""):
        self.where = str(where)
        self.found = found
        self.expected = expected
        self.do = do
        message = f"{self.where}: {self.found}" if self.where else self.found
        if self.expected:
            message += f", but {self.expected}"
        if self.do:
            message += f"; {self.do}"
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.found, self.expected, self.do)


class FileError(Error, RuntimeError):
    """A file that is missing, unreadable or of the wrong kind; also a RuntimeError, as in pycaffe."""


class ImageError(FileError, OSError):
    """An image that is missing or unreadable; also an OSError, since scripts skip such images by `except IOError`."""


class DiskError(FileError, OSError):
    """A disk that is full or read-only; also an OSError."""


class ParseError(Error):
    """A prototxt that does not match the schema."""


class LayerError(Error):
    """A layer whose type, parameters or bottoms are invalid."""


class WeightsError(Error):
    """Weights that do not match the net.

    layers  {name: (found, expected, do)} of each layer that does not match
    """

    def __init__(self, where: str, found: str, expected: str = "", do: str = "", layers: LayerProblems | None = None):
        super().__init__(where, found, expected, do)
        self.layers = layers or {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.found, self.expected, self.do, self.layers)


class NameNotFoundError(Error, KeyError):
    """A name that a net does not have; also a KeyError, as of any dictionary."""

    __str__ = Exception.__str__  # a KeyError shows its message in quotes


class OutOfMemoryError(Error, RuntimeError):
    """A net that needs more memory than there is; also a RuntimeError, as PyTorch's own is."""


class SolverError(Error):
    """A solver definition or state that is invalid."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean "ReLU"?` with the one or two most similar known names, ignoring case; "" if none is similar."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=2, cutoff=0.7)
    return "did you mean " + " or ".join(f'"{by_lower[match]}"' for match in near) + "?" if near else ""

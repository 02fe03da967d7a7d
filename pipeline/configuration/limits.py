"""Mistakes in a config file that its schema cannot express: repeated keys, NaN, names that are too long for a file system."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Most bytes of a file's name and of a path, on most file systems and Linux."""


def repeated(path: Path) -> Iterator[str]:
    """Keys that a file gives twice in one mapping; YAML silently takes the last one."""
    import yaml  # steps that only read a checked config need it not

    def within(node: yaml.Node, key: str) -> Iterator[str]:
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for name, value in node.value:
                inner = f"{key}.{name.value}" if key else str(name.value)
                if inner in seen:
                    yield f"{inner}: given again in line {name.start_mark.line + 1}; rename one of them, or remove it"
                seen.add(inner)
                yield from within(value, inner)

    if path.is_file():
        yield from within(yaml.compose(path.read_text(encoding="utf-8"), yaml.CSafeLoader), "")


def not_finite(config: dict[str, Any]) -> Iterator[str]:
    """Infinite and NaN values."""
    for key, value in _leaves(config):
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{key}: {value} is not a finite number"


def too_long(config: dict[str, Any]) -> Iterator[str]:
    """Paths that no file system accepts: a part of more than 255 bytes (an umlaut has two), or more than 4095 in all."""
    for key, value in _leaves(config):
        if isinstance(value, str) and "://" not in value:
            longest = max(len(part.encode(errors="surrogateescape")) for part in value.split("/"))
            if longest > LONGEST_NAME or len(value.encode(errors="surrogateescape")) > LONGEST_PATH:
                limits = f"names of files have at most {LONGEST_NAME} bytes, paths {LONGEST_PATH}"
                yield f"{key}: {value[:40]!r}… is too long: {limits}"


def _leaves(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """(key, value) of each scalar of a config."""
    if not isinstance(value, dict | list):
        yield key, value
        return
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(inner, f"{key}.{name}" if key else str(name))

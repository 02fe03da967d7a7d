"""Filters and feature maps as tiles side by side, and pages of them, as wide as a phone's screen shows well."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH = 640
"""Pixels across a page; a phone shows about half as many points."""
GAP = 2
"""White pixels between tiles."""
LEVELS = 32
"""Grays of a page: the eye sees no more in so small tiles, and the file is a third smaller."""
TITLE, LINE = 22, 28
"""Size of a title's letters, and from one of its lines to the next, in pixels."""


def normalised(values: np.ndarray) -> np.ndarray:
    """Values of any range as uint8: the least is black, the greatest white; all of them black where they are alike."""
    low, high = float(values.min()), float(values.max())
    return ((values - low) * (255 / (high - low) if high > low else 0)).round().astype(np.uint8)


def tiled(images: np.ndarray, columns: int, width: int = WIDTH) -> np.ndarray:
    """Images in rows of `columns`, all of it at most `width` pixels across; white where images end.

    images  images × height × width (× 3, RGB), uint8; enlarged by whole factors, so that values stay what they are, or reduced
            by their means
    """
    count, high, wide = images.shape[:3]
    columns = min(columns, count)
    room = max(1, width // columns - GAP)
    factor = room // wide
    size = (wide * factor, high * factor) if factor else (room, max(1, round(high * room / wide)))
    interpolation = cv2.INTER_NEAREST if factor else cv2.INTER_AREA
    whole_size = (-(-count // columns) * (size[1] + GAP) - GAP, columns * (size[0] + GAP) - GAP)
    whole = np.full((*whole_size, *images.shape[3:]), 255, np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * (size[1] + GAP), number % columns * (size[0] + GAP)
        whole[top : top + size[1], left : left + size[0]] = cv2.resize(image, size, interpolation=interpolation)
    return whole


def save_page(path: Path, sections: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write sections, each a title and tiles (gray or RGB), below one another as a PNG: of 256 colours, LEVELS of them gray."""
    sections = [(_lines(title), tiles) for title, tiles in sections]
    height = sum(_room(lines) + len(tiles) + 18 for lines, tiles in sections)
    page = Image.new("L", (WIDTH, height), "white")
    pen = ImageDraw.Draw(page)
    tops, y = [], 0
    for lines, tiles in sections:
        for number, line in enumerate(lines):
            pen.text((0, y + number * LINE), line, font=_font(), fill="black")
        tops.append(y + _room(lines))
        y = tops[-1] + len(tiles) + 18
    numbers = (np.asarray(page) * ((LEVELS - 1) / 255)).round().astype(np.uint8)
    palette = [round(level * 255 / (LEVELS - 1)) for level in range(LEVELS) for _ in "RGB"]
    colored = sum(tiles.ndim == 3 for _, tiles in sections)
    for top, (_, tiles) in zip(tops, sections, strict=True):
        if tiles.ndim == 3:
            few = Image.fromarray(tiles).quantize((256 - LEVELS) // colored, dither=Image.Dither.NONE)
            shown = np.asarray(few) + len(palette) // 3
            palette += few.getpalette()
        else:
            shown = (tiles * ((LEVELS - 1) / 255)).round().astype(np.uint8)
        numbers[top : top + len(tiles), : tiles.shape[1]] = shown
    image = Image.fromarray(numbers, "P")
    image.putpalette(palette)
    image.save(path, format="png", optimize=True)


def _room(lines: list[str]) -> int:
    return len(lines) * LINE + 8


def _lines(title: str) -> list[str]:
    """A title, broken between words where it is wider than the page."""
    lines: list[str] = []
    for word in title.split():
        if lines and _font().getlength(f"{lines[-1]} {word}") <= WIDTH:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    """The font of matplotlib's plots, which comes with it."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", TITLE)

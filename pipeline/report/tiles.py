"""Tile filters and feature maps, and write pages of tiles, as wide as a phone shows well."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH = 640
"""Width of a page in pixels; a phone has about half as many points."""
GAP = 2
"""White pixels between tiles."""
LEVELS = 32
"""Gray levels of a page: enough for small tiles, and the file is a third smaller."""
TITLE, LINE = 22, 28
"""Font size and line height of titles, in pixels."""


def normalise(values: np.ndarray) -> np.ndarray:
    """Values of any range as uint8: the smallest is black, the largest white; all black if they are equal."""
    low, high = float(values.min()), float(values.max())
    scaled: np.ndarray = (values - low) * (255 / (high - low) if high > low else 0)
    return scaled.round().astype(np.uint8)


def tile(images: np.ndarray, columns: int, width: int = WIDTH) -> np.ndarray:
    """Images in rows of `columns`, at most `width` pixels wide, on white.

    images  images × height × width (× 3, RGB), uint8; enlarged by integer factors, which keeps the values, or reduced by means
    """
    count, high, wide = images.shape[:3]
    columns = min(columns, count)
    room = max(1, width // columns - GAP)
    factor = room // wide
    size = (wide * factor, high * factor) if factor else (room, max(1, round(high * room / wide)))
    interpolation = cv2.INTER_NEAREST if factor else cv2.INTER_AREA
    return grid([cv2.resize(image, size, interpolation=interpolation) for image in images], columns, GAP)


def grid(images: Sequence[np.ndarray], columns: int, gap: int) -> np.ndarray:
    """Images of one size in rows of `columns`, with gaps between them, on white."""
    height, width, *channels = images[0].shape
    rows = -(-len(images) // columns)
    whole = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, *channels), 255, np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        whole[top : top + height, left : left + width] = image
    return whole


def save_page(path: Path, sections: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write sections, each a title and tiles (gray or RGB), as a PNG of 256 colours, LEVELS of them gray."""
    parts = [(_wrap(title), tiles) for title, tiles in sections]
    height = sum(_height(lines) + len(tiles) + 18 for lines, tiles in parts)
    page = Image.new("L", (WIDTH, height), "white")
    pen = ImageDraw.Draw(page)
    tops, y = [], 0
    for lines, tiles in parts:
        for number, line in enumerate(lines):
            pen.text((0, y + number * LINE), line, font=_font(), fill="black")
        tops.append(y + _height(lines))
        y = tops[-1] + len(tiles) + 18
    numbers = (np.asarray(page) * ((LEVELS - 1) / 255)).round().astype(np.uint8)
    palette = [round(level * 255 / (LEVELS - 1)) for level in range(LEVELS) for _ in "RGB"]
    colored = sum(tiles.ndim == 3 for _, tiles in parts)
    for top, (_, tiles) in zip(tops, parts, strict=True):
        if tiles.ndim == 3:
            quantised = Image.fromarray(tiles).quantize((256 - LEVELS) // colored, dither=Image.Dither.NONE)
            indices = np.asarray(quantised) + len(palette) // 3
            palette += quantised.getpalette() or []
        else:
            indices = (tiles * ((LEVELS - 1) / 255)).round().astype(np.uint8)
        numbers[top : top + len(tiles), : tiles.shape[1]] = indices
    image = Image.fromarray(numbers, "P")
    image.putpalette(palette)
    image.save(path, format="png", optimize=True)


def _height(lines: list[str]) -> int:
    """Height of a title in pixels."""
    return len(lines) * LINE + 8


def _wrap(title: str) -> list[str]:
    """The lines of a title, wrapped to the page's width."""
    lines: list[str] = []
    for word in title.split():
        if lines and _font().getlength(f"{lines[-1]} {word}") <= WIDTH:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    """The font of matplotlib's plots, DejaVu Sans, from its package."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", TITLE)

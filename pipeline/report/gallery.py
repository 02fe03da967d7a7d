"""Figures of a database's images, in a grid, with frames and captions."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import caffe
from caffe.datum import Record
from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.formats.records import channels_of, open_database


@dataclass(frozen=True)
class Cell:
    """An image, height × width × 3 (RGB), uint8; the lines of its caption; the colour of its frame, none if empty."""

    image: np.ndarray
    lines: tuple[str, ...]
    frame: str = ""


def records(database: Path) -> Iterator[tuple[str, bytes | memoryview]]:
    """(name in errors, serialised record) of each record of a database."""
    for key, value in open_database(database).items():
        yield f"{database}: {key.decode(errors='replace')}", value


def labelled_records(database: Path, classes: int) -> Iterator[tuple[str, Record | caffe_pb2.Datum]]:
    """(name in errors, record) of each record of a database. Raises InputError for a label that is not below `classes`."""
    for where, value in records(database):
        record = caffe.parse_datum(value)
        if not 0 <= record.label < classes:
            raise InputError(where, f"label {record.label}", f"there are {classes} classes", "build the database again")
        yield where, record


def reorder_channels(pixels: np.ndarray, source: str, target: str) -> np.ndarray:
    """An image, channels × height × width, with three channels reordered from `source` to `target`: BGR or RGB."""
    return pixels[::-1] if len(pixels) == 3 and source != target else pixels


def images_at(database: Path, positions: Iterable[int]) -> dict[int, np.ndarray]:
    """{position: image, height × width × 3, RGB, uint8} of a database's records at those of the positions that exist."""
    pending, images, channels = set(positions), dict[int, np.ndarray](), channels_of(database)
    for position, (where, value) in enumerate(records(database)):
        if position in pending:
            pixels = caffe.pixels_of(caffe.parse_datum(value), None, where)
            planes = reorder_channels(pixels, channels, "RGB") if len(pixels) == 3 else np.repeat(pixels[:1], 3, 0)
            images[position] = planes.transpose(1, 2, 0).clip(0, 255).astype(np.uint8)
            if len(images) == len(pending):
                break
    return images


def shorten(text: str, length: int) -> str:
    """A text without synset numbers (n02085936), truncated to so many letters."""
    return truncate(re.sub(r"\bn\d{8} (?=\S)", "", text), length)


def truncate(text: str, length: int) -> str:
    """The first letters of a text, with an ellipsis if it has more than so many."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def gallery(rows: list[list[Cell]], title: str) -> Figure:
    """Rows of cells, of any lengths; each an image in a square with its caption below."""
    columns, lines = max(map(len, rows)), max(len(cell.lines) for row in rows for cell in row)
    inch = 6.4 / columns
    size = min(10, 9 * inch / 0.95)
    letters = int(0.97 * inch * 72 / (0.6 * size))
    line = 1.25 * size / 72 / inch
    height = 1.04 + lines * line
    figure = plt.figure(figsize=(6.4, inch * height * len(rows) + 0.6))
    top = 1 - 0.55 / figure.get_figheight()
    axes = figure.add_axes((0, 0, 1, top), xlim=(0, columns), ylim=(height * len(rows), 0))
    axes.axis("off")
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            _draw(axes, cell, x + 0.03, y * height + 0.03, 0.94)
            for number, text in enumerate(cell.lines):
                place = (x + 0.5, y * height + 1 + (number + 0.5) * line)
                axes.text(*place, shorten(text, letters), ha="center", va="center", fontsize=size, parse_math=False)
    figure.text(0.5, (1 + top) / 2, title, ha="center", va="center", fontsize=11, parse_math=False)
    return figure


def _draw(axes: Axes, cell: Cell, left: float, top: float, side: float) -> None:
    """Draw an image in the middle of a square, and the square's frame."""
    height, width = cell.image.shape[:2]
    high, wide = side * height / max(height, width), side * width / max(height, width)
    left_, top_ = left + (side - wide) / 2, top + (side - high) / 2
    pixels = "nearest" if max(height, width) < 64 else "antialiased"
    axes.imshow(cell.image, extent=(left_, left_ + wide, top_ + high, top_), aspect="auto", interpolation=pixels)
    if cell.frame:
        axes.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=cell.frame, linewidth=3))

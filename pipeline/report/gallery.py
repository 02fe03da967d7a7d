"""Images of a database in figures: with a frame, and words below."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

import caffe
from caffe.datum import Record
from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.formats.records import channels_of


@dataclass(frozen=True)
class Cell:
    """An image, height × width × 3 (RGB), uint8; the lines below it; the colour of its frame, none where it is empty."""

    image: np.ndarray
    lines: tuple[str, ...]
    frame: str = ""


def labelled(database: Path, classes: int) -> Iterator[tuple[str, Record | caffe_pb2.Datum]]:
    """(how errors name it, record) of each record of a database; a label that is none of so many classes is an error."""
    for key, value in caffe.open_db(database).items():
        record, where = caffe.parse_datum(value), f"{database}: {key.decode(errors='replace')}"
        if not 0 <= record.label < classes:
            raise InputError(where, f"label {record.label}", f"there are {classes} classes", "build the database again")
        yield where, record


def in_order(pixels: np.ndarray, held: str, wanted: str) -> np.ndarray:
    """An image, channels × height × width, whose three channels are held as BGR or RGB, in the order that is wanted."""
    return pixels[::-1] if len(pixels) == 3 and held != wanted else pixels


def images_at(database: Path, positions: Iterable[int]) -> dict[int, np.ndarray]:
    """{position: image, height × width × 3, RGB, uint8} of records of a database; the others are passed over."""
    wanted, found, channels = set(positions), {}, channels_of(database)
    for position, (key, value) in enumerate(caffe.open_db(database).items()):
        if position in wanted:
            pixels = caffe.pixels_of(caffe.parse_datum(value), None, f"{database}: {key.decode(errors='replace')}")
            planes = in_order(pixels, channels, "RGB") if len(pixels) == 3 else np.repeat(pixels[:1], 3, 0)
            found[position] = planes.transpose(1, 2, 0).clip(0, 255).astype(np.uint8)
            if len(found) == len(wanted):
                break
    return found


def cut(words: str, letters: int) -> str:
    """The words without the number of a synset, and no more than so many letters of them."""
    words = re.sub(r"\bn\d{8} (?=\S)", "", words)
    return words if len(words) <= letters else f"{words[: letters - 1]}…"


def gallery(rows: list[list[Cell]], title: str) -> plt.Figure:
    """Cells in rows, which may be of different lengths; each an image in a square with its lines below."""
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
    for down, row in enumerate(rows):
        for across, cell in enumerate(row):
            _draw(axes, cell, across + 0.03, down * height + 0.03, 0.94)
            for number, words in enumerate(cell.lines):
                place = (across + 0.5, down * height + 1 + (number + 0.5) * line)
                axes.text(*place, cut(words, letters), ha="center", va="center", fontsize=size, parse_math=False)
    figure.text(0.5, (1 + top) / 2, title, ha="center", va="center", fontsize=11, parse_math=False)
    return figure


def _draw(axes: plt.Axes, cell: Cell, left: float, top: float, side: float) -> None:
    """An image in the middle of a square, with its frame around the square."""
    height, width = cell.image.shape[:2]
    high, wide = side * height / max(height, width), side * width / max(height, width)
    left_, top_ = left + (side - wide) / 2, top + (side - high) / 2
    pixels = "nearest" if max(height, width) < 64 else "antialiased"
    axes.imshow(cell.image, extent=(left_, left_ + wide, top_ + high, top_), aspect="auto", interpolation=pixels)
    if cell.frame:
        axes.add_patch(plt.Rectangle((left, top), side, side, fill=False, edgecolor=cell.frame, linewidth=3))

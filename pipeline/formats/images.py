"""Images as every step reads them: files by OpenCV, whole or not at all, and the pixels that the resize step made of them."""

from __future__ import annotations

import csv
import functools
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from pipeline.errors import InputError

PIXELS, TABLE = "pixels.npy", "images.csv"
MAPPED = 256
"""Shards whose pixels are mapped into memory at once; each is an open file, of which most systems allow 1024."""
_REDUCED = {
    8: (cv2.IMREAD_REDUCED_COLOR_8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
    4: (cv2.IMREAD_REDUCED_COLOR_4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
    2: (cv2.IMREAD_REDUCED_COLOR_2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
    1: (cv2.IMREAD_COLOR, cv2.IMREAD_GRAYSCALE),
}


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int


def decode(content: bytes, color: bool, least: Size | None = None) -> np.ndarray | None:
    """Pixels, uint8: height × width × 3 (BGR) or height × width (gray). None where `content` is no image, or a cut one.

    Turned as EXIF says; of 16 bits the upper 8, of an animation the first image, without an alpha channel. With `least`, a JPEG
    of twice that size or more is decoded at 1/2, 1/4 or 1/8, the smallest not smaller than `least`, which is faster and smoother.
    """
    factor = 1
    size = jpeg_size(content) if least else None
    if size:
        room = min(size) // max(least)  # whichever way EXIF turns the image
        factor = next(factor for factor in _REDUCED if factor <= max(room, 1))
    if factor == 1 and content.startswith(b"\xff\xd8\xff") and b"Exif\0\0" not in content[:65536]:
        # The same library as OpenCV's, called directly, gives the same pixels in two thirds of the time.
        with suppress(ValueError):  # CMYK, cut or damaged: OpenCV knows what becomes of it
            pixels = simplejpeg.decode_jpeg(content, "BGR" if color else "GRAY")
            return pixels if color else pixels[:, :, 0]
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), _REDUCED[factor][not color])
    except cv2.error:  # an empty file, or more pixels than OpenCV takes
        return None


def why_unreadable(content: bytes) -> str:
    """Why `decode` gives nothing: the file is `empty`, it begins as an image but is `damaged`, or it is `not_an_image`."""
    if not content:
        return "empty"
    begins = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")
    return "damaged" if content.startswith(begins) else "not_an_image"


def jpeg_size(content: bytes) -> Size | None:
    """The size that a JPEG's frame header gives; None where `content` is no JPEG with one (ITU-T T.81, B.1 and B.2)."""
    if content[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 9 <= len(content):
        if content[position] != 0xFF:
            return None
        marker = content[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(content[position + at : position + at + 2], "big") for at in (5, 7))
            return Size(height, width) if height and width else None
        elif marker == 0xDA:  # the scan: no frame header came before it
            return None
        else:
            position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    return None


def content_of(path: str | os.PathLike) -> bytes:
    """What a file holds, by as few calls of the system as can be."""
    number = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(number).st_size
        content = os.read(number, size + 1)
        while len(content) < size and (more := os.read(number, size - len(content))):
            content += more
        return content
    finally:
        os.close(number)


def read_image(path: Path, color: bool) -> np.ndarray | None:
    """`decode` of a file; None where the file is missing, too."""
    try:
        return decode(content_of(path), color)
    except OSError:
        return None


def write_png(path: Path, image: np.ndarray) -> None:
    """Write pixels without loss, packed for speed. Raises OSError where the disk is full."""
    packed, content = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert packed
    path.write_bytes(content)


class Resized:
    """The pixels that the resize step made: `resized["00000/cat.jpg"]` is the image of shard 00000 that came from cat.jpg.

    `root` has a folder for each shard, with the pixels of its images (images × height × width (× 3), uint8) and a table that
    has a line for each of them: path, reason (why there are no pixels; empty where there are), height and width before, and
    fingerprint (as pipeline.dataset.duplicates makes it, in hexadecimal).
    """

    def __init__(self, root: Path):
        self.root = root
        self._positions: dict[str, dict[str, int]] = {}
        self._pixels = functools.lru_cache(MAPPED)(lambda name: np.load(root / name / PIXELS, mmap_mode="r"))

    def rows(self, name: str) -> list[dict[str, str]]:
        """The table of a shard."""
        folder = self.root / name
        if not (folder / TABLE).is_file():
            raise InputError(folder, "no resized images", do="run the resize step first, or correct the path")
        with (folder / TABLE).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return list(csv.DictReader(file))

    def shard(self, name: str) -> tuple[dict[str, int], np.ndarray]:
        """{path: position} of a shard's images, and all pixels, mapped into memory."""
        if name not in self._positions:
            positions = {row["path"]: position for position, row in enumerate(self.rows(name)) if not row["reason"]}
            self._positions[name] = positions
        return self._positions[name], self._pixels(name)

    def __getitem__(self, path: str) -> np.ndarray | None:
        shard, _, name = path.partition("/")
        positions, pixels = self.shard(shard)
        return pixels[positions[name]] if name in positions else None


class Files:
    """Image files below `root`, by path, decoded when asked for; None for what is missing or no image."""

    def __init__(self, root: Path, color: bool):
        self.root, self.color = root, color

    def __getitem__(self, path: str) -> np.ndarray | None:
        return read_image(self.root / path, self.color)


def below(root: Path, color: bool) -> Resized | Files:
    """The images below `root`: the resize step's, or files."""
    return Resized(root) if next(root.glob(f"*/{TABLE}"), None) else Files(root, color)

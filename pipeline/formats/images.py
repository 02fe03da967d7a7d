"""Read images: decode files, complete or not at all, and map the resize step's pixels into memory."""

import functools
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from pipeline.errors import InputError
from pipeline.formats import digests
from pipeline.formats.tables import read_rows

PIXELS, TABLE = "pixels.npy", "images.csv"
MAPPED = 256
"""Most shards mapped into memory at once; each is an open file, of which most systems allow 1024."""
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
    """Pixels, uint8: height × width × 3 (BGR) or height × width (gray). None if `content` is not a complete image.

    Rotated by EXIF; the upper 8 of 16 bits, the first frame of an animation, without an alpha channel. With `least`, a JPEG of at
    least twice that size is decoded at 1/2, 1/4 or 1/8, the smallest not smaller than `least`, which is faster and smoother.
    """
    factor = 1
    if least and (size := jpeg_size(content)):
        room = min(size) // max(least)  # whichever way EXIF rotates the image
        factor = next(factor for factor in _REDUCED if factor <= max(room, 1))
    if factor == 1 and content.startswith(b"\xff\xd8\xff") and b"Exif\0\0" not in content[:65536]:
        # OpenCV's JPEG library, called directly, gives the same pixels in two thirds of the time.
        with suppress(ValueError):  # CMYK, truncated or damaged: left to OpenCV
            pixels: np.ndarray = simplejpeg.decode_jpeg(content, "BGR" if color else "GRAY")
            return pixels if color else pixels[:, :, 0]
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), _REDUCED[factor][not color])
    except cv2.error:  # an empty file, or more pixels than OpenCV takes
        return None


def why_unreadable(content: bytes) -> str:
    """Why `decode` returns None: the file is `empty`, has an image's signature but is `damaged`, or is `not_an_image`."""
    if not content:
        return "empty"
    signatures = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")
    return "damaged" if content.startswith(signatures) else "not_an_image"


def jpeg_size(content: bytes) -> Size | None:
    """The size in a JPEG's frame header, before EXIF rotates it; None if `content` is no JPEG, or its header is damaged."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return None
    return Size(height, width)


def content_of(path: str | os.PathLike[str]) -> bytes:
    """The content of a file, by as few system calls as possible: Path.read_bytes makes twice as many."""
    number = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(number).st_size
        content = os.read(number, size + 1)
        while len(content) < size and (more := os.read(number, size - len(content))):
            content += more
        return content
    finally:
        os.close(number)


def write_png(path: Path, image: np.ndarray) -> None:
    """Write a PNG, compressed for speed. Raises OSError if the disk is full."""
    encoded, content = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert encoded
    path.write_bytes(content.data)


class Resized:
    """What the resize step wrote to `root`, a folder for each shard: `resized["00000/cat.jpg"]` is cat.jpg of shard 00000.

    pipeline.dataset.resize describes the two files of a shard, pixels.npy and images.csv.
    """

    def __init__(self, root: Path):
        self.root = root
        self._positions: dict[str, dict[str, int]] = {}
        self._lock = threading.Lock()
        self._pixels = functools.lru_cache(MAPPED)(self._map)

    def _map(self, name: str) -> np.ndarray:
        """All pixels of a shard, mapped into memory."""
        with self._lock:  # one thread reads all of it
            digests.check(self.root / name / PIXELS)
        pixels: np.ndarray = np.load(self.root / name / PIXELS, mmap_mode="r")
        return pixels

    def rows(self, name: str) -> list[dict[str, str]]:
        """The table of a shard."""
        folder = self.root / name
        if not (folder / TABLE).is_file():
            raise InputError(folder, "no resized images", do="run the resize step first, or correct the path")
        return read_rows(folder / TABLE, "path", "reason", "height", "width", "fingerprint")

    def shard(self, name: str) -> tuple[dict[str, int], np.ndarray]:
        """{path: position} of a shard's images, and all pixels, mapped into memory."""
        if name not in self._positions:
            positions = {row["path"]: position for position, row in enumerate(self.rows(name)) if not row["reason"]}
            self._positions[name] = positions
        return self._positions[name], self._pixels(name)

    def pixels(self, path: str) -> np.ndarray:
        """The image at a path; raises KeyError if it was not decoded."""
        shard, _, name = path.partition("/")
        positions, pixels = self.shard(shard)
        image: np.ndarray = pixels[positions[name]]
        return image

    def __getitem__(self, path: str) -> np.ndarray | None:
        try:
            return self.pixels(path)
        except KeyError:
            return None


class Files:
    """Image files below `root`, by path, decoded on access; None for a file that is missing or not an image."""

    def __init__(self, root: Path, color: bool):
        self.root, self.color = root, color

    def __getitem__(self, path: str) -> np.ndarray | None:
        try:
            return decode(content_of(self.root / path), self.color)
        except OSError:
            return None


def open_images(root: Path, color: bool) -> Resized | Files:
    """The images below `root`: the resize step's if it has any, else files."""
    return Resized(root) if next(root.glob(f"*/{TABLE}"), None) else Files(root, color)

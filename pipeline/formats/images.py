"""Read images: decode files, complete or not at all, and map the resize step's pixels into memory."""

import functools
import hashlib
import os
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


class Shard(NamedTuple):
    """The table of a resized shard.

    positions  {path: position in pixels.npy} of the images that were decoded
    digests    SHA-256 of each image's pixels, by position, 32 bytes each; empty without SHA256SUMS: used as it is
    length     images in pixels.npy
    checked    by position, 1 where this process has compared the image with its digest
    """

    positions: dict[str, int]
    digests: bytes
    length: int
    checked: bytearray


class Resized:
    """What the resize step wrote to `root`, a folder for each shard: `resized["00000/cat.jpg"]` is cat.jpg of shard 00000.

    pipeline.dataset.resize describes the two files of a shard, pixels.npy and images.csv.
    """

    def __init__(self, root: Path):
        self.root = root
        self._shards: dict[str, Shard] = {}
        self._pixels = functools.lru_cache(MAPPED)(self._map)

    def _map(self, name: str) -> np.ndarray:
        """All pixels of a shard, mapped into memory. Raises InputError if the file is not what the table describes."""
        path, length = self.root / name / PIXELS, self.table(name).length
        try:
            pixels: np.ndarray = np.load(path, mmap_mode="r")
        except FileNotFoundError:
            raise InputError(path, "no such file", do="run the resize step first, or correct the path") from None
        except OSError:
            raise
        except Exception as error:  # cut off, or a damaged header, of which NumPy raises many kinds of errors
            raise InputError(path, f"cannot be mapped into memory ({error})", do=digests.AGAIN) from None
        if pixels.dtype != np.uint8 or not pixels.flags.c_contiguous or len(pixels) != length:
            found = f"{pixels.dtype} of shape {'×'.join(map(str, pixels.shape))}"
            raise InputError(path, found, f"{TABLE} describes uint8 of {length} images", digests.AGAIN)
        return pixels

    def rows(self, name: str) -> list[dict[str, str]]:
        """The rows of a shard's table."""
        folder = self.root / name
        if not (folder / TABLE).is_file():
            raise InputError(folder, "no resized images", do="run the resize step first, or correct the path")
        return read_rows(folder / TABLE, "path", "reason", "height", "width", "fingerprint", "sha256")

    def table(self, name: str) -> Shard:
        """The positions and digests of a shard's images."""
        if name not in self._shards:
            rows = self.rows(name)
            positions = {row["path"]: position for position, row in enumerate(rows) if not row["reason"]}
            is_sealed = (self.root / name / digests.SUMS).is_file()
            sums = b"".join(bytes.fromhex(row["sha256"]).ljust(32, b"\0") for row in rows) if is_sealed else b""
            self._shards[name] = Shard(positions, sums, len(rows), bytearray(len(rows)))
        return self._shards[name]

    def shard(self, name: str) -> tuple[dict[str, int], np.ndarray]:
        """{path: position} of a shard's images, and all pixels, mapped into memory, unchecked."""
        return self.table(name).positions, self._pixels(name)

    def pixels(self, path: str) -> np.ndarray:
        """The image at a path; raises KeyError if it was not decoded, InputError if it is not what the resize step wrote."""
        name, _, file = path.partition("/")
        table = self.table(name)
        position = table.positions[file]
        image: np.ndarray = self._pixels(name)[position]
        if table.digests and not table.checked[position]:
            expected, found = table.digests[32 * position : 32 * (position + 1)], hashlib.sha256(image.data).digest()
            if found != expected:
                where, said = self.root / name / PIXELS, f"the SHA-256 of {file}'s pixels is {found.hex()[:12]}…"
                do = f"{digests.AGAIN}, or remove {where.with_name(digests.SUMS)} to use it as it is"
                raise InputError(where, said, f"{TABLE} has {expected.hex()[:12]}…", do)
            table.checked[position] = 1
        return image

    def digest(self, path: str) -> bytes:
        """SHA-256 of an image's pixels, after `pixels` has checked them; empty if the shard has no SHA256SUMS."""
        name, _, file = path.partition("/")
        table = self.table(name)
        return table.digests[32 * table.positions[file] :][:32]

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

"""Resize a folder of images to one size, without lossy compression, and list those that cannot be decoded.

Written to a folder: pixels.npy (images × height × width × 3, BGR, or without the last axis for gray; uint8), which later steps
map into memory, and images.csv: path, reason, height and width of the file, fingerprint and SHA-256 of the pixels (hexadecimal),
for every file in the order of pixels.npy. The reason is empty for a decoded image; else, `empty`, `damaged` or `not_an_image`,
the pixels are 0 and have no digest. SHA256SUMS has the digest of images.csv: so each image can be checked alone, when it is read.
"""

import csv
import errno
import hashlib
import math
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from pipeline.command import run, step_parser
from pipeline.dataset.duplicates import fingerprint
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.formats import digests
from pipeline.formats.images import PIXELS, TABLE, Resized, Size, content_of, decode, jpeg_size, why_unreadable, write_png
from pipeline.options.dataset import Mode, ResizeOptions
from pipeline.options.flags import read_flags
from pipeline.progress import progress

INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "cubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
}


def size_of(options: ResizeOptions) -> Size:
    """The size that images are resized to."""
    return Size(options.size.height, options.size.width)


def resize(image: np.ndarray, options: ResizeOptions) -> np.ndarray:
    """Resize an image, height × width (× channels), uint8."""
    (height, width), size = image.shape[:2], size_of(options)
    interpolation = INTERPOLATIONS[options.interpolation]
    if options.resize_mode == Mode.FIT:
        scale = min(size.height / height, size.width / width)
        inner = Size(max(1, round(height * scale)), max(1, round(width * scale)))
        top, left = (size.height - inner.height) // 2, (size.width - inner.width) // 2
        padded = np.zeros((*size, *image.shape[2:]), np.uint8)
        image = cv2.resize(image, (inner.width, inner.height), interpolation=interpolation)
        padded[top : top + inner.height, left : left + inner.width] = image
        return padded
    if options.resize_mode == Mode.CROP:
        scale = max(size.height / height, size.width / width)
        crop = Size(min(height, round(size.height / scale)), min(width, round(size.width / scale)))
        top, left = (height - crop.height) // 2, (width - crop.width) // 2
        image = image[top : top + crop.height, left : left + crop.width]
    return cv2.resize(image, (size.width, size.height), interpolation=interpolation)


def resize_folder(source: Path, target: Path, options: ResizeOptions, threads: int = 1) -> Counter[str]:
    """Write every image of `source` to `target`, whole or not at all; return the number of images by reason."""
    if not source.is_dir():
        raise InputError(source, "no such folder", "it must be a folder of images")
    color = options.color == "color"
    cv2.setNumThreads(1)  # images are resized in parallel
    paths = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
    with written_whole(target) as part:
        part.mkdir()
        with (part / PIXELS).open("wb", buffering=0) as pixels, ThreadPoolExecutor(threads) as pool:
            shape = (len(paths), *size_of(options), *([3] if color else []))
            np.lib.format.write_array_header_1_0(pixels, {"descr": "|u1", "fortran_order": False, "shape": shape})
            begin, size = pixels.tell(), math.prod(shape[1:])
            _reserve(pixels.fileno(), begin + size * len(paths))

            def resize_file(position: int) -> tuple[str, int, int, str, str]:
                content = content_of(paths[position])
                image = decode(content, color, size_of(options))
                if image is None:
                    return why_unreadable(content), 0, 0, "", ""
                resized = resize(image, options)
                written = os.pwrite(pixels.fileno(), resized.data, begin + position * size)
                if written < size:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
                height, width = jpeg_size(content) or image.shape[:2]
                # Here the pixels are in the processor's cache; so later steps check the images that they read, and no others.
                return "", height, width, fingerprint(resized).hex(), hashlib.sha256(resized.data).hexdigest()

            work = pool.map(resize_file, range(len(paths)))
            rows = list(progress(work, total=len(paths), desc=f"resize {source.name}"))
        with (part / TABLE).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "reason", "height", "width", "fingerprint", "sha256"])
            writer.writerows((path.name, *row) for path, row in zip(paths, rows, strict=True))
        digests.write_sums(part / digests.SUMS, {TABLE: part / TABLE})
    return Counter(reason for reason, *_ in rows)


def _reserve(number: int, size: int) -> None:
    """Extend a file to `size` bytes, allocated if possible: a full disk raises OSError at once, and writing is faster."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(number, 0, size)
    else:
        os.ftruncate(number, size)


def export(target: Path, folder: Path) -> None:
    """Write the images of the resized folder `target` to `folder` as PNG files, whole."""
    positions, pixels = Resized(target.parent).shard(target.name)
    with written_whole(folder) as part:
        part.mkdir()
        for name, position in positions.items():
            write_png(part / f"{name}.png", pixels[position])


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, ResizeOptions)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, help="the folder to write; replaced if it exists")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--png", type=Path, metavar="FOLDER", help="also write the resized images there, to be looked at")
    a = parser.parse_args(argv)
    start = time.monotonic()
    counts = resize_folder(a.source, a.target, read_flags(a, ResizeOptions), a.threads)
    rate = counts.total() / (time.monotonic() - start)
    others = "".join(f", {count} {reason}" for reason, count in counts.items() if reason)
    print(f"{a.target}: {counts['']} images{others} ({rate:.0f} images/s)")
    if a.png:
        export(a.target, a.png)


if __name__ == "__main__":
    run(main)

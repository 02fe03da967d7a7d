"""Resize a folder of images to one size, as PNG, setting aside what cannot be read."""

from __future__ import annotations

import argparse
import enum
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from pipeline.command import run
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.images import read_image, write_png


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int


class Mode(enum.StrEnum):
    """How an image of another shape is fitted."""

    SQUASH = "squash"
    """Both sides are scaled, each as it must be."""
    CROP = "crop"
    """The shorter side is scaled to fit, and the middle of the longer one kept."""


def resize(image: np.ndarray, size: Size, mode: Mode) -> np.ndarray:
    """One image, height × width (× channels), to `size`, with the bilinear sampling of convert_imageset."""
    height, width = image.shape[:2]
    if mode == Mode.CROP:
        scale = max(size.height / height, size.width / width)
        kept_height, kept_width = min(height, round(size.height / scale)), min(width, round(size.width / scale))
        top, left = (height - kept_height) // 2, (width - kept_width) // 2
        image = image[top : top + kept_height, left : left + kept_width]
    return cv2.resize(image, (size.width, size.height), interpolation=cv2.INTER_LINEAR)


def resize_folder(source: Path, target: Path, size: Size, mode: Mode, color: bool, threads: int) -> pd.DataFrame:
    """Write every readable image of `source` to `target` as a PNG of `size`; return one row per rejected file.

    Names keep their stem. `target` is written whole or not at all. Columns of the result: path, reason (`unreadable`: no
    image, or a cut one).
    """
    if not source.is_dir():
        raise InputError(source, "no such folder", "a folder of images is wanted")
    if min(size) < 1:
        raise InputError("size", f"{size.height}×{size.width}", "both sides are at least 1 pixel")
    cv2.setNumThreads(1)  # images are worked on side by side
    paths = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
    stems = Counter(path.stem for path in paths)
    if stems and max(stems.values()) > 1:
        stem = stems.most_common(1)[0][0]
        raise InputError(source, f"several files called {stem}", "each gives a PNG of its name", "rename all but one")
    with written_whole(target) as part:
        part.mkdir()

        def one(path: Path) -> str:
            image = read_image(path, color)
            if image is None:
                return "unreadable"
            write_png(part / f"{path.stem}.png", resize(image, size, mode))
            return ""

        with ThreadPoolExecutor(threads) as pool:
            results = tqdm(pool.map(one, paths), total=len(paths), unit=" images", desc=f"resize {source.name}", disable=None)
            reasons = list(results)
    rejected = [(path.name, reason) for path, reason in zip(paths, reasons, strict=True) if reason]
    return pd.DataFrame(rejected, columns=["path", "reason"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--rejected", type=Path, required=True, help="where the table of rejected files goes (CSV)")
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--mode", type=Mode, choices=list(Mode), default=Mode.SQUASH)
    parser.add_argument("--color", choices=["color", "gray"], default="color")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args(argv)
    with written_whole(a.rejected) as part:
        rejected = resize_folder(a.source, a.target, Size(a.height, a.width), a.mode, a.color == "color", a.threads)
        rejected.to_csv(part, index=False)
    print(f"{a.target}: {len(list(a.target.iterdir()))} images, {len(rejected)} rejected")


if __name__ == "__main__":
    run(main)

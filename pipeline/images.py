"""Reading images as every step reads them: with OpenCV, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # the steps' tables name what cannot be decoded


def decode(content: bytes, color: bool) -> np.ndarray | None:
    """Pixels, uint8: height × width × 3 (BGR) or height × width (gray). None where `content` is no image, or a cut one."""
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE)
    except cv2.error:  # an empty file, or more pixels than OpenCV takes
        return None


def read_image(path: Path, color: bool) -> np.ndarray | None:
    """`decode` of a file; None where the file is missing, too."""
    try:
        return decode(path.read_bytes(), color)
    except OSError:
        return None


def write_png(path: Path, image: np.ndarray) -> None:
    """Write pixels without loss, packed for speed. Raises OSError where the disk is full."""
    packed, content = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert packed
    path.write_bytes(content)

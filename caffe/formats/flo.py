"""Optical flow in Middlebury's .flo files: "PIEH", width and height (int32), then u and v of each pixel (float32)."""

import struct
from pathlib import Path

import numpy as np

from caffe.errors import FileError
from caffe.formats.files import written_whole

_MAGIC = b"PIEH"


def read_flo(path: str) -> np.ndarray:
    """The flow (u, v), 2 × height × width, float32. FileError if there is no such file, or if it is damaged."""
    try:
        content = Path(path).read_bytes()
    except OSError:
        raise FileError(path, "no such .flo file") from None
    if content[:4] != _MAGIC or len(content) < 12:
        raise FileError(path, "not a .flo file", 'it begins with "PIEH", width and height')
    width, height = struct.unpack("<ii", content[4:12])
    if min(width, height) < 1 or len(content) != 12 + 8 * width * height:
        raise FileError(path, f"{len(content)} bytes", f"a flow of {width}×{height} has {12 + 8 * width * height}")
    return np.frombuffer(content, "<f4", offset=12).reshape(height, width, 2).transpose(2, 0, 1).astype(np.float32)


def write_flo(path: str, flow: np.ndarray) -> None:
    """Write a flow (u, v), 2 × height × width; the file is whole or not there, and its folder is made. Raises FileError."""
    _, height, width = flow.shape
    header = _MAGIC + struct.pack("<ii", width, height)
    try:
        with written_whole(path) as part:
            part.write_bytes(header + np.ascontiguousarray(flow.transpose(1, 2, 0), "<f4").tobytes())
    except OSError as error:
        raise FileError(path, f"cannot be written ({error})") from None

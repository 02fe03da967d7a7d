"""Whether OpenCV's dnn module computes from an ONNX model what onnxruntime computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np


def check(file: Path, inputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], limit: float) -> str:
    """A phrase: the largest difference of OpenCV's outputs, as a share of the largest value; or why there is none.

    OpenCV is one of several programs that read the file: a model that it cannot run is not an error.
    """
    name = f"OpenCV {cv2.__version__}"
    if not hasattr(cv2, "dnn"):
        return f"{name} has no dnn module"
    try:
        found = run(file, inputs, list(expected))
    except cv2.error as error:
        return f"{name} cannot run it: {_reason(error)}"
    worst = 0.0
    for ours, theirs in zip(expected.values(), found, strict=True):
        if ours.size != theirs.size:
            return f"{name} computes another result: shape {theirs.shape} instead of {ours.shape}"
        absolute = np.abs(ours.ravel().astype(np.float64) - theirs.ravel()).max(initial=0)
        worst = max(worst, float(absolute / (np.abs(ours).max(initial=0) or 1.0)))
    if not worst <= limit:
        return f"{name} computes another result: it differs by {worst:.1e}"
    return f"{name} {worst:.1e}"


def run(file: Path, inputs: Mapping[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
    """The outputs that OpenCV computes; raises cv2.error, without OpenCV's own log."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        net = cv2.dnn.readNetFromONNX(np.frombuffer(file.read_bytes(), np.uint8))
        for name, values in inputs.items():
            net.setInput(values, name)
        return [np.asarray(values) for values in net.forward(outputs)]
    finally:
        cv2.utils.logging.setLogLevel(level)


def _reason(error: cv2.error) -> str:
    """The last line of OpenCV's message that says something, without its source file."""
    lines = [line.strip() for line in str(error.err or error).splitlines() if line.strip()]
    return lines[-1][:160] if lines else "it says nothing of the reason"

"""Whether OpenCV's dnn module computes from an ONNX model what onnxruntime computes; in a process of its own, as it may crash."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

LONGEST = 300
"""Seconds after which OpenCV is given up."""
_RUN = """
import sys, cv2, numpy as np
model, given, found, *outputs = sys.argv[1:]
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
try:
    net = cv2.dnn.readNetFromONNX(model)
    for key, values in np.load(given).items():
        net.setInput(values, key.removeprefix("blob "))
    np.savez(found, *[np.asarray(values) for values in net.forward(outputs)])
except cv2.error as error:
    lines = [line.strip("> ") for line in str(error.err or error).splitlines() if line.strip("> ")]
    sys.exit(lines[0][:160] if lines else "it gives no reason")
"""


def check(file: Path, inputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], limit: float) -> tuple[bool, str]:
    """Whether OpenCV's outputs are those expected; and a phrase: their largest difference, as a share of the largest value, or
    what is wrong.

    OpenCV is one of several programs that read the file: a model that it cannot run is not an error.
    """
    name = f"OpenCV {cv2.__version__}"
    found, reason = _run(file, inputs, list(expected))
    if found is None:
        return False, f"{name} cannot run it ({reason})"
    worst = 0.0
    for ours, theirs in zip(expected.values(), found, strict=True):
        if ours.size != theirs.size:
            return False, f"{name} computes another result: shape {theirs.shape} instead of {ours.shape}"
        absolute = np.abs(ours.ravel().astype(np.float64) - theirs.ravel()).max(initial=0)
        difference = float(absolute / (np.abs(ours).max(initial=0) or 1.0))
        if not difference <= limit:  # NaN, too
            return False, f"{name} computes another result: it differs by {difference:.1e}"
        worst = max(worst, difference)
    return True, f"{name} differs from onnxruntime by {worst:.1e}"


def _run(file: Path, inputs: Mapping[str, np.ndarray], outputs: list[str]) -> tuple[list[np.ndarray] | None, str]:
    """The outputs that OpenCV computes, or None and the reason."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "given.npz", Path(folder) / "found.npz"
        # With a prefix, as a blob may have the name of an argument of savez.
        np.savez(given, **{f"blob {name}": values for name, values in inputs.items()})  # type: ignore[arg-type]
        command = [sys.executable, "-c", _RUN, str(file.absolute()), str(given), str(found), *outputs]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=LONGEST, check=False)
        except subprocess.TimeoutExpired:
            return None, f"it took more than {LONGEST} seconds"
        if ended.returncode < 0:
            return None, f"it crashed: {signal.Signals(-ended.returncode).name}"
        if ended.returncode:
            return None, (ended.stderr.strip().splitlines() or ["it gives no reason"])[-1]
        with np.load(found) as arrays:
            return [arrays[name] for name in arrays.files], ""

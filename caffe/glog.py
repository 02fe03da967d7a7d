"""The log in glog's form, line for line as BVLC Caffe writes it, so that existing parsers read it.

`I1120 20:07:21.867396 19256 net.cpp:86] Creating Layer conv1`: severity, month and day, time, process, the place in BVLC Caffe's
source that says the same thing, message. A glog since 2020 puts the year first, which Caffe's own parser and others cannot read.
Lines go to standard error, and to a file where one is asked for.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

INFO, WARNING, ERROR = range(3)
_SEVERITIES = "IWE"
_state = {"level": None, "stderr": True, "files": []}


def init_log(level: int | None = None, stderr: bool = True) -> None:
    """Choose what goes to standard error: severities from `level` up (0 info, 1 warning, 2 error), or nothing.

    Without `level`, the environment variable GLOG_minloglevel decides, as it does where this is never called.
    """
    _state["level"] = level
    _state["stderr"] = stderr


def log(message: str) -> None:
    """Write one line at severity info, as pycaffe's `caffe.log` does."""
    write(INFO, "_caffe.cpp:138", "{}", message)


@contextlib.contextmanager
def log_to_file(path: str | os.PathLike, stderr: bool | None = None) -> Iterator[None]:
    """Also write the whole log to `path` while the block runs; `stderr=False` keeps it off standard error meanwhile."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    before = _state["stderr"]
    with path.open("a", buffering=1) as file:
        _state["files"].append(file)
        if stderr is not None:
            _state["stderr"] = stderr
        try:
            yield
        finally:
            _state["files"].remove(file)
            _state["stderr"] = before


def write(severity: int, place: str, text: str, *values: object) -> None:
    """Log `text` with its replacement fields filled in; `place` is the file and line of BVLC Caffe that logs the same."""
    level = _state["level"]
    if level is None:
        level = int(os.environ.get("GLOG_minloglevel", "0") or 0)  # noqa: SIM112 - glog spells it so
    loud = _state["stderr"] and severity >= level
    if not loud and not _state["files"]:
        return
    now = time.time()
    stamp = time.strftime("%m%d %H:%M:%S", time.localtime(now))
    line = f"{_SEVERITIES[severity]}{stamp}.{int(now % 1 * 1e6):06d} {os.getpid():5d} {place}] {text.format(*values)}\n"
    if loud:
        sys.stderr.write(line)
    for file in _state["files"]:
        file.write(line)

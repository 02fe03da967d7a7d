"""The log in glog's form, line for line as BVLC Caffe writes it, so that existing parsers read it.

`I1120 20:07:21.867396 19256 net.cpp:86] Creating Layer conv1`: severity, month and day, time, process, file and line of the
same log call in BVLC Caffe, message. glog since 2020 also writes the year, which Caffe's own parser and others cannot read.
Lines go to standard error, and to files on request.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

INFO, WARNING, ERROR = range(3)
_SEVERITIES = "IWE"


class _State:
    level: int | None = None
    stderr = True


_files: list[TextIO] = []


def init_log(level: int | None = None, stderr: bool = True) -> None:
    """Set which severities go to standard error: `level` (0 info, 1 warning, 2 error) and above, or none.

    Without `level`, the environment variable GLOG_minloglevel decides, as it does by default.
    """
    _State.level = level
    _State.stderr = stderr


def log(message: str) -> None:
    """Write one line at severity info, as pycaffe's `caffe.log` does."""
    write(INFO, "_caffe.cpp:138", "{}", message)


@contextlib.contextmanager
def log_to_file(path: str | os.PathLike[str], stderr: bool | None = None) -> Iterator[None]:
    """Also write the whole log to `path` while the block runs; `stderr=False` keeps it off standard error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    before = _State.stderr
    with path.open("a", buffering=1) as file:
        _files.append(file)
        if stderr is not None:
            _State.stderr = stderr
        try:
            yield
        finally:
            _files.remove(file)
            _State.stderr = before


def write(severity: int, place: str, text: str, *values: object) -> None:
    """Log `text` with its replacement fields filled in; `place` is the file and line of the call in BVLC Caffe."""
    level = _State.level
    if level is None:
        level = int(os.environ.get("GLOG_minloglevel", "0") or 0)  # noqa: SIM112 - glog spells it so
    loud = _State.stderr and severity >= level
    if not loud and not _files:
        return
    now = time.time()
    stamp = time.strftime("%m%d %H:%M:%S", time.localtime(now))
    line = f"{_SEVERITIES[severity]}{stamp}.{int(now % 1 * 1e6):06d} {os.getpid():5d} {place}] {text.format(*values)}\n"
    if loud:
        sys.stderr.write(line)
    for file in _files:
        file.write(line)

"""Read files with errors that name them; write files, folders and databases whole or not at all."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from caffe.errors import DiskError, Error, FileError, nearest


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of a file. Raises FileError if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise FileError(path, "no such file") from None
    except OSError as error:
        raise FileError(path, f"cannot be read ({error.strerror})") from None
    except ValueError as error:  # an invalid file name
        raise FileError(repr(path), f"cannot be read ({error})") from None


def check_exists(path: str | os.PathLike[str]) -> None:
    """Raise FileError if a file to read is missing, with the nearest name in its folder."""
    path = Path(path)
    if not path.exists():
        beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise missing(path, "file", nearest(path.name, beside) or "correct its path")


def missing(path: str | os.PathLike[str], what: str, do: str, reader: str = "") -> FileError:
    """The error for a file or database that is not there.

    do      how it is made, or what to correct
    reader  the layer that reads it, as errors name it
    """
    expected = f"{reader} reads it" if reader else ""
    relative = "" if Path(path).is_absolute() else f" (relative to {Path.cwd()})"
    return FileError(path, f"no such {what}{relative}", expected, do)


@contextlib.contextmanager
def written_whole(target: str | os.PathLike[str], sync: bool = False) -> Iterator[Path]:
    """A temporary path, `.NAME.part` beside `target`, for a file or folder that replaces `target` when the block ends.

    If the block raises, the temporary path is removed and `target` is unchanged; if the process is killed, it is left behind, and
    the next run replaces it. Raises DiskError if the disk is full or read-only.

    sync  flush the file to the disk before renaming it, so that it is whole even after a power failure
    """
    target = Path(target)
    part = target.with_name(f".{target.name}.part")
    with disk_errors(target):
        _make_folder(target)
        _remove(part)
    try:
        with disk_errors(target):
            yield part
            if sync:
                with part.open("rb") as file:
                    os.fsync(file.fileno())
            if part.is_dir():
                _remove(target)
            part.replace(target)
    finally:
        with disk_errors(target):
            _remove(part)


def _make_folder(target: Path) -> None:
    """Make the folder that a file is written to, and those above it. Raises FileError if one of them is a file."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        there = next(path for path in target.parents if path.exists())
        raise FileError(target, "cannot be written", f"{there} is a file, not a folder", "correct the path") from None


_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
FULL = 1 << 20
"""Bytes free of a disk that is full: less than a library may have tried to write."""


@contextlib.contextmanager
def disk_errors(target: str | os.PathLike[str]) -> Iterator[None]:
    """Raise DiskError, naming `target`, where the block cannot write because the disk is full or read-only.

    Libraries pass that on in exceptions of their own, often without the path; LMDB calls a full disk an input/output error.
    """
    try:
        yield
    except Error:
        raise
    except Exception as error:
        where = _outside(error, Path(target))
        path = re.sub(r"(^|/)\.([^/]+)\.part(?=/|$)", r"\1\2", where)  # the folder that it will be in
        code = next(
            (code for code in _DISK_ERRORS if getattr(error, "errno", None) == code or os.strerror(code) in str(error)), 0
        )
        if not code and os.strerror(errno.EIO) in str(error) and _space(where)[0] < FULL:
            code = errno.ENOSPC
        if not code:
            raise
        reason = os.strerror(code)
        found, do = f"cannot be written ({reason})", "make the disk writable, or choose another folder"
        if code != errno.EROFS:
            had = "the quota leaves" if code == errno.EDQUOT else f"the {sum(_space(where)) / 1e3:,.0f} kB that were free"
            found, do = f"needs more than {had} ({reason})", "make room and run again: finished steps are kept"
        raised = DiskError(path, found, do=do)
        raised.errno = code
        raise raised from error


def _outside(error: Exception, target: Path) -> str:
    """The path that an error names, if it is not below the target's folder, as a temporary file's; else the target's."""
    named = getattr(error, "filename", None)
    is_elsewhere = isinstance(named, str) and not Path(named).absolute().is_relative_to(target.absolute().parent)
    return str(named) if is_elsewhere else os.fspath(target)


def _space(path: str) -> tuple[int, int]:
    """Bytes free on a path's disk, and those of its unfinished file, which will be removed."""
    target = Path(path).absolute()
    part = target.with_name(f".{target.name}.part")
    try:
        files = [part, *part.rglob("*")]
        written = sum(file.stat().st_blocks * 512 for file in files if file.is_file())
        return shutil.disk_usage(next(folder for folder in target.parents if folder.exists())).free, written
    except OSError:  # a file system that is gone, say: the error to tell is the first
        return 0, 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

"""Read files with errors that name them; write files, folders and databases whole or not at all."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from caffe.errors import Error, FileError


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


@contextlib.contextmanager
def written_whole(target: str | os.PathLike[str], sync: bool = False) -> Iterator[Path]:
    """A temporary path, `.NAME.part` beside `target`, for a file or folder that replaces `target` when the block ends.

    If the block raises, the temporary path is removed and `target` is unchanged; if the process is killed, it is left behind, and
    the next run replaces it. Raises FileError if the disk is full or read-only, whatever library has met that.

    sync  flush the file to the disk before renaming it, so that it is whole even after a power failure
    """
    target = Path(target)
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(part)
        yield part
        if sync:
            with part.open("rb") as file:
                os.fsync(file.fileno())
        if part.is_dir():
            _remove(target)
        part.replace(target)
    except BaseException as error:
        problem = _disk_problem(error, target, part)
        with (
            contextlib.suppress(OSError) if problem else contextlib.nullcontext()
        ):  # nothing can be removed where nothing can be written
            _remove(part)
        if problem:
            raise problem from error
        raise


def _disk_problem(error: BaseException, target: Path, part: Path) -> FileError | None:
    """What an error means, if it comes from a disk that is full or read-only. Libraries may pass on no more than its text."""
    if isinstance(error, Error):
        return None
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    number = error.errno if isinstance(error, OSError) else None
    if number not in numbers:
        number = next((number for number in numbers if os.strerror(number) in str(error)), None)
    if number is None:
        return None
    if number == errno.EROFS:
        return FileError(target, f"cannot be written ({os.strerror(number)})", do="make it writable, or choose another folder")
    files = part.rglob("*") if part.is_dir() else [part]
    written = sum(path.stat().st_size for path in files if path.is_file())
    folder = next(folder for folder in target.absolute().parents if folder.exists())
    needed = f"needs more than the {(written + shutil.disk_usage(folder).free) / 1e6:.1f} MB that were free"
    return FileError(target, f"{needed} ({os.strerror(number)})", do="make room and run again: what is finished is kept")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

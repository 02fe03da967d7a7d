"""Read files with errors that name them; write files, folders and databases whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from caffe.errors import FileError


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
    the next run replaces it.

    sync  flush the file to the disk before renaming it, so that it is whole even after a power failure
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    _remove(part)
    try:
        yield part
        if sync:
            with part.open("rb") as file:
                os.fsync(file.fileno())
        if part.is_dir():
            _remove(target)
        part.replace(target)
    except BaseException:
        _remove(part)
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

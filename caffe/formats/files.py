"""Files, folders and databases written whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(target: str | os.PathLike[str], sync: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `target` to write a file or a folder to; it takes its name when the block ends well.

    What was at `target` is replaced only then. When the block raises, the temporary path is removed and `target` is as before.
    A process that is killed leaves at most the temporary path, `.NAME.part`, which the next run replaces.

    sync  bring the file's content to the disk before it takes its name, so that it is whole after a power failure, too
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

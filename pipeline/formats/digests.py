"""SHA-256 of files that later steps read: one that was cut off or edited is named before anything is computed from it.

Folders of lists, weights, features and tables have SHA256SUMS, as `sha256sum --check` reads it; the manifest beside a database
has the fingerprint of its file.
"""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.errors import InputError

SUMS = "SHA256SUMS"
AGAIN = "it is damaged or was edited: delete it, so that the next run makes it again"
"""What to do about a result that is not as it was written."""
CHANGING = ("lock.mdb", "LOCK", "LOG", "LOG.old")
"""Files of databases that change when they are read."""
WHOLE = 1 << 30
"""Bytes of a database up to which all of it is read."""
PARTS = 256
"""So many parts, evenly spread, are read of a larger one, WHOLE bytes together."""
_verified: set[tuple[str, int, int, int, str]] = set()
"""Files that this process has read and found right: path, inode, size, time of the last change, digest."""


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: Path) -> str:
    """SHA-256 of a file; of a large one, of its size and of parts of it, since a database may have hundreds of GB."""
    size = path.stat().st_size
    if size <= WHOLE:
        return digest(path)
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(PARTS):
            file.seek(number * (size - WHOLE // PARTS) // (PARTS - 1))
            found.update(file.read(WHOLE // PARTS))
    return found.hexdigest()


def write_sums(target: Path, files: Mapping[str, Path]) -> None:
    """Write SHA256SUMS to a file that `written_whole` gave; `files` are named as seen from its folder."""
    lines = (f"{digest(path)}  {name}\n" for name, path in sorted(files.items()))
    target.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")


def seal(folder: Path) -> None:
    """Write the SHA256SUMS of a folder that `written_whole` gave."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in CHANGING)
    write_sums(folder / SUMS, {path.relative_to(folder).as_posix(): path for path in paths})


def check(path: Path) -> None:
    """Raise InputError if a file is not what the SHA256SUMS in its folder, or in the one above, says.

    Files that it does not name pass: they are the user's. In a folder `weights`, a file may be named by its digest, as downloaded
    ones are.
    """
    if path.parent.name == "weights" and re.fullmatch("[0-9a-f]{64}", named := path.name.partition(".")[0]):
        verify(path, named)
        return
    for folder in (path.parent, path.parent.parent):
        sums = folder / SUMS
        if path.is_file() and sums.is_file():
            for line in sums.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
                expected, _, name = line.partition("  ")
                if name == path.relative_to(folder).as_posix():
                    verify(path, expected.lower(), otherwise=f", or remove {sums} to use it as it is")
                    return


def verify(path: Path, expected: str, found: Callable[[Path], str] = digest, otherwise: str = "") -> None:
    """Raise InputError if a file has another digest.

    found      gives a file's digest
    otherwise  what may be done instead of making it again
    """
    stat = path.stat()
    known = os.fspath(path.absolute()), stat.st_ino, stat.st_size, stat.st_mtime_ns, expected
    if known in _verified:
        return
    if (actual := found(path)) != expected:
        said = f"its SHA-256 is {actual[:12]}…"
        raise InputError(path, said, f"{expected[:12]}… is recorded of it", AGAIN + otherwise)
    _verified.add(known)

"""SHA-256 of files that later steps read: one that was cut off or edited is named before anything is computed from it.

Folders of lists, weights, features and tables have SHA256SUMS, as `sha256sum --check` reads it; the manifest beside a database
has the digest of its file.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import InputError

SUMS = "SHA256SUMS"
CHANGING = ("lock.mdb", "LOCK", "LOG", "LOG.old")
"""Files of databases that change when they are read."""
WHOLE = 1 << 30
"""Bytes up to which all of a file is read."""
PARTS = 256
"""So many parts, evenly spread, are read of a larger file, WHOLE bytes together."""


def digest(path: Path) -> str:
    """SHA-256 of a file; of a large one, of its size and of parts of it, since a database may have hundreds of GB."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        found = hashlib.sha256(str(size).encode())
        for number in range(PARTS):
            file.seek(number * (size - WHOLE // PARTS) // (PARTS - 1))
            found.update(file.read(WHOLE // PARTS))
    return found.hexdigest()


def write_sums(target: Path, files: Mapping[str, Path]) -> None:
    """Write SHA256SUMS to a file that `written_whole` gave; `files` are named as seen from its folder."""
    target.write_text("".join(f"{digest(path)}  {name}\n" for name, path in sorted(files.items())), encoding="utf-8")


def seal(folder: Path) -> None:
    """Write the SHA256SUMS of a folder that `written_whole` gave."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in CHANGING)
    write_sums(folder / SUMS, {path.relative_to(folder).as_posix(): path for path in paths})


def check(path: Path) -> None:
    """Raise InputError if a file is not what its name or the SHA256SUMS in its folder, or the one above, says.

    Files that neither names pass: they are the user's.
    """
    if re.fullmatch("[0-9a-f]{64}", stem := path.name.partition(".")[0]):  # downloaded, see rule weights
        verify(path, stem)
        return
    for folder in (path.parent, path.parent.parent):
        sums = folder / SUMS
        if path.is_file() and sums.is_file():
            for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
                expected, _, name = line.partition("  ")
                if name == path.relative_to(folder).as_posix():
                    verify(path, expected, f", or remove {sums} to use it as it is")
                    return


def verify(path: Path, expected: str, otherwise: str = "") -> None:
    """Raise InputError if a file has another digest.

    otherwise  what may be done instead of making it again
    """
    if (found := digest(path)) != expected:
        said = f"its SHA-256 is {found[:12]}…"
        do = f"it is damaged or was edited: delete it, so that the next run makes it again{otherwise}"
        raise InputError(path, said, f"{expected[:12]}… is recorded of it", do)

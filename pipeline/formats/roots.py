"""The folder that the paths of a list begin from, and do not lead out of; files are found by any spelling of their names."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from pipeline.errors import InputError


class Root:
    """A list's root.

    folder         where the list's paths begin
    allow_outside  whether they may lead to files elsewhere: by `..`, as absolute paths, through links
    """

    def __init__(self, folder: Path, allow_outside: bool = False):
        self.folder, self.allow_outside = folder, allow_outside
        self._begin = os.path.join(os.path.realpath(folder), "")  # noqa: PTH118, a million paths are compared with it

    def path_of(self, name: str, where: str, do: str = "") -> Path:
        """The real path of a file, which need not exist.

        where  the list and the line, as an error names them
        do     what the error says besides correcting the line

        Raises InputError if it lies outside of the root.
        """
        shown = name if name.isprintable() else ascii(name)
        if "\0" in name:
            raise InputError(where, shown, "no path has a NUL character", "correct the line, or remove it")
        real = os.path.realpath(os.path.join(self.folder, self._spelling(name)))  # noqa: PTH118
        if not self.allow_outside and not os.path.join(real, "").startswith(self._begin):  # noqa: PTH118
            found = f'"{shown}" leads out of the root, to {real}'
            raise InputError(where, found, f"a list's files are below {self.folder}", do or "correct the line, or remove it")
        return Path(real)

    def _spelling(self, name: str) -> str:
        """A name as the file system has it: with / where Windows has \\, and with umlauts in one piece or two (NFC, NFD)."""
        if name.isascii() and "\\" not in name:
            return name
        plain = name.replace("\\", "/")
        forms = (name, *(unicodedata.normalize(form, one) for one in (name, plain) for form in ("NFC", "NFD")))
        return next((one for one in forms if os.path.exists(os.path.join(self.folder, one))), plain)  # noqa: PTH110, PTH118

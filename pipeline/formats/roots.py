"""Root folder of a list's paths: resolve names, refuse paths outside, match names in any Unicode form and with \\ or /."""

import os
import unicodedata
from pathlib import Path
from typing import Literal

from pipeline.errors import InputError

FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")


class Root:
    """A list's root.

    folder         the folder that the list's paths are relative to
    allow_outside  whether paths may point outside of it: by `..`, as absolute paths, through symbolic links
    """

    def __init__(self, folder: Path, allow_outside: bool = False):
        self.folder, self.allow_outside = folder, allow_outside
        self._begin = os.path.join(os.path.realpath(folder), "")  # noqa: PTH118, a million paths are compared with it

    def path_of(self, name: str, where: str, do: str = "") -> Path:
        """The real path of a file, which need not exist.

        where  list and line, for errors
        do     the remedy in an error

        Raises InputError if the path is outside of the root.
        """
        printable = name if name.isprintable() else ascii(name)
        if "\0" in name:
            raise InputError(where, printable, "a path has no NUL character", "correct the line, or remove it")
        real = os.path.realpath(os.path.join(self.folder, self._spelling(name)))  # noqa: PTH118
        if not self.allow_outside and not os.path.join(real, "").startswith(self._begin):  # noqa: PTH118
            found = f'"{printable}" is outside of the root: {real}'
            raise InputError(where, found, f"the files of a list are below {self.folder}", do or "correct the line, or remove it")
        return Path(real)

    def _spelling(self, name: str) -> str:
        """The name as it is in the file system: with / instead of \\, in Unicode form NFC or NFD."""
        if name.isascii() and "\\" not in name:
            return name
        plain = name.replace("\\", "/")
        forms = (name, *(unicodedata.normalize(form, text) for text in (name, plain) for form in FORMS))
        return next((form for form in forms if os.path.exists(os.path.join(self.folder, form))), plain)  # noqa: PTH110, PTH118

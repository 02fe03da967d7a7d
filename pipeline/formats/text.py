"""Texts that people bring, a line each image."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InputError

FORM = "NFC"
"""Unicode's normal form of names: an umlaut is one character, however a Mac or a list writes it."""


def numbered(path: Path) -> Iterator[tuple[int, str]]:
    """Numbers and text of the lines that are not empty; bytes that are not UTF-8 are kept, for paths may have them."""
    if not path.is_file():
        raise InputError(path, "no such file", do="correct its path")
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line.strip()


def separator(header: str) -> str:
    """What is between the columns of a table: of comma, semicolon (as some Excels write CSV) and tab, what gives most columns."""

    def columns(mark: str) -> int:
        try:
            return len(next(csv.reader([header], delimiter=mark, strict=True), []))
        except csv.Error:  # it is within quotation marks
            return 0

    return max(",;\t", key=columns)


def utf8(text: str, where: str | Path) -> str:
    """`text`, if it could be read as UTF-8."""
    if any("\udc80" <= letter <= "\udcff" for letter in text):
        raise InputError(where, ascii(text), "UTF-8 is wanted", "save the list as UTF-8, or rename the folder")
    return text


def class_name(text: str, where: str | Path) -> str:
    """A class's name on one line, in normal form: folders and lists that write it in another form mean the same class."""
    return " ".join(unicodedata.normalize(FORM, utf8(text, where)).split())

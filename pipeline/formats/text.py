"""Read people's text files and tables: lines, the header of a CSV file, UTF-8, class names."""

import csv
import gzip
import unicodedata
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Final

from pipeline.errors import InputError

FORM: Final = "NFC"
"""Unicode normal form of names: an umlaut is one character, even if macOS or a list writes two."""


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of each nonempty line; bytes that are not UTF-8 are kept, since paths may have them."""
    if not path.is_file():
        raise InputError(path, "no such file", do="correct its path")
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line.strip()


def open_table(path: Path) -> gzip.GzipFile | BufferedReader:
    """Open a table to read its bytes, decompressed if its name ends in .gz."""
    return gzip.GzipFile(path) if path.suffix == ".gz" else path.open("rb")


def table_header(path: Path) -> tuple[str, str]:
    """(delimiter, first line) of a CSV or TSV file: comma, semicolon (some Excels) or tab, whichever gives most columns."""
    with open_table(path) as file:
        header = file.readline().decode("utf-8-sig", "replace")

    def columns(delimiter: str) -> int:
        try:
            return len(next(csv.reader([header], delimiter=delimiter, strict=True), []))
        except csv.Error:  # the delimiter is within quotation marks
            return 0

    return "\t" if ".tsv" in path.suffixes else max(",;\t", key=columns), header


def check_utf8(text: str, where: str | Path) -> str:
    """`text`; raises InputError if it was not UTF-8."""
    if any("\udc80" <= letter <= "\udcff" for letter in text):
        raise InputError(where, ascii(text), "it has to be UTF-8", "save the list as UTF-8, or rename the folder")
    return text


def class_name(text: str, where: str | Path) -> str:
    """A class name: on one line, in normal form, so that folders and lists in different forms mean the same class."""
    return " ".join(unicodedata.normalize(FORM, check_utf8(text, where)).split())

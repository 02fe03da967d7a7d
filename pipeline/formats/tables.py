"""Read tables and JSON that other steps have written. What was cut off or edited is an InputError that names the file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError
from pipeline.formats import digests
from pipeline.formats.digests import AGAIN

if TYPE_CHECKING:
    import pandas as pd


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """The mapping in a JSON file, which must have these keys."""
    try:
        content = dict(json.loads(_text(path)))
    except (ValueError, TypeError) as error:
        raise InputError(path, f"not a JSON file ({error})", do=AGAIN) from None
    _require(path, "key", keys, content)
    return content


def read_table(path: Path, numbers: Iterable[str] = (), **how: Any) -> pd.DataFrame:
    """A CSV file as a table.

    numbers  columns that it must have, of numbers or empty
    how      for pandas.read_csv
    """
    import pandas as pd  # slow to import, and most steps read no tables, or their rows

    numbers = list(numbers)
    _whole(path, how.get("encoding_errors", "strict"))
    try:
        table: pd.DataFrame = pd.read_csv(path, **how)
    except ValueError as error:  # pandas' errors, and bytes that are not UTF-8
        raise InputError(path, f"not a table ({error})", do=AGAIN) from None
    _require(path, "column", numbers, table)
    for name in numbers:
        if len(table) and table[name].dtype.kind not in "iufb":
            raise InputError(path, f"column {name} has a value that is no number", do=AGAIN)
    return table


def read_rows(path: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a CSV file, which must have these columns; bytes that are not UTF-8 are kept, since paths may have them."""
    names, rows = read_cells(path)
    if rows:
        _require(path, "column", columns, names)
    return [dict(zip(names, row, strict=True)) for row in rows]


def read_cells(path: Path) -> tuple[list[str], list[list[str]]]:
    """The columns and the rows of a CSV file, all as text; bytes that are not UTF-8 are kept, since paths may have them."""
    text = _whole(path, errors="surrogateescape")
    try:
        names, *rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row] or [[]]
    except csv.Error as error:
        raise InputError(path, f"not a table ({error})", do=AGAIN) from None
    if not names:
        raise InputError(path, "only empty lines", do=AGAIN)
    for number, row in enumerate(rows, 2):
        if len(row) != len(names):
            raise InputError(f"{path}: row {number}", "another number of fields than columns", do=AGAIN)
    return names, rows


def _whole(path: Path, errors: str = "strict") -> str:
    """The text of a file that ends with a line ending, as all tables of steps do."""
    text = _text(path, errors)
    if not text.endswith("\n"):
        raise InputError(path, "cut off within a line" if text else "empty", do=AGAIN)
    return text


def _text(path: Path, errors: str = "strict") -> str:
    digests.check(path)
    try:
        return path.read_bytes().decode("utf-8", errors)
    except FileNotFoundError:
        raise InputError(path, "no such file", do="run the step that writes it, or correct the path") from None
    except UnicodeDecodeError:
        raise InputError(path, "bytes that are not UTF-8", do=AGAIN) from None


def _require(path: Path, kind: str, names: Iterable[str], found: Iterable[str]) -> None:
    if missing := [name for name in names if name not in found]:
        do = "correct the path; if it was edited, delete it, so that the next run makes it again"
        raise InputError(path, f"no {kind} {missing[0]}", f"it has {', '.join(found) or 'none'}", do)

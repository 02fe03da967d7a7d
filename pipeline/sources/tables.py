"""Read any source as one table of strings: url, label, split (train, val or unknown), group and sha256 of every image.

A list       CSV, TSV, parquet (the first two also as .gz) with columns of any names, or a text of `URL label` lines
A folder     CLASS/image, or train/CLASS/image and val/CLASS/image, like ImageNet; or val/image with a list of labels.
             Folders in a class's folder belong to the class
Image files  a list of `path label` lines, as Caffe has it, or a table with a column of paths, below a folder

Files are file: URLs in the table, relative if they are below the working directory (`pipeline.files.file_url`).
"""

import csv
import io
import re
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import caffe
from pipeline.errors import InputError
from pipeline.files import file_url
from pipeline.formats.roots import Root
from pipeline.formats.text import FORM, check_utf8, class_name, numbered_lines, open_table, table_header
from pipeline.options.dataset import Source
from pipeline.sources import folders
from pipeline.sources.folders import SPLITS

TABLE = "a list is a CSV, TSV or parquet file with a header"
CHUNK = 10_000
"""Rows of a parquet file in memory at once."""
URL = re.compile("://|^file:")


class Row(NamedTuple):
    """An image of a source; all but URL and label may be empty."""

    url: str
    label: str
    split: str = ""
    group: str = ""
    sha256: str = ""


def rows(source: Source) -> Iterator[Row]:
    """The images of a source, read as they are needed; a sample, which is drawn, is held in memory."""
    if source.sample:
        count = sum(1 for _ in _rows(source))
        if source.sample < count:
            positions = np.random.RandomState(source.seed).permutation(count)[: source.sample].tolist()
            places = set(positions)
            drawn = {number: row for number, row in enumerate(_rows(source)) if number in places}
            yield from (drawn[position] for position in positions)
            return
    yield from _rows(source)


def _rows(source: Source) -> Iterator[Row]:
    root = None if source.root is None else Root(source.root, source.allow_outside_root)  # None: a list of URLs
    if source.folder is not None:
        yield from (Row(*image) for image in folders.images(source.folder, source.val_labels))
    elif source.list is None:
        raise InputError("--list, --folder", "neither is given", "images come from one of them")
    elif source.list.suffix.lower() == ".txt" or not source.list.suffix:
        yield from _text(source.list, root)
    else:
        yield from _table(source.list, root, source.columns.model_dump(exclude_none=True) if source.columns else {})


def _text(path: Path, root: Root | None) -> Iterator[Row]:
    """Read `path label` or `URL label` lines."""
    name = None
    for number, line in numbered_lines(path):
        where = f"{path}:{number}"
        match = re.fullmatch(r"(.*\S)\s+(\S+)", line)
        if match is None:
            raise InputError(where, f'"{line}"', "a line is an image and its label", "correct the line, or remove it")
        name, label = match.groups()
        if root is not None:
            name = _file(root, name, where)
        elif not URL.search(name):
            raise _not_a_url(where, name)
        yield Row(check_utf8(name, where), class_name(label, where))
    if name is None:
        raise InputError(path, "no images", "a list has one line per image")


def _file(root: Root, name: str, where: str) -> str:
    """The URL of a file below `root`."""
    return file_url(root.path_of(name, where, "correct the line, or set source.allow_outside_root: true"))


def _not_a_url(where: str, found: str) -> InputError:
    return InputError(where, f'"{found}"', "a list without source.root has URLs", "set source.root to the folder of its paths")


def _table(path: Path, root: Root | None, columns: dict[str, str]) -> Iterator[Row]:
    """The rows of a CSV, TSV or parquet file, under our names for its columns.

    Without a root, one of the first CHUNK rows has a URL, or they are paths; others without one are left to the download.
    """
    place = "path" if root is not None else "url"
    found: list[Row] = []
    first, is_empty, has_urls = 0, True, root is not None
    for number, values in _named_cells(path, place, columns):
        is_empty = False
        url = values[place] if root is None else _file(root, values[place], f"{path}:{number}")
        row = Row(url, values["label"], values["split"], values["group"], values["sha256"])
        has_urls |= bool(URL.search(url))
        if has_urls:
            yield from found
            found.clear()
            yield row
        elif len(found) < CHUNK:
            first = number if not found else first
            found.append(row)
        else:
            break
    if found:
        raise _not_a_url(f"{path}:{first}", found[0].url)
    if is_empty:
        raise InputError(path, "no images", "a list has one line per image")


def _named_cells(path: Path, place: str, columns: dict[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, {our name of a column: cell}) of each row that is not empty; a column that the file lacks is empty.

    place    the column that says where an image is
    columns  the names that the file has for ours

    Raises InputError for a column that is missing, and for a row without an image, a label or a known split.
    """
    names = {name: columns.get(name, name) for name in (place, "label", "split", "group", "sha256")}
    lines = _lines(path)
    header = next(lines)[1]
    for name, column in names.items():
        if column not in header and (name in (place, "label") or name in columns):
            found = f"columns {', '.join(header)}"
            hint = caffe.nearest(column, header)
            do = f"set its name in source.columns, as in {{{name}: NAME}}" + (f"; {hint}" if hint else "")
            raise InputError(f"{path}:1", found, f"none is called {column}", do)
    places = {name: header.index(column) for name, column in names.items() if column in header}
    for number, cells in lines:
        if not any(cells):
            continue
        values = dict.fromkeys(names, "") | {name: cells[place].strip() for name, place in places.items()}
        # A cell may have several lines, a class name has one.
        values["label"] = unicodedata.normalize(FORM, re.sub(r"\s+", " ", values["label"]))
        values["group"] = unicodedata.normalize(FORM, values["group"])
        split = SPLITS.get(values["split"].lower())
        for name, is_bad in ((place, not values[place]), ("label", not values["label"]), ("split", split is None)):
            if is_bad:
                found = f'{names[name]} "{cells[places[name]]}"'
                expected = "it is train, val or test" if name == "split" else "each image has one"
                raise InputError(f"{path}:{number}", found, expected, "correct the line, or remove it")
        yield number, values | {"split": split or ""}


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of the header, its names without spaces around them, and of each row, all of the header's length."""
    if not path.is_file():
        raise InputError(path, "no such image list", do="set datasets.NAME.source.list to an existing file")
    try:
        lines = _parquet_rows(path) if path.suffix.lower() == ".parquet" else _csv_rows(path)
        header = [name.strip() for name in next(lines, (1, []))[1]]
        if not header:
            raise ValueError("it is empty")
        yield 1, header
        for number, cells in lines:
            if len(cells) > len(header):
                found, do = "more fields than the header", "put values that contain a comma in quotation marks"
                raise InputError(f"{path}:{number}", found, TABLE, do)
            yield number, cells + [""] * (len(header) - len(cells))
    except UnicodeDecodeError:
        with open_table(path) as file:
            line = next((number for number, line in enumerate(file, 1) if line.decode(errors="replace").encode() != line), 1)
        do = 'save the list as UTF-8, which Excel calls "CSV UTF-8"'
        raise InputError(f"{path}:{line}", "bytes that are not UTF-8", TABLE, do) from None
    except (csv.Error, ValueError, OSError, EOFError, zlib.error) as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(path, f"not a table ({reason})", TABLE) from None


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(first line, cells) of the records of a CSV or TSV file."""
    delimiter, _ = table_header(path)
    with io.TextIOWrapper(open_table(path), encoding="utf-8-sig", newline="") as file:
        reader, number = csv.reader(file, delimiter=delimiter, strict=True), 1
        for cells in reader:
            yield number, cells
            number = reader.line_num + 1


def _parquet_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number, cells) of the column names and of the rows of a parquet file; a missing value is empty."""
    import pyarrow.parquet  # slow to import, and most lists are text

    table = pyarrow.parquet.ParquetFile(path)
    yield 1, table.schema_arrow.names
    number = 1
    for batch in table.iter_batches(CHUNK):
        columns = [column.to_pylist() for column in batch.columns]
        for cells in zip(*columns, strict=True):
            yield number, ["" if cell is None or cell != cell else str(cell) for cell in cells]
            number += 1

"""Read any source as one table of strings: url, label, split (train, val or unknown), group and sha256 of every image.

A list       CSV, TSV, parquet (the first two also as .gz) with columns of any names, or a text of `URL label` lines
A folder     CLASS/image, or train/CLASS/image and val/CLASS/image, like ImageNet; or val/image with a list of labels.
             Folders in a class's folder belong to the class
Image files  a list of `path label` lines, as Caffe has it, or a table with a column of paths, below a folder

Files are file: URLs in the table, relative if they are below the working directory (`pipeline.files.file_url`).
"""

import itertools
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet

import caffe
from pipeline.errors import InputError
from pipeline.files import file_url
from pipeline.formats.roots import Root
from pipeline.formats.text import FORM, check_utf8, class_name, numbered_lines, open_table, table_header
from pipeline.options.dataset import Source
from pipeline.sources import folders
from pipeline.sources.folders import SPLITS

COLUMNS = ("url", "label", "split", "group", "sha256")
TABLE = "a list is a CSV, TSV or parquet file with a header"
CHUNK = 10_000
"""Rows of a list in memory at once."""


def chunks(source: Source) -> Iterator[pd.DataFrame]:
    """The table of a source, CHUNK rows at a time, to bound memory; a sample is one chunk."""
    if source.sample:
        count = sum(len(chunk) for chunk in _chunks(source))
        if source.sample < count:
            yield _rows_at(source, np.random.RandomState(source.seed).permutation(count)[: source.sample])
            return
    yield from _chunks(source)


def _rows_at(source: Source, positions: np.ndarray) -> pd.DataFrame:
    """The rows of a source at these positions, in their order."""
    parts, start = [], 0
    for chunk in _chunks(source):
        here = positions[(positions >= start) & (positions < start + len(chunk))]
        parts.append(chunk.iloc[here - start].set_axis(here))
        start += len(chunk)
    return pd.concat(parts).loc[positions].reset_index(drop=True)


def _chunks(source: Source) -> Iterator[pd.DataFrame]:
    root = None if source.root is None else Root(source.root, source.allow_outside_root)  # None: a list of URLs
    if source.folder is not None:
        tables = _rows(folders.images(source.folder, source.val_labels))
    elif source.list is None:
        raise InputError("--list, --folder", "neither is given", "images come from one of them")
    elif source.list.suffix.lower() == ".txt" or not source.list.suffix:
        tables = _rows(_text(source.list, root))
    else:
        tables = _tables(source.list, root, source.columns.model_dump(exclude_none=True) if source.columns else {})
    for table in tables:
        yield table[list(COLUMNS)].reset_index(drop=True)


def _rows(rows: Iterable[tuple[str, str, str]]) -> Iterator[pd.DataFrame]:
    """Tables of url, label and split."""
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, CHUNK)):
        yield pd.DataFrame(chunk, columns=["url", "label", "split"], dtype=object).assign(group="", sha256="")


def _text(path: Path, root: Root | None) -> Iterator[tuple[str, str, str]]:
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
        elif "://" not in name and not name.startswith("file:"):
            raise _not_a_url(where, name)
        yield check_utf8(name, where), class_name(label, where), ""
    if name is None:
        raise InputError(path, "no images", "a list has one line per image")


def _file(root: Root, name: str, where: str) -> str:
    """The URL of a file below `root`."""
    return file_url(root.path_of(name, where, "correct the line, or set source.allow_outside_root: true"))


def _not_a_url(where: str, found: str) -> InputError:
    return InputError(where, f'"{found}"', "a list without source.root has URLs", "set source.root to the folder of its paths")


def _tables(path: Path, root: Root | None, columns: dict[str, str]) -> Iterator[pd.DataFrame]:
    """The rows of a CSV, TSV or parquet file, under our names for its columns."""
    place = "path" if root is not None else "url"
    names = {name: columns.get(name, name) for name in (place, "label", "split", "group", "sha256")}
    is_empty = True
    for table in _read_tables(path):
        for name, column in names.items():
            if column not in table and (name in (place, "label") or name in columns):
                found = f"columns {', '.join(table.columns)}"
                hint = caffe.nearest(column, table.columns)
                do = f"set its name in source.columns, as in {{{name}: NAME}}" + (f"; {hint}" if hint else "")
                raise InputError(f"{path}:1", found, f"none is called {column}", do)
        table = table[(table != "").any(axis=1)]
        named = pd.DataFrame(
            {name: table[column].str.strip() if column in table else "" for name, column in names.items()}, table.index
        )
        # A cell may have several lines, a class name has one.
        named["label"] = named.label.str.replace(r"\s+", " ", regex=True).str.normalize(FORM)
        named["group"] = named["group"].str.normalize(FORM)
        named["split"] = named.split.str.lower().map(SPLITS)
        for name, bad in ((place, named[place] == ""), ("label", named.label == ""), ("split", named.split.isna())):
            if bad.any():
                line = bad.idxmax()
                found = f'{names[name]} "{table[names[name]][line]}"'
                expected = "it is train, val or test" if name == "split" else "each image has one"
                raise InputError(f"{path}:{line}", found, expected, "correct the line, or remove it")
        if root is not None:
            named["url"] = [_file(root, name, f"{path}:{line}") for line, name in named.path.items()]
        elif is_empty and len(named) and not named.url.str.contains("://|^file:").any():
            raise _not_a_url(f"{path}:{named.index[0]}", named.url.iloc[0])
        is_empty &= named.empty
        yield named
    if is_empty:
        raise InputError(path, "no images", "a list has one line per image")


def _read_tables(path: Path) -> Iterator[pd.DataFrame]:
    """All columns as strings, indexed by line number; their names without spaces around them."""
    if not path.is_file():
        raise InputError(path, "no such image list", do="set datasets.NAME.source.list to an existing file")
    try:
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):  # more fields than the header
            if path.suffix.lower() == ".parquet":
                line = 1
                batches = pyarrow.parquet.ParquetFile(path).iter_batches(CHUNK)
                tables = (batch.to_pandas().astype(object).fillna("").astype(str) for batch in batches)
            else:
                line = 2  # the header is line 1
                how = {"dtype": str, "keep_default_na": False, "index_col": False, "skip_blank_lines": False}
                tables = pd.read_csv(path, sep=table_header(path)[0], chunksize=CHUNK, **how)
            for table in tables:
                table.index = range(line, line + len(table))
                line += len(table)
                yield table.rename(columns=lambda name: str(name).strip())
    except UnicodeDecodeError:
        with open_table(path) as file:
            line = next((number for number, line in enumerate(file, 1) if line.decode(errors="replace").encode() != line), 1)
        do = 'save the list as UTF-8, which Excel calls "CSV UTF-8"'
        raise InputError(f"{path}:{line}", "bytes that are not UTF-8", TABLE, do) from None
    except pd.errors.ParserWarning:
        found, do = "lines with more fields than the header", "put values that contain a comma in quotation marks"
        raise InputError(path, found, TABLE, do) from None
    except (ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(path, f"not a table ({reason})", TABLE) from None

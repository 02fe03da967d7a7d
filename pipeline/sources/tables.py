"""What people bring, as one table: url, label, split (train, val or unknown), group and sha256 of every image, as strings.

A list       CSV, TSV, parquet (or .gz of the first two) with columns of any names, or a text with a URL and a label a line
A folder     CLASS/image, or train/CLASS/image and val/CLASS/image, as ImageNet lies; val/image goes with a list of labels.
             Folders in that of a class are of this class, too
Image files  a list in Caffe's form, `path label` a line, or a list with a column of paths, below a folder

Files are file: URLs in the table, relative where they are below the working directory (`pipeline.files.file_url`).
"""

from __future__ import annotations

import gzip
import itertools
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
import pyarrow.parquet

import caffe
from pipeline.errors import InputError
from pipeline.files import file_url
from pipeline.formats.roots import Root
from pipeline.formats.text import FORM, class_name, numbered, separator, utf8
from pipeline.options.dataset import Source
from pipeline.sources import folders
from pipeline.sources.folders import SPLITS

COLUMNS = ("url", "label", "split", "group", "sha256")
CHUNK = 10_000
"""Rows of a list that are held at once."""


def list_root(source: Source) -> Root | None:
    """The root of a list's paths; None for a list of URLs."""
    return None if source.root is None else Root(source.root, source.allow_outside_root)


def read(source: Source) -> pd.DataFrame:
    """The table of a source, in its order."""
    return pd.concat(chunks(source), ignore_index=True)


def chunks(source: Source) -> Iterator[pd.DataFrame]:
    """The table of a source, CHUNK rows at a time, so that its length does not matter; only a sample is held as a whole."""
    if source.sample:
        count = sum(len(chunk) for chunk in _chunks(source))
        if source.sample < count:
            yield _sampled(source, np.random.RandomState(source.seed).permutation(count)[: source.sample])
            return
    yield from _chunks(source)


def _sampled(source: Source, wanted: np.ndarray) -> pd.DataFrame:
    """The rows of these positions, in their order."""
    parts, start = [], 0
    for chunk in _chunks(source):
        here = wanted[(wanted >= start) & (wanted < start + len(chunk))]
        parts.append(chunk.iloc[here - start].set_axis(here))
        start += len(chunk)
    return pd.concat(parts).loc[wanted].reset_index(drop=True)


def _chunks(source: Source) -> Iterator[pd.DataFrame]:
    if source.folder is not None:
        tables = _rows(folders.images(source.folder, source.val_labels))
    elif source.list is None:
        raise InputError("--list, --folder", "neither is given", "images come from one of them")
    elif source.list.suffix.lower() == ".txt" or not source.list.suffix:
        tables = _rows(_text(source.list, list_root(source)))
    else:
        tables = _tables(source.list, list_root(source), source.columns.model_dump(exclude_none=True) if source.columns else {})
    for table in tables:
        yield table[list(COLUMNS)].reset_index(drop=True)


def _rows(rows: Iterable[tuple[str, str, str]]) -> Iterator[pd.DataFrame]:
    """Tables of url, label and split."""
    rows = iter(rows)
    while some := list(itertools.islice(rows, CHUNK)):
        yield pd.DataFrame(some, columns=["url", "label", "split"], dtype=object).assign(group="", sha256="")


def _text(path: Path, root: Root | None) -> Iterator[tuple[str, str, str]]:
    """`path label` or `URL label` a line."""
    name = None
    for number, line in numbered(path):
        where = f"{path}:{number}"
        name, label = re.fullmatch(r"(.*\S)\s+(\S+)", line).groups() if re.search(r"\s", line) else (line, "")
        if not label:
            raise InputError(where, f'"{line}"', "each image has a label behind it", "correct the line, or remove it")
        if root is not None:
            name = _file(root, name, where)
        elif "://" not in name and not name.startswith("file:"):
            raise _no_address(where, name)
        yield utf8(name, where), class_name(label, where), ""
    if name is None:
        raise InputError(path, "no images", "there is one line for each image")


def _file(root: Root, name: str, where: str) -> str:
    """The URL of a file below `root`."""
    return file_url(root.path_of(name, where, "correct the line, or set source.allow_outside_root: true"))


def _no_address(where: str, found: str) -> InputError:
    return InputError(where, f'"{found}"', "an address is wanted", "give source.root, where the list's paths begin")


def _tables(path: Path, root: Root | None, columns: dict[str, str]) -> Iterator[pd.DataFrame]:
    """The rows of a CSV, TSV or parquet file, under our names for its columns."""
    place = "path" if root is not None else "url"
    wanted = {name: columns.get(name, name) for name in (place, "label", "split", "group", "sha256")}
    any_at_all = False
    for table in _read_tables(path):
        for name, column in wanted.items():
            if column not in table and (name in (place, "label") or name in columns):
                found = f"columns {', '.join(table.columns)}"
                hint = caffe.nearest(column, table.columns)
                do = f"say what it is called in source.columns, as in {{{name}: NAME}}" + (f"; {hint}" if hint else "")
                raise InputError(f"{path}:1", found, f"one called {column} is wanted", do)
        table = table[(table != "").any(axis=1)]
        named = pd.DataFrame(
            {name: table[column].str.strip() if column in table else "" for name, column in wanted.items()}, table.index
        )
        # A cell may have several lines, the name of a class has one.
        named["label"] = named.label.str.replace(r"\s+", " ", regex=True).str.normalize(FORM)
        named["group"] = named["group"].str.normalize(FORM)
        named["split"] = named.split.str.lower().map(SPLITS)
        for name, bad in ((place, named[place] == ""), ("label", named.label == ""), ("split", named.split.isna())):
            if bad.any():
                line = bad.idxmax()
                found = f'{wanted[name]} "{table[wanted[name]][line]}"'
                expected = "it is train, val or test" if name == "split" else "each image has one"
                raise InputError(f"{path}:{line}", found, expected, "correct the line, or remove it")
        if root is not None:
            named["url"] = [_file(root, name, f"{path}:{line}") for line, name in named.path.items()]
        elif not any_at_all and len(named) and not named.url.str.contains("://|^file:").any():
            raise _no_address(f"{path}:{named.index[0]}", named.url.iloc[0])
        any_at_all |= not named.empty
        yield named
    if not any_at_all:
        raise InputError(path, "no images", "there is one line for each image")


def _read_tables(path: Path) -> Iterator[pd.DataFrame]:
    """All columns as strings, by the number of the line in the file; their names without spaces around them."""
    if not path.is_file():
        raise InputError(path, "no such image list", do="give datasets.NAME.source.list an existing file")
    try:
        if path.suffix.lower() == ".parquet":
            start = 1
            for batch in pyarrow.parquet.ParquetFile(path).iter_batches(CHUNK):
                table = batch.to_pandas().astype(object)
                table = table.where(table.notna(), "").astype(str)
                table.index = range(start, start + len(table))
                start += len(table)
                yield table.rename(columns=lambda name: str(name).strip())
            return
        how = {"sep": _separator(path), "dtype": str, "keep_default_na": False, "index_col": False}
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):  # more fields than the header has
            tables = pd.read_csv(path, skip_blank_lines=False, chunksize=CHUNK, **how)
            for table in tables:
                table.index += 2  # the header is line 1
                yield table.rename(columns=lambda name: str(name).strip())
    except UnicodeDecodeError:
        with _opened(path) as file:
            line = next((number for number, line in enumerate(file, 1) if not _isutf8(line)), 1)
        do = 'save the list as UTF-8, which Excel calls "CSV UTF-8"'
        raise InputError(f"{path}:{line}", "bytes that are not UTF-8", "a CSV, TSV or parquet file is wanted", do) from None
    except pd.errors.ParserWarning:
        found, do = "lines with more fields than the header", "put values that have a comma into quotation marks"
        raise InputError(path, found, "a CSV, TSV or parquet file with a header is wanted", do) from None
    except (ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(path, f"not a table ({reason})", "a CSV, TSV or parquet file with a header is wanted") from None


def _separator(path: Path) -> str:
    """What is between the columns of a table."""
    if ".tsv" in path.suffixes:
        return "\t"
    with _opened(path) as file:
        return separator(file.readline().decode("utf-8-sig", "replace"))


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _isutf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True

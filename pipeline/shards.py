"""Cut a list of URLs into shards, the unit of a job.

The list is CSV, or TSV by its name, with a column `url` and, where known, `label`, `split` (train or val) and `sha256`.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import pandas as pd

import caffe
from pipeline.command import run
from pipeline.errors import InputError
from pipeline.files import written_whole

COLUMNS = ("url", "label", "split", "sha256")
SPLITS = ("train", "val")


def read_list(path: Path) -> pd.DataFrame:
    """The list as strings, with all four columns; unknown values are empty. Other columns are dropped."""
    if not path.is_file():
        raise InputError(path, "no such image list", do="give datasets.NAME.source.list an existing CSV or TSV file")
    separator = "\t" if path.suffix == ".tsv" else ","
    try:
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):  # more fields than the header has
            table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, index_col=False, skip_blank_lines=False)
    except (ValueError, pd.errors.ParserWarning) as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(path, f"not a table ({reason})", "a CSV or TSV file with a header is wanted") from None
    if "url" not in table:
        found = f"columns {', '.join(table.columns)}"
        raise InputError(f"{path}:1", found, "one called url is wanted", caffe.nearest("url", table.columns))
    table.index += 2  # the line in the file: the header is line 1
    table = table[(table != "").any(axis=1)].copy()
    if table.empty:
        raise InputError(path, "no images", "there is one line for each image")
    for column in COLUMNS:
        table[column] = table[column].str.strip() if column in table else ""
    for column, bad in (("url", table.url == ""), ("split", ~table.split.isin(["", *SPLITS]))):
        if bad.any():
            line = bad.idxmax()
            found = f'{column} "{table[column][line]}"'
            raise InputError(f"{path}:{line}", found, "an address is wanted" if column == "url" else "it is train or val")
    return table[list(COLUMNS)].reset_index(drop=True)


def write_shards(source: Path, folder: Path, size: int) -> int:
    """Write `folder`/00000.csv and so on, of `size` images each, whole; return how many there are."""
    if size < 1:
        raise InputError("shard_size", str(size), "a shard has at least 1 image")
    table = read_list(source)
    with written_whole(folder) as part:
        part.mkdir()
        starts = range(0, len(table), size)
        for number, start in enumerate(starts):
            table[start : start + size].to_csv(part / f"{number:05d}.csv", index=False)
    return len(starts)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path)
    parser.add_argument("folder", type=Path, help="where the shards go; replaced if it exists")
    parser.add_argument("--size", type=int, default=1000, help="images in a shard (default: %(default)s)")
    arguments = parser.parse_args(argv)
    write_shards(arguments.list, arguments.folder, arguments.size)


if __name__ == "__main__":
    run(main)

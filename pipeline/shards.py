"""Cut a dataset's source into shards, the unit of a job: tables of url, label, split, group and sha256."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from pipeline import sources
from pipeline.command import run
from pipeline.errors import InputError
from pipeline.files import written_whole


def write_shards(table: pd.DataFrame, folder: Path, size: int) -> int:
    """Write `folder`/00000.csv and so on, of `size` images each, whole; return how many there are."""
    if size < 1:
        raise InputError("shard_size", str(size), "a shard has at least 1 image")
    with written_whole(folder) as part:
        part.mkdir()
        starts = range(0, len(table), size)
        for number, start in enumerate(starts):
            table[start : start + size].to_csv(part / f"{number:05d}.csv", index=False)
    return len(starts)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path, help="where the shards go; replaced if it exists")
    sources.add_arguments(parser)
    parser.add_argument("--size", type=int, default=1000, help="images in a shard (default: %(default)s)")
    arguments = parser.parse_args(argv)
    table = sources.read(sources.of_arguments(arguments))
    count = write_shards(table, arguments.target, arguments.size)
    print(f"{arguments.target}: {len(table)} images of {table.label.nunique()} classes in {count} shards")


if __name__ == "__main__":
    run(main)

"""Cut a dataset's source into shards, the unit of a job: tables of url, label, split, group and sha256."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from pipeline import folders, sources
from pipeline.command import run
from pipeline.errors import InputError
from pipeline.files import written_whole


def write_shards(tables: Iterable[pd.DataFrame], folder: Path, size: int) -> tuple[int, int, int]:
    """Write `folder`/00000.csv and so on, of `size` images each, whole; return how many images, classes and shards there are.

    tables  the rows, some at a time
    """
    if size < 1:
        raise InputError("shard_size", str(size), "a shard has at least 1 image")
    images, classes = 0, set()
    with written_whole(folder) as part:
        part.mkdir()
        for table in tables:
            classes.update(table.label)
            while len(table):
                number, begun = divmod(images, size)
                rows = table[: size - begun]
                rows.to_csv(part / f"{number:05d}.csv", mode="a", header=not begun, index=False)
                images, table = images + len(rows), table[len(rows) :]
    return images, len(classes), -(-images // size)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path, help="where the shards go; replaced if it exists")
    sources.add_arguments(parser)
    parser.add_argument("--size", type=int, default=1000, help="images in a shard (default: %(default)s)")
    arguments = parser.parse_args(argv)
    source = sources.of_arguments(arguments)
    images, classes, shards = write_shards(sources.chunks(source), arguments.target, arguments.size)
    print(f"{arguments.target}: {images} images of {classes} classes in {shards} shards")
    if source.folder and (others := folders.left_out(source.folder)):
        print(f"{source.folder}: not taken: {others}")


if __name__ == "__main__":
    run(main)

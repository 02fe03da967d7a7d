"""Divide a dataset's source into shards, one job each: tables of url, label, split, group and sha256."""

import itertools
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from pipeline.command import run, step_parser
from pipeline.files import write_table, written_whole
from pipeline.options.dataset import ShardOptions
from pipeline.options.flags import read_flags
from pipeline.sources import folders, tables


def write_shards(rows: Iterable[tables.Row], folder: Path, size: int) -> tuple[int, set[str]]:
    """Write `folder`/00000.csv and so on, of `size` images each, whole; return the number of images, and the classes."""
    images, classes, rows = 0, set[str](), iter(rows)
    with written_whole(folder) as part:
        part.mkdir()
        for number in itertools.count():
            shard = list(itertools.islice(rows, size))
            if not shard:
                break
            write_table(part / f"{number:05d}.csv", tables.Row._fields, shard)
            images += len(shard)
            classes.update(row.label for row in shard)
    return images, classes


def similar_names(classes: set[str]) -> list[str]:
    """Class names that differ only in spelling, such as `01 = 1 = 1.0` and `Cat = cat`."""

    def normalised(name: str) -> str | float:
        try:
            return float(name)
        except ValueError:
            return unicodedata.normalize("NFKC", name).casefold()

    groups = defaultdict(list)
    for name in sorted(classes):
        groups[normalised(name)].append(name)
    return [" = ".join(names) for names in groups.values() if len(names) > 1]


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, ShardOptions)
    parser.add_argument("target", type=Path, help="where the shards go; replaced if it exists")
    parser.add_argument("--names", type=Path, help="a text file for the shards' names, a line each")
    a = parser.parse_args(argv)
    options = read_flags(a, ShardOptions)
    images, classes = write_shards(tables.rows(options.source), a.target, options.shard_size)
    names = sorted(path.stem for path in a.target.glob("*.csv"))
    if a.names:
        with written_whole(a.names) as part:
            part.write_text("".join(f"{name}\n" for name in names))
    print(f"{a.target}: {images} images of {len(classes)} classes in {len(names)} shards")
    if same := similar_names(classes):
        print(f"{a.target}: classes whose names differ only in spelling: {', '.join(same[:5])}")
    if options.source.folder and (others := folders.describe_ignored(options.source.folder)):
        print(f"{options.source.folder}: ignored: {others}")


if __name__ == "__main__":
    run(main)

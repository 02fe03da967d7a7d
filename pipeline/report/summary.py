"""Print a summary of the results: a line for each experiment."""

from pathlib import Path

import pandas as pd

from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.formats.tables import read_table


def summary(results: Path) -> str:
    """The comparison table as text."""
    path = results / "report" / "comparison.csv"
    if not path.exists():
        raise InputError(path, "no such table", do="run snakemake first")
    table = read_table(path, ["images", "accuracy"])
    first, second = (max([width, *map(len, table[column])]) for column, width in (("experiment", 14), ("dataset", 16)))
    lines = [f"{'experiment':{first}} {'dataset':{second}} {'validation images':>17}  accuracy"]
    for row in table.itertuples():
        result = f"{row.accuracy:7.1%}" if pd.notna(row.accuracy) else row.note
        lines.append(f"{row.experiment:{first}} {row.dataset:{second}} {row.images:17d}  {result}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__)
    parser.add_argument("results", type=Path)
    a = parser.parse_args(argv)
    print(summary(a.results))


if __name__ == "__main__":
    run(main)

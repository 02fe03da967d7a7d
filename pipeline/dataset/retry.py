"""Let the next run try failed downloads of a dataset again: only these, and only their shards are made anew.

    roastery retry results/datasets/cats [--errors timeout connection]
    snakemake --cores all

What was downloaded is kept, by hard links where there are any. Images that arrive now join the same dataset; that changes its
lists, its databases and what is trained with them.
"""

import hashlib
from collections import Counter
from pathlib import Path

import pandas as pd

from pipeline.command import run, step_parser
from pipeline.dataset.download import COLUMNS, Journal
from pipeline.errors import InputError
from pipeline.files import link_or_copy, retry_mark


def retry(dataset: Path, errors: list[str]) -> Counter[str]:
    """Prepare shards with failed downloads, so that the next run resumes where all but these are done; count the errors.

    dataset  a dataset's folder of results
    errors   those to retry, as the tables name them; all if empty
    """
    tables = sorted(path for path in (dataset / "download").glob("*.csv") if path.name.count(".") == 1)
    if not tables:
        raise InputError(dataset, "no downloads", "a folder of results/datasets/", "correct the path, or run the workflow first")
    found = Counter[str]()
    for table in tables:
        try:
            rows = pd.read_csv(table, dtype=str, keep_default_na=False, usecols=COLUMNS)
        except ValueError as error:
            raise InputError(table, f"not a table of downloads ({error})", do="run the workflow, which makes it anew") from None
        failed = rows.error.isin(errors) if errors else rows.error != ""
        if failed.any():
            found.update(rows.error[failed])
            _prepare(dataset, table, rows[~failed])
            mark = retry_mark(dataset, table.stem)
            mark.parent.mkdir(parents=True, exist_ok=True)
            with mark.open("a") as file:
                file.write(f"{failed.sum()} failed\n")
    return found


def _prepare(dataset: Path, table: Path, rows: pd.DataFrame) -> None:
    """Write the state of a download in which everything but the failed URLs is done."""
    images = table.with_suffix("")
    listed = (dataset / "list" / table.name).read_bytes()
    seconds = pd.read_csv(table.with_suffix(".seconds.csv"), dtype={"path": str}, keep_default_na=False).seconds
    journal = Journal(images.with_name(f".{images.name}.resume"), hashlib.sha256(listed).hexdigest())
    journal.remove()
    with journal:
        for number, row in rows.iterrows():
            if not row.error:
                link_or_copy(images / row.path, journal.images / row.path)
            values = {
                "path": row.path,
                "status": int(row.status),
                "error": row.error,
                "bytes": int(row.bytes),
                "sha256": row.sha256,
            }
            journal.add({"number": int(str(number)), **values, "seconds": float(seconds[number])})


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__)
    parser.add_argument("dataset", type=Path, help="results/datasets/NAME")
    parser.add_argument("--errors", nargs="+", default=[], help="errors to retry, as the tables name them; by default all")
    a = parser.parse_args(argv)
    found = retry(a.dataset, a.errors)
    reasons = ", ".join(f"{count} {error}" for error, count in found.most_common())
    print(f"{a.dataset}: the next run retries {found.total()} downloads{f' ({reasons})' if reasons else ''}")


if __name__ == "__main__":
    run(main)

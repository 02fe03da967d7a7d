"""caffe parse_log: extract tables from a training log."""

import csv
import datetime
import re
from collections.abc import Iterator
from pathlib import Path

from caffe.commands import flags
from caffe.errors import FileError
from caffe.formats.files import read_bytes

_NUMBER = r"([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|inf))"
_ITERATION = re.compile(r"Iteration (\d+)")
_RATE = re.compile(f"lr = {_NUMBER}")
_OUTPUTS = {kind: re.compile(rf"{kind} net output #\d+: (\S+) = {_NUMBER}") for kind in ("Train", "Test")}
# In logs of 2013 and 2014, outputs have no names.
_FORMER = {"Train": re.compile(rf"Iteration \d+, (loss) = {_NUMBER}"), "Test": re.compile(rf"Test (score #\d+): {_NUMBER}")}
# I1120 20:07:21.867396 …, or, from a glog since 2020, with a year, I20261120 20:07:21.867396 …
_STAMP = re.compile(r"^[IWEF](\d{4})?(\d{4} \d\d:\d\d:\d\d\.\d{6})")

Row = dict[str, float]


def main(argv: list[str]) -> int:
    """`caffe parse_log LOG FOLDER` writes FOLDER/LOG.train and FOLDER/LOG.test."""
    parser = flags.parser(
        "parse_log",
        "Extract two tables from a training log, LOG.train and LOG.test.",
        "Columns: NumIters, Seconds since the start of training, LearningRate, and each output of the net; of a log of 2014, "
        "whose outputs have no names, the loss and `score #0`, `score #1`, …",
    )
    parser.add_argument("logfile_path", type=flags.existing, help="the training log")
    parser.add_argument("output_dir", type=flags.path, help="directory for the tables")
    parser.add_argument("-verbose", "--verbose", action="store_true", help="print the files written")
    flags.add(parser, "delimiter", "column separator (default: a comma)", default=",")
    arguments = parser.parse_args(argv)
    train, test = parse_log(arguments.logfile_path)
    if not train and not test:
        raise FileError(
            arguments.logfile_path,
            "no line with the loss, or an output, of an iteration",
            "a training log has lines like `Train net output #0: loss = 0.4`",
            "give the file that standard error of `caffe train` was written to",
        )
    for rows, kind in ((train, "train"), (test, "test")):
        path = Path(arguments.output_dir) / f"{Path(arguments.logfile_path).name}.{kind}"
        if rows:
            write_csv(path, rows, arguments.delimiter)
        if arguments.verbose:
            print(f"Wrote {path}" if rows else f"Not writing {path}; no lines to write")
    return 0


def parse_log(path: str) -> tuple[list[Row], list[Row]]:
    """Rows of training and of testing, each {NumIters, Seconds, LearningRate, output: value, …}.

    A row's learning rate is the last one logged before it; the first row, which has none, gets the second row's.
    """
    lines = read_bytes(path).decode(errors="replace").splitlines()
    named = any(pattern.search(line) for line in lines for pattern in _OUTPUTS.values())
    begin = next((index for index, line in enumerate(lines) if "Solving" in line and _STAMP.match(line)), 0)
    year = datetime.datetime.fromtimestamp(Path(path).stat().st_mtime).year
    iteration: float | None = None
    rate = float("nan")
    tables: dict[str, list[Row]] = {"Train": [], "Test": []}
    for line, seconds in zip(lines[begin:], _seconds(lines[begin:], year), strict=True):
        if found := _ITERATION.search(line):
            iteration = float(found[1])
        if iteration is None or seconds is None:
            continue
        if found := _RATE.search(line):
            rate = float(found[1])
        for kind, pattern in (_OUTPUTS if named else _FORMER).items():
            if found := pattern.search(line):
                rows = tables[kind]
                if not rows or rows[-1]["NumIters"] != iteration:
                    rows.append({"NumIters": iteration, "Seconds": seconds, "LearningRate": rate})
                rows[-1][found[1]] = float(found[2])
    for rows in tables.values():
        # The last row of an interrupted run can lack columns.
        if len(rows) > 1 and len(rows[-1]) < len(rows[0]):
            rows.pop()
        if len(rows) > 1:
            rows[0]["LearningRate"] = rows[1]["LearningRate"]
    return tables["Train"], tables["Test"]


def _seconds(lines: list[str], year: int) -> Iterator[float | None]:
    """Seconds of each line since the first time stamp, None without a valid stamp; logs without years may cross a new year."""
    first = last = None
    for line in lines:
        seconds = None
        if found := _STAMP.match(line):
            try:
                time = datetime.datetime.strptime(f"{found[1] or year}{found[2]}", "%Y%m%d %H:%M:%S.%f")
                if found[1] is None and last is not None and time.month < last.month:
                    year += 1
                    time = time.replace(year=year)
                first, last = first or time, time
                seconds = (time - first).total_seconds()
            except ValueError:
                pass  # not a date
        yield seconds


def write_csv(path: Path, rows: list[Row], delimiter: str) -> None:
    """Write rows as a CSV file with the columns of the first row."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)

"""Monitor a training: the table of metrics, TensorBoard's event files, the best weights so far, early stopping."""

from __future__ import annotations

import csv
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any, TextIO

import caffe

TAGS = {
    **{"loss": "loss/train", "test_loss": "loss/validation"},
    **{"accuracy": "accuracy/train", "test_accuracy": "accuracy/validation"},
}
"""TensorBoard's tags of the metrics; further ones have the names of the test net's outputs."""
Row = dict[str, Any]
"""A row of metrics: iteration (int) and the others (float), None where not measured."""


class Monitor:
    """Records a solver's metrics and best weights, and may stop it early; else it does not change the training.

    solver    before it trains
    table     file of the metrics, written row by row as CSV: the solver's, and since_best, the number of tests since the best
    clock     file of the seconds of training before each row, which no two trainings share
    board     a folder for TensorBoard's event files; those in it are removed
    best      file of the weights of the best test
    patience  early stopping: after so many tests without a better one; 0: never

    The best test is the one with the highest accuracy, or if there is no accuracy, the lowest loss; of equals, the first after
    some training. One with a NaN or infinite loss is never the best: Caffe's Accuracy layer takes NaN scores for correct.
    The best weights are written at once, not copied in memory: reading a blob fixes its memory layout, and training would be
    slower and end with other last digits.
    """

    def __init__(self, solver: caffe.Solver, table: TextIO, clock: TextIO, board: Path, best: Path, patience: int):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and the preflight command needs none

        shutil.rmtree(board, ignore_errors=True)
        self._solver, self._best_file, self._patience = solver, best, patience
        self.rows: list[Row] = []
        self._times: list[float] = []
        self.best: Row | None = None
        self.tests = 0
        self.stopped_early = False
        self.diverged: int | None = None
        self._since: int | None = None
        self._last: Row = {}
        self._seconds = 0.0
        columns = [name for name in solver.metrics if name != "seconds"]
        self._tables = [
            (file, csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n"))
            for file, names in ((table, [*columns, "since_best"]), (clock, ["iteration", "seconds"]))
        ]
        for file, writer in self._tables:
            writer.writeheader()
            file.flush()
        self._board = SummaryWriter(str(board), flush_secs=10)
        solver.on_test(self._on_test)
        solver.on_metrics(self._on_metrics)

    def close(self) -> None:
        """Close the event files."""
        self._board.close()

    def state(self) -> dict[str, Any]:
        """The state for `resume`, of JSON's types."""
        counts = {"best": self.best, "tests": self.tests, "since": self._since, "last": self._last}
        return {"rows": self.rows, "times": self._times, **counts}

    def resume(self, state: dict[str, Any]) -> None:
        """Restore the state of another monitor, whose best weights are in the file `best` already."""
        for row, measured_at in zip(state["rows"], state["times"], strict=True):
            self._write(row, measured_at)
        self.best, self.tests, self._since, self._last = (state[name] for name in ("best", "tests", "since", "last"))
        self._seconds = max((row["seconds"] for row in self.rows), default=0.0)

    def summary(self) -> dict[str, Any]:
        """Of the best test: iteration, by, test_accuracy, test_loss; and tests (their number), stopped_early, diverged.

        by        the metric; "last" without a test, "start" if training diverged before one
        diverged  the iteration with a NaN or infinite loss, None if there was none
        """
        untested = {"iteration": self._solver.iter, "by": "last"} if self.diverged is None else {"iteration": 0, "by": "start"}
        best = self.best or untested
        rest = {"tests": self.tests, "stopped_early": self.stopped_early, "diverged": self.diverged}
        return {key: best.get(key) for key in ("iteration", "by", "test_accuracy", "test_loss")} | rest

    def write_summary(self, path: Path) -> None:
        """Write the summary as JSON."""
        path.write_text(json.dumps(self.summary(), indent=1) + "\n")

    def _on_test(self, row: Row) -> None:
        self.tests += 1
        by, sign = ("test_loss", -1) if row["test_accuracy"] is None else ("test_accuracy", 1)
        value = row[by]
        better = value is not None and math.isfinite(value) and math.isfinite(row["test_loss"] or 0)
        if better and self.best is not None:
            ahead = sign * (value - self.best[by])
            better = ahead > 0 or (ahead == 0 and self.best["iteration"] == 0)
        self._last = row
        self._since = 0 if better else None if self._since is None else self._since + 1
        if better:
            self.best = {**row, "by": by}
            self._solver.net.save(self._best_file)
        elif self.best and self._since and 0 < self._patience <= self._since and self._solver.iter < self._solver.param.max_iter:
            best = f"{self.best[by]:g} of iteration {self.best['iteration']}"
            tests = "1 test" if self._since == 1 else f"{self._since} tests"
            caffe.log(f"Early stopping: {tests} without a better {by} than {best}")
            self.stopped_early = True
            self._solver.request("stop")

    def test_last(self) -> None:
        """Test the final weights, unless test_interval has done so: they may be the best."""
        if self.tests and self._last["iteration"] != self._solver.iter:
            self._solver.test_all()
            self._on_metrics(self._last)

    @property
    def is_diverged(self) -> bool:
        """Whether the loss of the last test is NaN or infinite."""
        return not math.isfinite(self._last.get("test_loss") or 0)

    def _on_metrics(self, row: Row) -> None:
        tested = row["test_loss"] is not None or row["test_accuracy"] is not None
        columns = {"seconds": row["seconds"] + self._seconds, "since_best": self._since if tested else None}
        self._write(row | columns, time.time())

    def _write(self, row: Row, measured_at: float) -> None:
        """Add a row to the tables and the event files; `measured_at`, in seconds since 1970, is TensorBoard's wall time."""
        self.rows.append(row)
        self._times.append(measured_at)
        for file, writer in self._tables:
            writer.writerow(row)
            file.flush()
        for name, value in row.items():
            if value is not None and name not in ("iteration", "seconds", "since_best"):
                self._board.add_scalar(TAGS.get(name, name.removeprefix("test_")), value, row["iteration"], measured_at)

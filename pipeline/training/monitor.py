"""What a training shows and keeps while it runs: the table of metrics, TensorBoard's event files, and the best weights so far."""

from __future__ import annotations

import csv
import json
import math
import shutil
import time
from pathlib import Path
from typing import TextIO

import caffe

TAGS = {
    **{"loss": "loss/train", "test_loss": "loss/validation"},
    **{"accuracy": "accuracy/train", "test_accuracy": "accuracy/validation"},
}
"""What TensorBoard calls the metrics; further ones are called as the test net's outputs."""


class Monitor:
    """Follows a solver from its making to the end of training, which it does not change, but for stopping it early.

    solver    is not training yet
    table     takes the metrics, a CSV row as soon as it is measured: those of the solver, and since_best, how many tests it is
              since the best one
    clock     takes how many seconds of training each row came after, which no two trainings share
    board     a folder for TensorBoard's event files; those that are there are removed
    best      the file that gets the weights of the best test
    patience  after so many tests without a better one, training is asked to stop; 0: never

    The best test is the one with the highest accuracy, or where there is no accuracy, the lowest loss; of equals, the first after
    some training. One whose loss is no number is never the best: Caffe counts scores that are no numbers as right.
    Its weights are written at once, and not copied in memory: an array that has been looked at keeps its order in memory from
    then on, and training would be slower and end on other last digits.
    """

    def __init__(self, solver: caffe.Solver, table: TextIO, clock: TextIO, board: Path, best: Path, patience: int):
        from torch.utils.tensorboard import SummaryWriter  # loaded where it is needed: the preflight has none

        shutil.rmtree(board, ignore_errors=True)
        self._solver, self._best_file, self._patience = solver, best, patience
        self.rows: list[dict] = []
        self._times: list[float] = []
        self.best: dict | None = None
        self.tests = 0
        self.stopped = False
        self.diverged: int | None = None
        self._since: int | None = None
        self._last: dict = {}
        self._seconds = 0.0
        columns = [name for name in solver.metrics if name != "seconds"]
        self._tables = [
            csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
            for file, names in ((table, [*columns, "since_best"]), (clock, ["iteration", "seconds"]))
        ]
        self._files = (table, clock)
        for one, file in zip(self._tables, self._files, strict=True):
            one.writeheader()
            file.flush()
        self._board = SummaryWriter(str(board), flush_secs=10)
        solver.on_test(self._tested)
        solver.on_metrics(self._measured)

    def close(self) -> None:
        """End the event files."""
        self._board.close()

    def state(self) -> dict:
        """All that `resume` wants; it can be JSON."""
        counts = {"best": self.best, "tests": self.tests, "since": self._since, "last": self._last}
        return {"rows": self.rows, "times": self._times, **counts}

    def resume(self, state: dict) -> None:
        """Go on where another monitor was; its best weights are in place."""
        for row, measured_at in zip(state["rows"], state["times"], strict=True):
            self._write(row, measured_at)
        self.best, self.tests, self._since, self._last = (state[name] for name in ("best", "tests", "since", "last"))
        self._seconds = max((row["seconds"] for row in self.rows), default=0.0)

    def summary(self) -> dict:
        """Of the best test: iteration, by, test_accuracy, test_loss; and tests, how many there were, stopped_early, and diverged.

        diverged  the iteration whose loss was no number, if one was
        """
        none = {"iteration": self._solver.iter, "by": "last"} if self.diverged is None else {"iteration": 0, "by": "start"}
        best = self.best or none
        rest = {"tests": self.tests, "stopped_early": self.stopped, "diverged": self.diverged}
        return {key: best.get(key) for key in ("iteration", "by", "test_accuracy", "test_loss")} | rest

    def write_summary(self, path: Path) -> None:
        """Write the summary as JSON."""
        path.write_text(json.dumps(self.summary(), indent=1) + "\n")

    def _tested(self, row: dict) -> None:
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
        elif self._patience and self._since is not None and self._since >= self._patience and not self._at_end():
            best = f"{self.best[by]:g} of iteration {self.best['iteration']}"
            caffe.log(f"Early stopping: {self._since} tests without a better {by} than {best}")
            self.stopped = True
            self._solver.request("stop")

    def _at_end(self) -> bool:
        return self._solver.iter >= self._solver.param.max_iter

    def test_last(self) -> None:
        """Test the last weights where the interval passed them by: they may be the best."""
        if self.tests and self._last["iteration"] != self._solver.iter:
            self._solver.test_all()
            self._measured(self._last)

    @property
    def is_lost(self) -> bool:
        """Whether the loss of the last test is no number."""
        return not math.isfinite(self._last.get("test_loss") or 0)

    def _measured(self, row: dict) -> None:
        tested = row["test_loss"] is not None or row["test_accuracy"] is not None
        more = {"seconds": row["seconds"] + self._seconds, "since_best": self._since if tested else None}
        self._write(row | more, time.time())

    def _write(self, row: dict, measured_at: float) -> None:
        """Add a row to the table and the event files; `measured_at`, in seconds since 1970, is TensorBoard's wall time."""
        self.rows.append(row)
        self._times.append(measured_at)
        for table, file in zip(self._tables, self._files, strict=True):
            table.writerow(row)
            file.flush()
        for name, value in row.items():
            if value is not None and name not in ("iteration", "seconds", "since_best"):
                self._board.add_scalar(TAGS.get(name, name.removeprefix("test_")), value, row["iteration"], measured_at)

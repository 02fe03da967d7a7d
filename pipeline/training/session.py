"""An interruptible training: write checkpoints when they are due; after a signal, write one and stop."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

import caffe
from pipeline.interruption import Interrupted, Interruption
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.monitor import Monitor
from pipeline.training.schedule import Schedule


@dataclass(frozen=True)
class Session:
    """One process's part of a training: between its start, or the checkpoint it resumes from, and its end."""

    checkpoints: Checkpoints
    interruption: Interruption

    def begin(self, solver: caffe.Solver, monitor: Monitor, best: Path, minutes: float) -> None:
        """Write checkpoints while the solver trains, and its snapshots beside them.

        best     the file that the monitor writes the best weights to
        minutes  between checkpoints

        After a signal the solver raises Interrupted at the end of its iteration.
        """
        resumed = self.checkpoints.resumed
        schedule = Schedule(resumed.iteration if resumed else 0, solver.param.max_iter, _size(solver), minutes)
        solver.snapshot_folder = self.checkpoints.snapshots

        def after_iteration() -> None:
            if not (self.interruption.received or schedule.is_due(solver.iter)):
                return
            start = time.monotonic()
            failure = self._save(solver, monitor, best)
            schedule.restart(time.monotonic() - start)
            if number := self.interruption.received:
                raise Interrupted(number, f"at iteration {solver.iter}; {failure}{self.checkpoints.where_to_resume}")
            if failure:
                with contextlib.suppress(OSError):
                    print(f"warning: iteration {solver.iter}: {failure}training continues", flush=True)

        solver.on_iteration(after_iteration)
        self.interruption.defer()

    def _save(self, solver: caffe.Solver, monitor: Monitor, best: Path) -> str:
        """Write a checkpoint; "", or the beginning of a message: a full disk need not end the training."""
        try:
            self.checkpoints.save(solver, monitor.state(), best)
        except OSError as error:
            return f"no checkpoint could be written ({error}); "
        return ""


def _size(solver: caffe.Solver) -> int:
    """Approximate bytes of a checkpoint: the weights, and as many for each history of the solver."""
    values = sum(blob.count for blobs in solver.net.params.values() for blob in blobs)
    return int(4 * (1 + solver.histories) * values)

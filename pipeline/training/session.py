"""A training that can be interrupted: writes checkpoints when they are due, and stops after the one that a signal asks for."""

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
    """What one process does of a training."""

    checkpoints: Checkpoints
    interruption: Interruption

    def begin(self, solver: caffe.Solver, monitor: Monitor, best: Path, minutes: float) -> None:
        """From now on write checkpoints while the solver trains, and snapshots beside them.

        best     the file that the monitor writes the best weights to
        minutes  between checkpoints

        After a signal the solver raises Interrupted at the end of its iteration.
        """
        resumed = self.checkpoints.resumed
        schedule = Schedule(resumed.iteration if resumed else 0, solver.param.max_iter, _size(solver), minutes)
        solver.snapshot_folder = self.checkpoints.snapshots

        def after_iteration() -> None:
            if not (self.interruption.noted or schedule.is_due(solver.iter)):
                return
            begun = time.monotonic()
            failure = self._save(solver, monitor, best)
            schedule.wrote(time.monotonic() - begun)
            if number := self.interruption.noted:
                raise Interrupted(number, f"at iteration {solver.iter}; {failure}{self.checkpoints.where_to_resume}")
            if failure:
                with contextlib.suppress(OSError):
                    print(f"warning: iteration {solver.iter}: {failure}training continues", flush=True)

        solver.on_iteration(after_iteration)
        self.interruption.defer()

    def _save(self, solver: caffe.Solver, monitor: Monitor, best: Path) -> str:
        """Write a checkpoint; a full disk need not end the training, so it is returned what prevented it, to begin a sentence."""
        try:
            self.checkpoints.save(solver, monitor.state(), best)
        except OSError as error:
            return f"no checkpoint could be written ({error}); "
        return ""


def _size(solver: caffe.Solver) -> int:
    """Bytes of a checkpoint, about: the weights, and as many for each history of the solver."""
    return 4 * (1 + solver.histories) * sum(blob.count for blobs in solver.net.params.values() for blob in blobs)

"""What a training that was cut off goes on from, so that it ends as an undisturbed one, to the bit.

A checkpoint is a folder named by its iteration: weights and solver state, what the monitor knows, the log, the best weights, and
links to the snapshots so far. It lies outside of what Snakemake removes where a job fails, and is gone once training has ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import Message

import caffe
from pipeline.files import written_whole

MINUTES = 10.0
"""How much training is lost at most where a process is killed; writing takes a second or so for weights of 240 MB."""
RUN, BEST, LOG, STATE, SNAPSHOTS = "run", "best.caffemodel", "train.log", "state.json", "snapshots"


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint: its folder, and what its monitor knew."""

    folder: Path
    monitor: dict

    @property
    def iteration(self) -> int:
        """Iterations done."""
        return int(self.folder.name)

    @property
    def solverstate(self) -> Path:
        """What the solver goes on from."""
        (path,) = self.folder.glob(f"{RUN}.solverstate*")
        return path

    def put_back(self, best: Path, snapshots: Path) -> None:
        """Let the best weights and the snapshots stand where they stood."""
        if (self.folder / BEST).exists():
            shutil.copyfile(self.folder / BEST, best)
        for path in (self.folder / SNAPSHOTS).iterdir():
            if not (snapshots / path.name).exists():
                _link(path, snapshots / path.name)


class Checkpoints:
    """The checkpoints of one training in a folder; those of another are removed.

    identity  what the training follows from, as `identity_of` gives it
    minutes   between checkpoints
    """

    def __init__(self, folder: Path, identity: str, minutes: float = MINUTES):
        self.folder, self._identity, self._seconds = folder, identity, 60 * minutes
        self._due = time.monotonic() + self._seconds

    @property
    def due(self) -> bool:
        """Whether it is time for another one."""
        return time.monotonic() >= self._due

    def last(self) -> Checkpoint | None:
        """The last one, if there is one of this training."""
        for folder in sorted(self.folder.glob("[0-9]*"), key=lambda path: int(path.name), reverse=True):
            with contextlib.suppress(OSError, ValueError):
                state = json.loads((folder / STATE).read_text())
                if state["identity"] == self._identity:
                    return Checkpoint(folder, state["monitor"])
        self.remove()
        return None

    def save(self, solver: caffe.Solver, monitor: dict, log: Path, best: Path) -> None:
        """Write one, whole, then remove those before."""
        prefix = Path(solver.param.snapshot_prefix)
        with written_whole(self.folder / str(solver.iter)) as part:
            (part / SNAPSHOTS).mkdir(parents=True)
            solver.snapshot(str(part / RUN))
            for path in prefix.parent.iterdir():
                if path.name.startswith(f"{prefix.name}_iter_"):
                    _link(path, part / SNAPSHOTS / path.name)
            if best.exists():
                _link(best, part / BEST)
            shutil.copyfile(log, part / LOG)
            (part / STATE).write_text(json.dumps({"identity": self._identity, "monitor": monitor}))
        for folder in self.folder.glob("[0-9]*"):
            if folder.name != str(solver.iter):
                shutil.rmtree(folder)
        self._due = time.monotonic() + self._seconds

    def remove(self) -> None:
        """Remove all."""
        shutil.rmtree(self.folder, ignore_errors=True)


def identity_of(solver_file: Path, *others: object) -> str:
    """A hash of all that a training follows from: its solver, the nets, each file and database that they name, and `others`.

    others  paths, whose contents count, and values
    """
    solver = caffe.read_solver(solver_file)
    nets = [path for path in (solver.net, solver.train_net, *solver.test_net) if path]
    parts: list[object] = [solver.SerializeToString(deterministic=True)]
    for net in map(caffe.read_net, nets):
        parts += [net.SerializeToString(deterministic=True), *(_content(Path(path)) for path in sorted(set(_paths(net))))]
    parts += [_content(other) if isinstance(other, Path) else other for other in others]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _paths(message: Message) -> Iterator[str]:
    """The files and databases that a net reads."""
    for field, value in message.ListFields():
        if field.name in ("source", "mean_file"):
            yield value
        for one in value if field.is_repeated else [value]:
            if isinstance(one, Message):
                yield from _paths(one)


def _content(path: Path) -> object:
    """What stands for the content of a file or a folder; of a database, its manifest. None where there is nothing."""
    if not path.exists():
        return None
    manifest = path.with_name(f"{path.name}.manifest.json")
    if manifest.is_file():
        return manifest.read_text()
    if path.is_dir():
        files = [(file.name, file.stat()) for file in sorted(path.iterdir()) if file.name != "lock.mdb"]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _link(path: Path, target: Path) -> None:
    """A second name for a file that is replaced, never changed; a copy where there are no links."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


@contextlib.contextmanager
def noted_signals() -> Iterator[list[signal.Signals]]:
    """Only note Ctrl-C, and SIGTERM, which a cluster sends when time is up, while the block runs; a second one counts as ever."""
    noted: list[signal.Signals] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}  # in the background

    def note(number: int, _frame: object) -> None:
        noted.append(signal.Signals(number))
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Resumable checkpoints: a resumed training is bit-identical to an uninterrupted one.

The folder lies outside of the rule's outputs, which Snakemake removes as soon as a job has failed, even while the training is
still writing a checkpoint. So a training writes nothing to the outputs before its end:

files/         all that it writes besides snapshots, published to its final place at the end
snapshots/     likewise
ITERATION/     weights and solver state after so many iterations, the log, the best weights, and the monitor's state
finished.json  training has ended, and the two folders above are its results
lock           locked by the process that trains
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from google.protobuf.message import Message

import caffe
from pipeline.closure import code_of
from pipeline.errors import InputError
from pipeline.files import link_or_copy, sync, sync_entry, written_whole
from pipeline.formats import digests
from pipeline.formats.records import manifest_path

RUN, BEST, LOG, STATE = "run", "best.caffemodel", "train.log", "state.json"
LAYOUT = "2"
"""Version of the folder's layout; checkpoints of another one are not resumed."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint: its folder, and the state of its monitor."""

    folder: Path
    monitor: dict[str, Any]

    @property
    def iteration(self) -> int:
        """The number of iterations done."""
        return int(self.folder.name)

    @property
    def solverstate(self) -> Path:
        """The .solverstate file, which names the weights beside it."""
        (path,) = self.folder.glob(f"{RUN}.solverstate*")
        return path

    def restore_best(self, best: Path) -> None:
        """Copy the best weights so far, if there are any, to the file `best`."""
        if (self.folder / BEST).exists():
            link_or_copy(self.folder / BEST, best)


class Checkpoints:
    """The checkpoints of one training in a folder; those of another are removed.

    identity  hash of all that the result of the training depends on, by `identity_of`
    resumed   the checkpoint that the training resumes from, once `open` has found one
    """

    def __init__(self, folder: Path, identity: str):
        self.folder, self._identity = folder, identity
        self.files, self.snapshots = folder / "files", folder / "snapshots"
        self.resumed: Checkpoint | None = None
        self._finished = folder / "finished.json"
        self._last: int | None = None
        self._code = code_of("pipeline.training.train")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock while the block runs; wait while another process has it. No-op on file systems without locks."""
        waiting = False
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "lock").open("w") as file:
                while not _lock(file):
                    if not waiting:
                        print(f"waiting for another process that trains with {self.folder}", flush=True)
                    waiting = True
                    time.sleep(1)
                if _is_at(file, self.folder / "lock"):  # else the other process has removed the folder at its end
                    yield
                    return

    # ---- an earlier process

    def finished(self) -> bool:
        """Whether this training has ended already, with the present code of the step, and its results are undamaged."""
        state = self._read(self._finished)
        own = (state.get("identity"), state.get("code")) == (self._identity, self._code)
        return own and bool(state["results"] == self._digests())

    def open(self) -> None:
        """Find the last checkpoint, as `resumed`, and restore `files` and `snapshots` to their state at that time."""
        self._finished.unlink(missing_ok=True)
        for folder in sorted(self._iterations(), key=lambda path: int(path.name), reverse=True):
            state = self._read(folder / STATE)
            if state.get("identity") == self._identity:
                _check(folder, state.get("sha256", {}))
                self.resumed, self._last = Checkpoint(folder, state["monitor"]), int(folder.name)
                break
        else:
            self.remove_iterations()
        shutil.rmtree(self.files, ignore_errors=True)
        self.files.mkdir()
        self.snapshots.mkdir(exist_ok=True)
        for path in self.snapshots.iterdir():
            iteration = re.search(r"_iter_(\d+)\.(caffemodel|solverstate)(\.h5)?$", path.name)
            if not (iteration and int(iteration[1]) <= (self._last or 0)):
                path.unlink()
        if self.resumed:
            shutil.copyfile(self.resumed.folder / LOG, self.files / LOG)

    # ---- this process

    def save(self, solver: caffe.Solver, monitor: dict[str, Any], best: Path) -> None:
        """Write a checkpoint, whole or not at all, then remove the earlier ones. If it raises OSError, the last one stays."""
        sync(self.snapshots)
        with written_whole(self.folder / str(solver.iter)) as part:
            part.mkdir()
            solver.snapshot(str(part / RUN))
            if best.exists():
                link_or_copy(best, part / BEST)
            shutil.copyfile(self.files / LOG, part / LOG)
            sums = {path.name: digests.digest(path) for path in part.iterdir()}
            (part / STATE).write_text(json.dumps({"identity": self._identity, "monitor": monitor, "sha256": sums}))
            sync(part)
        sync_entry(self.folder)
        self._last = solver.iter
        for folder in self._iterations():
            if int(folder.name) != solver.iter:
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def where_to_resume(self) -> str:
        """How to resume after an interruption, for messages."""
        return f"run again to resume at iteration {self._last}" if self._last else "run again to start over"

    def finish(self, target: Path) -> None:
        """Record that training has ended; `target` is the final folder of the snapshots."""
        for folder in (self.files, self.snapshots):
            sync(folder)
        with written_whole(self._finished) as part:
            origin = {"identity": self._identity, "code": self._code}
            part.write_text(json.dumps(origin | {"snapshots": str(target), "results": self._digests()}))
            sync(part)
        sync_entry(self.folder)
        self.remove_iterations()

    def publish(self, folder: Path) -> None:
        """Link or copy the results of a finished training to `folder`, and its snapshots to their final folder, all whole."""
        for source, target in ((self.files, folder), (self.snapshots, Path(self._read(self._finished)["snapshots"]))):
            target.mkdir(parents=True, exist_ok=True)
            for path in source.iterdir():
                with written_whole(target / path.name) as part:
                    link_or_copy(path, part)

    def remove_iterations(self) -> None:
        """Remove all checkpoints."""
        for folder in self._iterations():
            shutil.rmtree(folder)

    def remove(self) -> None:
        """Remove the whole folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _digests(self) -> dict[str, object]:
        """{path: SHA-256} of the results: those published are hard links to them, and may have been edited since."""
        paths = [path for folder in (self.files, self.snapshots) for path in sorted(folder.rglob("*")) if path.is_file()]
        return {path.relative_to(self.folder).as_posix(): _content_digest(path) for path in paths}

    def _iterations(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.name.isdecimal()]

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        """The mapping in a JSON file; empty if the file is missing or damaged."""
        try:
            return dict(json.loads(path.read_text()))
        except (OSError, ValueError):
            return {}


def _check(folder: Path, recorded: dict[str, str]) -> None:
    """Raise InputError if a file of a checkpoint is damaged."""
    for name, expected in recorded.items():
        if not (folder / name).is_file() or digests.digest(folder / name) != expected:
            do = f"restore it, or remove {folder} to start over"
            raise InputError(folder / name, "not what the checkpoint had written: it is damaged or was edited", do=do)


def identity_of(solver_file: Path, *others: object) -> str:
    """Hash of all that the result of a training depends on: solver, nets, the files and databases that they read, and `others`.

    others  paths, of which the contents are hashed, and values
    """
    solver = caffe.read_solver(solver_file)
    nets = [path for path in (solver.net, solver.train_net, *solver.test_net) if path]
    parts: list[object] = [LAYOUT, solver.SerializeToString(deterministic=True)]
    for net in map(caffe.read_net, nets):
        parts += [net.SerializeToString(deterministic=True), *(_content_digest(Path(path)) for path in sorted(set(_paths(net))))]
    parts += [_content_digest(other) if isinstance(other, Path) else other for other in others]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _paths(message: Message) -> Iterator[str]:
    """The files and databases that a net reads."""
    for field, value in message.ListFields():
        if field.name in ("source", "mean_file"):
            yield value
        for item in value if field.is_repeated else [value]:
            if isinstance(item, Message):
                yield from _paths(item)


def _content_digest(path: Path) -> object:
    """SHA-256 of a file; a folder's names, sizes and times; a database's manifest; None if there is no such path."""
    if not path.exists():
        return None
    manifest = manifest_path(path)
    if manifest.is_file():
        return manifest.read_bytes()
    if path.is_dir():
        files = [(file.name, file.stat()) for file in sorted(path.iterdir()) if file.name != "lock.mdb"]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
    return digests.digest(path)


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _lock(file: IO[str]) -> bool:
    """Try to lock an open file; False if another process has the lock, True also on file systems without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True

"""Train a net as its solver says, from scratch or from weights, and write to a folder what came of it.

final.caffemodel     the weights at the end
best.caffemodel      those of the best test; best.json says which that was, and where training diverged
metrics.csv          a row for each display and test; until the end it is .metrics.csv.part
seconds.csv          how many seconds of training each of these rows came after
machine.json         what trained: processor, vector code, threads, device
tensorboard/         the same as TensorBoard's event files, while it trains
layers.csv           what each layer started from, and whether it is learned
preflight.csv        what may be wrong with nets, weights and databases; an error ends the step before it trains
train.log            the log in glog's form

With --checkpoint, an interrupted training resumes when it is run again, and ends with the same bytes. All files are then below
that folder (files/, snapshots/) until training has ended.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

import caffe
from caffe.proto import caffe_pb2
from pipeline import devices
from pipeline.command import run, step_parser
from pipeline.files import written_whole
from pipeline.interruption import noted_signals
from pipeline.nets import strategies
from pipeline.options.flags import read_flags
from pipeline.options.training import TrainOptions
from pipeline.training import initial_weights, preflight
from pipeline.training.checkpoint import LOG, Checkpoints, identity_of
from pipeline.training.divergence import diagnosed
from pipeline.training.monitor import Monitor
from pipeline.training.schedule import MINUTES
from pipeline.training.session import Session


@dataclass(frozen=True)
class Ends:
    """How a training may end besides at max_iter.

    early_stopping  after how many tests without a better one; 0: it does not
    diverging       well, where the loss is no number: with the weights of the best test, or else of the beginning
    failed          a folder that gets the log and the metrics so far where it fails; None: they are lost
    checkpoint      a folder for all that an interrupted training resumes from; None: it starts again
    minutes         between checkpoints; 0: one after each iteration
    keep            do not remove `checkpoint` at the end: the caller may lose the results and run again to get them from there
    """

    early_stopping: int = 0
    diverging: bool = False
    failed: Path | None = None
    checkpoint: Path | None = None
    minutes: float = MINUTES
    keep: bool = False


def train(solver_file: Path, folder: Path, given: initial_weights.Given, ends: Ends = Ends()) -> tuple[pd.DataFrame, dict]:
    """Train, and write the files to `folder`; return the metrics, and what is said of the best test.

    given  the weights to start from

    Columns of the metrics: those of the solver's `on_metrics` but for seconds, empty where not measured, and since_best. With a
    checkpoint folder, nothing is written to `folder` before training has ended; Interrupted if the process was asked to stop
    before.
    """
    if not ends.checkpoint:
        return _train(solver_file, folder, given, ends)
    with noted_signals() as interruption:
        checkpoints = _checkpoints(solver_file, given, ends)
        with checkpoints.locked():
            if checkpoints.finished():
                print(f"training has ended before; its results are in {ends.checkpoint}; remove it to train again", flush=True)
            else:
                checkpoints.open()
                _train(solver_file, checkpoints.files, given, ends, Session(checkpoints, interruption))
            interruption.defer()
            checkpoints.publish(folder)
            if not ends.keep:
                checkpoints.remove()
    return pd.read_csv(folder / "metrics.csv"), json.loads((folder / "best.json").read_text())


def _train(
    solver_file: Path, folder: Path, given: initial_weights.Given, ends: Ends, session: Session | None = None
) -> tuple[pd.DataFrame, dict]:
    """Train as `train` does; in a session `folder` and the snapshots are not in their final place."""
    wants_gpu = caffe.read_solver(solver_file).solver_mode == caffe_pb2.SolverParameter.GPU
    log = folder / LOG
    last = session.checkpoints.resumed if session else None
    log.parent.mkdir(parents=True, exist_ok=True)
    if last:
        print(f"resumes at iteration {last.iteration}, from {last.folder}", flush=True)
    else:
        log.unlink(missing_ok=True)
    if ends.failed:
        shutil.rmtree(ends.failed, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(caffe.log_to_file(log, stderr=False))
        stack.enter_context(devices.on_gpu(wants_gpu))
        solver = caffe.get_solver(str(solver_file))
        stack.callback(solver.close)
        taken = initial_weights.copied(solver.net, given)
        found = preflight.findings(solver, taken, given.same_classes)
        preflight.refuse(found)
        preflight.tell(found)
        final, best, metrics, seconds, summary, machine, layers, warnings = (
            stack.enter_context(written_whole(folder / name))
            for name in (
                *("final.caffemodel", "best.caffemodel", "metrics.csv", "seconds.csv"),
                *("best.json", "machine.json", "layers.csv", "preflight.csv"),
            )
        )
        machine.write_text(json.dumps(devices.machine(wants_gpu), indent=1) + "\n")
        preflight.write(found, warnings)
        initial_weights.layers_of(solver.net, taken).to_csv(layers, index=False)
        prefix = Path(solver.param.snapshot_prefix)
        if not session:
            prefix.parent.mkdir(parents=True, exist_ok=True)
        table, clock = (stack.enter_context(path.open("w", newline="")) for path in (metrics, seconds))
        monitor = Monitor(solver, table, clock, folder / "tensorboard", best, ends.early_stopping)
        stack.callback(monitor.close)
        _show(stack, solver, prefix.name, last.iteration if last else 0)
        if ends.failed:
            stack.enter_context(_kept({LOG: log, "metrics.csv": metrics}, ends.failed))
        if ends.diverging:
            solver.net.save(final)
        if last:
            monitor.resume(last.monitor)
            last.restore_best(best)
        if session:
            session.begin(solver, monitor, best, ends.minutes)
        try:
            solver.solve(str(last.solverstate) if last else None)
            monitor.test_last()
            if ends.diverging and monitor.is_lost:  # by the last updates, whose loss no iteration has seen
                raise caffe.DivergenceError(solver_file, "the loss of the last test is no number")
        except caffe.DivergenceError as error:
            explained = diagnosed(error, solver, monitor.rows)
            if not ends.diverging:
                raise explained from None
            print(f"warning: {explained}", flush=True)
            monitor.diverged = solver.iter
            _recover(solver.net, final, best if monitor.best else final)
        else:
            solver.net.save(final)
        if monitor.best is None:
            shutil.copyfile(final, best)
        monitor.write_summary(summary)
    if session:
        session.checkpoints.finish(prefix.parent)
    return pd.DataFrame(monitor.rows).drop(columns="seconds", errors="ignore"), monitor.summary()


def _checkpoints(solver_file: Path, given: initial_weights.Given, ends: Ends) -> Checkpoints:
    """The checkpoints of this training and no other."""
    files = [*given.files, *([given.fitted] if given.fitted else [])]
    identity = identity_of(solver_file, *files, tuple(given.skip), ends.early_stopping, ends.diverging)
    return Checkpoints(ends.checkpoint, identity)


@contextlib.contextmanager
def _kept(files: dict[str, Path], folder: Path) -> Iterator[None]:
    """Copy files, {name: path}, to a folder where the block raises, and say so in its error."""
    try:
        yield
    except Exception as error:
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in files.items():
            shutil.copyfile(path, folder / name)
        said = f"{' and '.join(files)} so far are in {folder}"
        if not isinstance(error, caffe.Error):
            print(f"warning: {said}", flush=True)
            raise
        raise type(error)(error.where, error.found, error.expected, f"{error.do}; {said}" if error.do else said) from None


def _recover(net: caffe.Net, final: Path, good: Path) -> None:
    """Bring a net that has left the numbers back to good weights, and write them.

    A BatchNorm that has seen no batch divides by nothing; it gets the statistics of one.
    """
    net.copy_from(good)
    if not all(layer.blobs[2].data.any() for layer in net.layers if layer.stores_sums(layer.param)):
        net.forward()
    net.save(final)


def _show(stack: contextlib.ExitStack, solver: caffe.Solver, name: str, begun: int) -> None:
    """A bar on a terminal, with the last loss and accuracy."""
    most = solver.param.max_iter
    bar = stack.enter_context(tqdm(total=most, initial=begun, unit=" iterations", desc=f"train {name}", disable=None))

    def show(row: dict) -> None:
        measured = {name: row[name] for name in ("loss", "test_accuracy") if row[name] is not None}
        bar.set_postfix({name: f"{value:.4g}" for name, value in measured.items()}, refresh=False)

    solver.on_metrics(show)
    solver.add_callback(lambda: None, bar.update)


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, TrainOptions)
    parser.add_argument("solver", type=Path)
    parser.add_argument("folder", type=Path, help="where the files go; those of an earlier training are replaced")
    initial_weights.add_files(parser)
    parser.add_argument(
        "--chosen", nargs="?", type=Path, help="strategy.json of training.linear; with scratch, no weights are copied"
    )
    parser.add_argument("--failed", type=Path, metavar="FOLDER", help="where log and metrics go if training fails")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FOLDER", help="resumable checkpoints, and all files until training has ended"
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="between checkpoints (default: %(default)g)")
    parser.add_argument(
        "--keep-results", action="store_true", help="keep the results in --checkpoint, to give them again if they are lost"
    )
    a = parser.parse_args(argv)
    scratch = a.chosen and strategies.chosen(a.chosen)[0] == "scratch"
    options = read_flags(a, TrainOptions)
    ends = Ends(options.early_stopping, options.tolerate_divergence, a.failed, a.checkpoint, a.minutes, a.keep_results)
    _, best = train(a.solver, a.folder, initial_weights.Given() if scratch else initial_weights.given_by(a, options), ends)
    final = a.folder / "final.caffemodel"
    if best["test_accuracy"] is None:
        print(final)
    else:
        print(f"{final}: best test accuracy {best['test_accuracy']:.4f}, at iteration {best['iteration']}")


if __name__ == "__main__":
    run(main)

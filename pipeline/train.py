"""Train a net as its solver says, from scratch or from weights, and write to a folder what came of it.

final.caffemodel     the weights at the end
best.caffemodel      those of the best test; best.json says which that was, and where training diverged
metrics.csv          a row for each display and test; until the end it is .metrics.csv.part
tensorboard/         the same as TensorBoard's event files, while it trains
layers.csv           what each layer started from, and whether it is learned
preflight.csv        what may be wrong with nets, weights and databases; an error ends the step before it trains
train.log            the log in glog's form

With --checkpoint, a training that was cut off goes on where it was when it is run again, and ends with the same weights.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

import caffe
from caffe.proto import caffe_pb2
from pipeline import devices, preflight, strategies, weights
from pipeline.checkpoint import LOG, MINUTES, Checkpoints, identity_of, noted_signals
from pipeline.command import run
from pipeline.diagnosis import diagnosed
from pipeline.files import written_whole
from pipeline.monitor import Monitor


@dataclass(frozen=True)
class Ends:
    """How a training may end besides at max_iter.

    early_stopping  after how many tests without a better one; 0: it does not
    diverging       well, where the loss is no number: with the weights of the best test, or else of the beginning
    failed          a folder that gets the log and the metrics so far where it fails; None: they are lost
    checkpoint      a folder for what a run that is cut off goes on from; None: it starts again
    minutes         between checkpoints
    """

    early_stopping: int = 0
    diverging: bool = False
    failed: Path | None = None
    checkpoint: Path | None = None
    minutes: float = MINUTES


def train(solver_file: Path, folder: Path, given: weights.Given, ends: Ends = Ends()) -> tuple[pd.DataFrame, dict]:
    """Train, and write the files to `folder`; return the metrics, and what is said of the best test.

    given  the weights to start from

    Columns of the metrics: those of the solver's `on_metrics`, empty where not measured, and since_best. KeyboardInterrupt where
    the process was asked to end, and there is a checkpoint to go on from.
    """
    wants_gpu = caffe.read_solver(solver_file).solver_mode == caffe_pb2.SolverParameter.GPU
    log = folder / "train.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    if ends.failed:
        shutil.rmtree(ends.failed, ignore_errors=True)
    checkpoints = _checkpoints(solver_file, given, ends) if ends.checkpoint else None
    last = checkpoints.last() if checkpoints else None
    if last:
        print(f"goes on at iteration {last.iteration}, from {last.folder}", flush=True)
        shutil.copyfile(last.folder / LOG, log)
    with contextlib.ExitStack() as stack:
        stack.enter_context(caffe.log_to_file(log, stderr=False))
        stack.enter_context(devices.on_gpu(wants_gpu))
        solver = caffe.get_solver(str(solver_file))
        stack.callback(solver.close)
        taken = weights.copied(solver.net, given)
        found = preflight.findings(solver, taken, given.same_classes)
        preflight.refuse(found)
        preflight.tell(found)
        final, best, metrics, summary, layers, warnings = (
            stack.enter_context(written_whole(folder / name))
            for name in ("final.caffemodel", "best.caffemodel", "metrics.csv", "best.json", "layers.csv", "preflight.csv")
        )
        preflight.write(found, warnings)
        weights.layers_of(solver.net, taken).to_csv(layers, index=False)
        Path(solver.param.snapshot_prefix).parent.mkdir(parents=True, exist_ok=True)
        table = stack.enter_context(metrics.open("w", newline=""))
        monitor = Monitor(solver, table, folder / "tensorboard", best, ends.early_stopping)
        stack.callback(monitor.close)
        _show(stack, solver, folder.parent.name, last.iteration if last else 0)
        if ends.failed:
            stack.enter_context(_kept({"train.log": log, "metrics.csv": metrics}, ends.failed))
        if ends.diverging:
            solver.net.save(final)
        if last:
            monitor.resume(last.monitor)
            last.put_back(best, Path(solver.param.snapshot_prefix).parent)
        if checkpoints:
            stack.enter_context(_saved(checkpoints, solver, monitor, log, best))
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
    if checkpoints:
        checkpoints.remove()
    return pd.DataFrame(monitor.rows), monitor.summary()


def _checkpoints(solver_file: Path, given: weights.Given, ends: Ends) -> Checkpoints:
    """The checkpoints of this training and no other."""
    files = [*given.files, *([given.fitted] if given.fitted else [])]
    identity = identity_of(solver_file, *files, tuple(given.skip), ends.early_stopping, ends.diverging)
    return Checkpoints(ends.checkpoint, identity, ends.minutes)


@contextlib.contextmanager
def _saved(checkpoints: Checkpoints, solver: caffe.Solver, monitor: Monitor, log: Path, best: Path) -> Iterator[None]:
    """Write checkpoints while the block trains; KeyboardInterrupt after the one that is written where the process is to end."""
    with noted_signals() as noted:

        def save() -> None:
            if noted or checkpoints.due:
                checkpoints.save(solver, monitor.state(), log, best)
            if noted:
                with contextlib.suppress(OSError):  # Ctrl-C ends what the output goes to, too
                    print(f"ended by {noted[0].name} at iteration {solver.iter}; run again, it goes on from there", flush=True)
                raise KeyboardInterrupt

        solver.on_iteration(save)
        yield


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
    if not all(net.params[name][2].data.any() for name, layer in net.layer_dict.items() if layer.type == "BatchNorm"):
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("solver", type=Path)
    parser.add_argument("folder", type=Path, help="where the files go; those of an earlier training are replaced")
    weights.add_flags(parser)
    parser.add_argument("--chosen", type=Path, help="strategy.json of pipeline.linear; with scratch, the weights are not taken")
    parser.add_argument("--early-stopping", type=int, default=0, metavar="N", help="stop after N tests without a better one")
    parser.add_argument(
        "--diverging", action="store_true", help="end well where the loss is no number any more; best.json says it"
    )
    parser.add_argument("--failed", type=Path, metavar="FOLDER", help="where log and metrics go if training fails")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FOLDER", help="where a training that is cut off leaves what it goes on from"
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="between checkpoints (default: %(default)g)")
    a = parser.parse_args(argv)
    scratch = a.chosen and strategies.chosen(a.chosen)[0] == "scratch"
    ends = Ends(a.early_stopping, a.diverging, a.failed, a.checkpoint, a.minutes)
    _, best = train(a.solver, a.folder, weights.Given() if scratch else weights.given_by(a), ends)
    final = a.folder / "final.caffemodel"
    if best["test_accuracy"] is None:
        print(final)
    else:
        print(f"{final}: best test accuracy {best['test_accuracy']:.4f}, at iteration {best['iteration']}")


if __name__ == "__main__":
    run(main)

"""Train a net as its solver says, from scratch or from weights, and write the results to a folder.

final.caffemodel     the weights at the end
best.caffemodel      the weights of the best test; best.json: of which test, and whether and when training diverged
metrics.csv          a row for each display and test; .metrics.csv.part while it trains
seconds.csv          seconds of training before each of these rows
machine.json         what trained: processor, vector code, threads, device
tensorboard/         the metrics as TensorBoard's event files, while it trains
layers.csv           the initial weights of each layer, and whether it is trained or frozen
preflight.csv        warnings about nets, weights and databases; an error ends the step before it trains
train.log            the log in glog's form

With --checkpoint, an interrupted training resumes when it is run again, and ends with the same bytes. All files are then below
that folder (files/, snapshots/) until training has ended.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

import caffe
from caffe.proto import caffe_pb2
from pipeline import devices
from pipeline.command import run, step_parser
from pipeline.files import write_table, written_whole
from pipeline.formats import digests
from pipeline.formats.tables import read_json, read_table
from pipeline.interruption import catch_signals
from pipeline.nets.strategy_file import read_strategy
from pipeline.options.base import Device
from pipeline.options.flags import read_flags
from pipeline.options.training import TrainOptions
from pipeline.training import initial_weights, preflight
from pipeline.training.checkpoint import LOG, Checkpoint, Checkpoints, identity_of
from pipeline.training.divergence import diagnose
from pipeline.training.initial_weights import WeightFiles
from pipeline.training.monitor import Monitor
from pipeline.training.schedule import MINUTES
from pipeline.training.session import Session

if TYPE_CHECKING:
    import pandas as pd

RESULTS = FINAL, BEST, SUMS, METRICS, SECONDS, SUMMARY, MACHINE, LAYERS, PREFLIGHT = (
    *("final.caffemodel", "best.caffemodel", digests.SUMS, "metrics.csv", "seconds.csv"),
    *("best.json", "machine.json", "layers.csv", "preflight.csv"),
)


@dataclass(frozen=True)
class Settings:
    """How a training is run, besides what its solver says.

    options     of the step
    failed      a folder that gets the log and the metrics so far if training fails; None: they are lost
    checkpoint  a folder for resumable checkpoints; None: an interrupted training starts over
    minutes     between checkpoints; 0: one after each iteration
    keep        do not remove `checkpoint` at the end: the caller may lose the results and run again to get them from there
    """

    options: TrainOptions = field(default_factory=TrainOptions)
    failed: Path | None = None
    checkpoint: Path | None = None
    minutes: float = MINUTES
    keep: bool = False


def train(
    solver_file: Path, folder: Path, weights: WeightFiles, settings: Settings = Settings()
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Train, and write the files to `folder`; return the metrics and best.json.

    Columns of the metrics: those of the solver's `on_metrics` except seconds, empty where not measured, and since_best. Raises
    what `run_training` does.
    """
    best = run_training(solver_file, folder, weights, settings)
    return read_table(folder / METRICS), best


def run_training(solver_file: Path, folder: Path, weights: WeightFiles, settings: Settings = Settings()) -> dict[str, Any]:
    """Train, and write the files to `folder`; return best.json.

    With a checkpoint folder, nothing is written to `folder` before training has ended. Raises Interrupted if the process is asked
    to stop before then, DivergenceError on a NaN or infinite loss.
    """
    kept = settings.checkpoint
    if not kept:
        _train(solver_file, folder, weights, settings, folder)
        return read_json(folder / SUMMARY)
    with catch_signals() as interruption:
        files = [*weights.files, *([weights.fitted] if weights.fitted else [])]
        options = settings.options  # same_classes changes no result
        others = (tuple(options.skip_layers), options.early_stopping, options.tolerate_divergence)
        checkpoints = Checkpoints(kept, identity_of(solver_file, *files, *others))
        with checkpoints.locked():
            if checkpoints.finished():
                print(f"training has ended before; its results are in {kept}; remove it to train again", flush=True)
            else:
                checkpoints.open()
                _train(solver_file, checkpoints.files, weights, settings, folder, Session(checkpoints, interruption))
            interruption.defer()
            checkpoints.publish(folder)
            if not settings.keep:
                checkpoints.remove()
    return read_json(folder / SUMMARY)


def _train(
    solver_file: Path, folder: Path, weights: WeightFiles, settings: Settings, target: Path, session: Session | None = None
) -> None:
    """Train as `train` does, for the folder `target`; in a session, all is written elsewhere first, the files to `folder`."""
    solver_param = caffe.read_solver(solver_file)
    device = Device(gpu=solver_param.solver_mode == caffe_pb2.SolverParameter.GPU, numerics=solver_param.numerics or "fp32")
    options, failed = settings.options, settings.failed
    checkpoint = session.checkpoints.resumed if session else None
    _prepare(folder, failed, checkpoint)
    with contextlib.ExitStack() as stack:
        stack.enter_context(caffe.log_to_file(folder / LOG, stderr=False))
        stack.enter_context(devices.computing(device))
        solver = caffe.get_solver(str(solver_file))
        stack.callback(solver.close)
        copied = initial_weights.copy_weights(solver.net, weights, options.skip_layers)
        findings = preflight.findings(solver, copied, options.same_classes)
        preflight.refuse(findings)
        preflight.tell(findings)
        parts = {name: stack.enter_context(written_whole(folder / name)) for name in RESULTS}
        parts[MACHINE].write_text(json.dumps(devices.machine(device.gpu), indent=1) + "\n")
        preflight.write(findings, parts[PREFLIGHT])
        write_table(parts[LAYERS], initial_weights.COLUMNS, initial_weights.layer_table(solver.net, copied))
        prefix = Path(solver.param.snapshot_prefix)
        if not session:
            prefix.parent.mkdir(parents=True, exist_ok=True)
        table, clock = (stack.enter_context(parts[name].open("w", newline="")) for name in (METRICS, SECONDS))
        monitor = Monitor(solver, table, clock, folder / "tensorboard", parts[BEST], options.early_stopping)
        stack.callback(monitor.close)
        _show_progress(stack, solver, prefix.name, checkpoint.iteration if checkpoint else 0)
        if failed:
            stack.enter_context(_keep_on_failure({LOG: folder / LOG, METRICS: parts[METRICS]}, failed))
        if options.tolerate_divergence:
            solver.net.save(parts[FINAL])
        if checkpoint:
            monitor.resume(checkpoint.monitor)
            checkpoint.restore_best(parts[BEST])
        if session:
            session.begin(solver, monitor, parts[BEST], settings.minutes)
        _solve(solver, monitor, parts, checkpoint, options.tolerate_divergence)
        monitor.write_summary(parts[SUMMARY])
        table.flush()
        files = {name: parts[name] for name in (FINAL, BEST, METRICS, SUMMARY, LAYERS, PREFLIGHT)}
        snapshots = session.checkpoints.snapshots if session else prefix.parent
        within = Path(os.path.relpath(prefix.parent, target))
        if ".." not in within.parts:
            files |= {(within / path.name).as_posix(): path for path in snapshots.glob(f"{glob.escape(prefix.name)}_iter_*")}
        digests.write_sums(parts[SUMS], files)
    if session:
        session.checkpoints.finish(prefix.parent)


def _prepare(folder: Path, failed: Path | None, checkpoint: Checkpoint | None) -> None:
    """Make the folder; remove the log, unless the training resumes, and what an earlier failure left."""
    folder.mkdir(parents=True, exist_ok=True)
    if checkpoint:
        print(f"resumes at iteration {checkpoint.iteration}, from {checkpoint.folder}", flush=True)
    else:
        (folder / LOG).unlink(missing_ok=True)
    if failed:
        shutil.rmtree(failed, ignore_errors=True)


def _solve(
    solver: caffe.Solver, monitor: Monitor, parts: dict[str, Path], checkpoint: Checkpoint | None, tolerate_divergence: bool
) -> None:
    """Train to the end, from the checkpoint if there is one, and write the final and the best weights.

    tolerate_divergence  on a NaN or infinite loss, restore the best weights, else the initial ones, which parts[FINAL] has
    """
    final, best = parts[FINAL], parts[BEST]
    try:
        solver.solve(str(checkpoint.solverstate) if checkpoint else None)
        monitor.test_last()
        if tolerate_divergence and monitor.is_diverged:  # in the last updates: no iteration has computed their loss
            raise caffe.DivergenceError(solver.path, "the loss of the last test is NaN or infinite")
    except caffe.DivergenceError as error:
        explained = diagnose(error, solver, monitor.rows)
        if not tolerate_divergence:
            raise explained from None
        print(f"warning: {explained}", flush=True)
        monitor.diverged = solver.iter
        _restore(solver.net, best if monitor.best else final)
    solver.net.save(final)
    if monitor.best is None:
        shutil.copyfile(final, best)


@contextlib.contextmanager
def _keep_on_failure(files: dict[str, Path], folder: Path) -> Iterator[None]:
    """If the block raises, copy files, {name: path}, to a folder, and name it in the error."""
    try:
        yield
    except Exception as error:
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in files.items():
            shutil.copyfile(path, folder / name)
        hint = f"{' and '.join(files)} so far are in {folder}"
        if not isinstance(error, caffe.Error):
            print(f"warning: {hint}", flush=True)
            raise
        raise type(error)(error.where, error.found, error.expected, f"{error.do}; {hint}" if error.do else hint) from None


def _restore(net: caffe.Net, weights: Path) -> None:
    """Copy finite weights into a net that has diverged.

    A BatchNorm layer that has seen no batch would divide by 0; it gets the statistics of one.
    """
    net.copy_from(weights)
    if not all(layer.blobs[2].data.any() for layer in net.layers if layer.stores_sums(layer.param)):
        net.forward()


def _show_progress(stack: contextlib.ExitStack, solver: caffe.Solver, name: str, iteration: int) -> None:
    """A progress bar on a terminal, from `iteration` on, with the last loss and accuracy."""
    total = solver.param.max_iter
    bar = stack.enter_context(tqdm(total=total, initial=iteration, unit=" iterations", desc=f"train {name}", disable=None))

    def show(row: dict[str, Any]) -> None:
        values = {name: row[name] for name in ("loss", "test_accuracy") if row[name] is not None}
        bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)

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
    scratch = a.chosen and read_strategy(a.chosen)[0] == "scratch"
    weights = WeightFiles() if scratch else WeightFiles(a.weights, a.fitted)
    settings = Settings(read_flags(a, TrainOptions), a.failed, a.checkpoint, a.minutes, a.keep_results)
    best = run_training(a.solver, a.folder, weights, settings)
    final = a.folder / "final.caffemodel"
    if best["test_accuracy"] is None:
        print(final)
    else:
        print(f"{final}: best test accuracy {best['test_accuracy']:.4f}, at iteration {best['iteration']}")


if __name__ == "__main__":
    run(main)

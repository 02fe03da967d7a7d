"""Train a net as its solver says, from scratch or from weights; write the log, a table of metrics and the final weights."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

import pandas as pd
from tqdm import tqdm

import caffe
from caffe.proto import caffe_pb2
from pipeline import devices
from pipeline.command import run
from pipeline.errors import InputError
from pipeline.files import written_whole

COLUMNS = ["iteration", "seconds", "loss", "learning_rate", "test_loss", "test_accuracy"]


def train(solver_file: Path, weights: Path | None, output: Path, log: Path) -> pd.DataFrame:
    """Train, write the final weights to `output` (.caffemodel) and return the metrics.

    weights  a .caffemodel whose layers of the same names are copied first; those of another net are an error
    log      where the log goes, in glog's form; replaced
    Columns of the result: iteration, seconds, loss, learning_rate, test_loss, test_accuracy; empty where not measured.
    """
    wants_gpu = caffe.read_solver(solver_file).solver_mode == caffe_pb2.SolverParameter.GPU
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    rows: list[dict] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(caffe.log_to_file(log, stderr=False))
        if wants_gpu:
            caffe.set_device(stack.enter_context(devices.gpu()))
            caffe.set_mode_gpu()
        solver = caffe.get_solver(str(solver_file))
        if weights is not None:
            report = solver.net.copy_from(weights)
            if not report.copied:
                raise InputError(
                    weights,
                    f"weights of layers {', '.join(report.ignored[:5])}",
                    f"the net has none of them: its layers are {', '.join(list(solver.net.params)[:5])}",
                    "give the weights of a net that shares layer names with this one",
                )
        bar = stack.enter_context(
            tqdm(total=solver.param.max_iter, unit=" iterations", desc=f"train {output.parent.parent.name}", disable=None)
        )

        def show(row: dict) -> None:
            rows.append(row)
            measured = {name: row[name] for name in ("loss", "test_accuracy") if row[name] is not None}
            bar.set_postfix({name: f"{value:.4g}" for name, value in measured.items()}, refresh=False)

        solver.on_metrics(show)
        solver.add_callback(lambda: None, bar.update)
        with written_whole(output) as part:
            solver.solve()
            solver.net.save(part)
        solver.close()
    return pd.DataFrame(rows, columns=COLUMNS)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("solver", type=Path)
    parser.add_argument("--weights", type=Path, help="a .caffemodel to start from")
    parser.add_argument("--output", type=Path, required=True, help="the .caffemodel to write")
    parser.add_argument("--log", type=Path, required=True, help="the training log, in glog's form")
    parser.add_argument("--metrics", type=Path, required=True, help="the table of metrics (CSV)")
    a = parser.parse_args(argv)
    with written_whole(a.metrics) as part:
        metrics = train(a.solver, a.weights, a.output, a.log)
        metrics.to_csv(part, index=False)
    accuracy = metrics.test_accuracy.dropna()
    print(f"{a.output}: test accuracy {accuracy.iloc[-1]:.4f}" if len(accuracy) else a.output)


if __name__ == "__main__":
    run(main)

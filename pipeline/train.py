"""Train a net as its solver says, from scratch or from weights; write log, tables of metrics and of layers, and final weights."""

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


def train(solver_file: Path, weights: Path | None, output: Path, log: Path, layers: Path) -> pd.DataFrame:
    """Train, write the final weights to `output` (.caffemodel) and a table of the layers to `layers`, and return the metrics.

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
        stack.enter_context(devices.on_gpu(wants_gpu))
        solver = caffe.get_solver(str(solver_file))
        report = None
        if weights is not None:
            report = solver.net.copy_from(weights)
            if not report.copied:
                raise InputError(
                    weights,
                    f"weights of layers {', '.join(report.ignored[:5])}",
                    f"the net has none of them: its layers are {', '.join(list(solver.net.params)[:5])}",
                    "give the weights of a net that shares layer names with this one",
                )
        part_layers = stack.enter_context(written_whole(layers))
        layers_of(solver.net, report).to_csv(part_layers, index=False)
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


def layers_of(net: caffe.Net, report) -> pd.DataFrame:
    """A row for each layer with weights, of the net or of the file that it starts from: layer, shapes, start, learned.

    start    copied; filled, as its prototxt says; or left out, as the net has no layer of this name
    learned  whether it has a learning rate
    report   what was copied; None for a start from nothing
    """
    copied, ignored = (report.copied, report.ignored) if report else ([], [])
    rows = [
        {
            "layer": name,
            "shapes": " ".join("×".join(map(str, blob.shape)) for blob in blobs),
            "start": "copied" if name in copied else "filled",
            "learned": any(spec.lr_mult for spec in net.layer_dict[name].param.param) or not net.layer_dict[name].param.param,
        }
        for name, blobs in net.params.items()
    ]
    rows += [{"layer": name, "shapes": "", "start": "left out", "learned": False} for name in ignored]
    return pd.DataFrame(rows, columns=["layer", "shapes", "start", "learned"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("solver", type=Path)
    parser.add_argument("--weights", type=Path, help="a .caffemodel to start from")
    parser.add_argument("--output", type=Path, required=True, help="the .caffemodel to write")
    parser.add_argument("--log", type=Path, required=True, help="the training log, in glog's form")
    parser.add_argument("--metrics", type=Path, required=True, help="the table of metrics (CSV)")
    parser.add_argument(
        "--layers", type=Path, required=True, help="the table of layers: what each starts from, what is learned (CSV)"
    )
    a = parser.parse_args(argv)
    with written_whole(a.metrics) as part:
        metrics = train(a.solver, a.weights, a.output, a.log, a.layers)
        metrics.to_csv(part, index=False)
    accuracy = metrics.test_accuracy.dropna()
    print(f"{a.output}: test accuracy {accuracy.iloc[-1]:.4f}" if len(accuracy) else a.output)


if __name__ == "__main__":
    run(main)

"""Change trained nets: crop them, make them fully convolutional, merge batch normalisation, average snapshots.

Each command reads a deploy prototxt and weights, and writes OUTPUT.prototxt and OUTPUT.caffemodel. A convolutional or merged net
is checked first: its output for random images must equal the original's within 1e-4 of the largest value.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np

import caffe
from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.export import agreement
from pipeline.export.convolutional import convolutional
from pipeline.export.merging import merged
from pipeline.files import written_whole
from pipeline.formats.tables import read_json
from pipeline.inference.trained import copy_all_weights, layer_names, load_net
from pipeline.nets import graph
from pipeline.options.flags import add_flags, read_flags
from pipeline.options.training import AverageOptions, ConvolutionalOptions

SNAPSHOT = re.compile(r"_iter_(\d+)\.caffemodel(\.h5)?$")
LAST = 5
"""Number of snapshots to average, by default."""


def averaged(net_file: Path, snapshots: list[Path]) -> caffe.Net:
    """The net with the mean of each parameter over snapshots, all of one net.

    BatchNorm's sums are first divided by their weight, which becomes 1: means and variances are averaged.
    """
    net = caffe.Net(str(net_file), caffe.TEST)
    layers: list[str] = []
    sums = {name: [np.zeros(blob.data.shape) for blob in blobs] for name, blobs in net.params.items()}
    for number, snapshot in enumerate(snapshots):
        rest = sorted(copy_all_weights(net, snapshot, net_file))
        if number and rest != layers:
            expected = f"only one of them has {layer_names(sorted({*rest} ^ {*layers}))}"
            raise InputError(snapshot, f"weights of another net than {snapshots[0]}", expected)
        layers = rest
        for name, blobs in net.params.items():
            values = [blob.data.astype(np.float64) for blob in blobs]
            layer = net.layer_dict[name]
            if layer.stores_sums(layer.param):
                weight = values[2][0] or 1.0
                values = [values[0] / weight, values[1] / weight, np.ones(1)]
            for total, value in zip(sums[name], values, strict=True):
                total += value
    for name, totals in sums.items():
        for blob, total in zip(net.params[name], totals, strict=True):
            blob.data[...] = total / len(snapshots)
    return net


def snapshots_in(folder: Path, last: int) -> list[Path]:
    """The `last` latest snapshots of a training, by iteration; if there are fewer, but at least two, all."""
    snapshots = sorted((int(match[1]), path) for path in folder.glob("*") if (match := SNAPSHOT.search(path.name)))
    if len(snapshots) < min(last, 2):
        found = f"{len(snapshots)} snapshot{'s' * (len(snapshots) != 1)}"
        do = "set solver.snapshot to fewer iterations, so that the training writes enough"
        raise InputError(folder, found, f"{last} are to be averaged", do)
    return [path for _, path in snapshots[-last:]]


def write(net: caffe.Net, output: Path) -> None:
    """Write OUTPUT.prototxt and OUTPUT.caffemodel, whole."""
    with (
        written_whole(output.with_name(f"{output.name}.prototxt")) as prototxt,
        written_whole(output.with_name(f"{output.name}.caffemodel")) as weights,
    ):
        caffe.write_prototxt(prototxt, graph.definition_of(net))
        net.save(weights)


def check(net: caffe.Net, changed: caffe.Net, where: str) -> float:
    """The largest relative difference of their outputs. Raises InputError if rounding does not explain it."""
    inputs = agreement.random_inputs(net)
    own, other = (agreement.compute(either, inputs, agreement.compared_blobs(either)) for either in (net, changed))
    return agreement.assert_close(where, own, other)


def _crop(a: argparse.Namespace) -> tuple[caffe.Net, str]:
    net = load_net(a.net, a.weights)
    return net, layer_names(list(net.params))


def _convolutional(a: argparse.Namespace) -> tuple[caffe.Net, str]:
    net = load_net(a.net, a.weights)
    size = read_flags(a, ConvolutionalOptions).convolutional
    changed = convolutional(net, size.height, size.width)
    difference = check(net, changed, str(a.output))
    shapes = ", ".join(f"{name} {'×'.join(map(str, changed.blobs[name].shape))}" for name in changed.outputs)
    return changed, f"{shapes}; for the net's own size the largest difference is {difference:.1e}"


def _merge(a: argparse.Namespace) -> tuple[caffe.Net, str]:
    net = load_net(a.net, a.weights)
    changed, gone, left = merged(net)
    difference = check(net, changed, str(a.output))
    stay = f"; {layer_names(left)} not merged: not directly after a convolution" if left else ""
    return changed, f"{len(gone)} layer{'s' * (len(gone) != 1)} merged{stay}; largest difference {difference:.1e}"


def _average(a: argparse.Namespace) -> tuple[caffe.Net, str]:
    if a.best and (at := read_json(a.best).get("diverged")) is not None:
        # Its snapshots were diverging.
        final = load_net(a.net, a.best.with_name("final.caffemodel"))
        return final, f"training diverged at iteration {at}; its final weights"
    (first, *others) = a.snapshots
    folder = first.is_dir() and not others
    last = read_flags(a, AverageOptions).average or LAST
    files = snapshots_in(first, last) if folder else a.snapshots
    fewer = f"; {last} were requested, but there are only {len(files)}" if folder and len(files) < last else ""
    return averaged(a.net, files), f"the mean of {', '.join(path.name for path in files)}{fewer}"


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    crop = commands.add_parser("crop", help="keep the layers of a smaller prototxt: the weights must have all of them")
    crop.add_argument("net", type=Path, help="the smaller prototxt")
    convolve = commands.add_parser("convolutional", help="fully connected layers become convolutions")
    merge = commands.add_parser("merge", help="BatchNorm, Scale and Bias become part of the convolutions before them")
    average = commands.add_parser("average", help="the mean of snapshots' weights")
    for command in (convolve, merge, average):
        command.add_argument("net", type=Path, help="deploy.prototxt")
    for command in (crop, convolve, merge):
        command.add_argument("weights", type=Path, help="the .caffemodel")
    average.add_argument("snapshots", type=Path, nargs="+", help="weights of one net, or the folder of a training's snapshots")
    average.add_argument("--best", type=Path, metavar="FILE", help="best.json of the training, which says whether it diverged")
    add_flags(convolve, ConvolutionalOptions)
    add_flags(average, AverageOptions)
    for command, function in ((crop, _crop), (convolve, _convolutional), (merge, _merge), (average, _average)):
        command.add_argument("--output", type=Path, required=True, help="the new files, without .prototxt and .caffemodel")
        command.set_defaults(function=function)
    a = parser.parse_args(argv)
    net, said = a.function(a)
    write(net, a.output)
    print(f"{a.output}: {said}")


if __name__ == "__main__":
    run(main)

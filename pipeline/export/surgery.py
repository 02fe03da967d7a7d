"""Change trained nets: crop them, make them convolutional, merge their normalisation, average snapshots.

Each command reads a deploy prototxt and weights, and writes OUTPUT.prototxt and OUTPUT.caffemodel. A net that is to compute the
same in another way is checked first: its output for random images is the old one's within 1e-4 of the largest value.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import caffe
from pipeline.command import run
from pipeline.errors import InputError
from pipeline.export import agreement
from pipeline.export.convolutional import convolutional
from pipeline.export.merging import merged
from pipeline.files import written_whole
from pipeline.inference.trained import copy_all_weights, layer_names, load_net
from pipeline.nets import graph
from pipeline.options.flags import add_flags, read_flags
from pipeline.options.training import AverageOptions, ConvolutionalOptions

SNAPSHOT = re.compile(r"_iter_(\d+)\.caffemodel(\.h5)?$")
LAST = 5
"""Snapshots that are averaged, by default."""


def cropped(weights: Path, smaller: Path) -> caffe.Net:
    """The net of `smaller` with its layers' parameters of `weights`, the file of a net that has them and more.

    A layer that the weights lack, or have in another shape, is an error.
    """
    return load_net(smaller, weights)


def averaged(net_file: Path, snapshots: list[Path]) -> caffe.Net:
    """The net whose parameters are the means of those of the snapshots, which are all of one net.

    BatchNorm's sums are divided by their weight first, so that the means of means and variances are taken, with weight 1.
    """
    net = caffe.Net(str(net_file), caffe.TEST)
    layers: list[str] = []
    sums: dict[str, list[np.ndarray]] = {}
    for number, snapshot in enumerate(snapshots):
        rest = sorted(copy_all_weights(net, snapshot, net_file))
        if number and rest != layers:
            odd = sorted({*rest} ^ {*layers})
            raise InputError(
                snapshot, f"weights of another net than {snapshots[0]}", f"{layer_names(odd)} is in one of them only"
            )
        layers = rest
        for name, blobs in net.params.items():
            values = [blob.data.astype(np.float64) for blob in blobs]
            layer = net.layer_dict[name]
            if layer.stores_sums(layer.param):
                weight = values[2][0] or 1.0
                values = [values[0] / weight, values[1] / weight, np.ones(1)]
            before: Sequence[np.ndarray | float] = sums.get(name, [0.0] * len(values))
            sums[name] = [total + value for total, value in zip(before, values, strict=True)]
    for name, totals in sums.items():
        for blob, total in zip(net.params[name], totals, strict=True):
            blob.data[...] = total / len(snapshots)
    return net


def snapshots_in(folder: Path, last: int) -> list[Path]:
    """The `last` latest snapshots of a training, by iteration; all where there are fewer, but more than one."""
    found = [(int(match[1]), path) for path in sorted(folder.glob("*")) if (match := SNAPSHOT.search(path.name))]
    if len(found) < min(last, 2):
        raise InputError(
            folder,
            f"{len(found)} snapshot{'s' * (len(found) != 1)}",
            f"{last} are to be averaged",
            "set solver.snapshot to fewer iterations, so that the training writes enough",
        )
    return [path for _, path in sorted(found)[-last:]]


def write(net: caffe.Net, output: Path) -> None:
    """Write OUTPUT.prototxt and OUTPUT.caffemodel, whole."""
    with (
        written_whole(output.with_name(f"{output.name}.prototxt")) as prototxt,
        written_whole(output.with_name(f"{output.name}.caffemodel")) as weights,
    ):
        caffe.write_prototxt(prototxt, graph.definition_of(net))
        net.save(weights)


def checked(net: caffe.Net, changed: caffe.Net, where: str) -> float:
    """The largest relative difference of their outputs; raises an error where it is more than rounding."""
    inputs = agreement.random_inputs(net)
    pairs = [agreement.computed(one, inputs, agreement.telling(one)) for one in (net, changed)]
    return agreement.agreed(where, *pairs)


def _crop(a: argparse.Namespace) -> tuple[caffe.Net, str]:
    net = cropped(a.weights, a.net)
    return net, layer_names(list(net.params))


def _convolutional(a: argparse.Namespace) -> tuple[caffe.Net, str]:
    net = load_net(a.net, a.weights)
    size = read_flags(a, ConvolutionalOptions).convolutional
    changed = convolutional(net, size.height, size.width)
    difference = checked(net, changed, str(a.output))
    shapes = ", ".join(f"{name} {'×'.join(map(str, changed.blobs[name].shape))}" for name in changed.outputs)
    return changed, f"{shapes}; for the net's own size the largest difference is {difference:.1e}"


def _merge(a: argparse.Namespace) -> tuple[caffe.Net, str]:
    net = load_net(a.net, a.weights)
    changed, gone, left = merged(net)
    difference = checked(net, changed, str(a.output))
    stay = f", {layer_names(left)} {'stay' if len(left) > 1 else 'stays'}: no convolution alone before" if left else ""
    return changed, f"{len(gone)} layer{'s' * (len(gone) != 1)} merged{stay}; largest difference {difference:.1e}"


def _average(a: argparse.Namespace) -> tuple[caffe.Net, str]:
    if a.best and (at := json.loads(a.best.read_text()).get("diverged")) is not None:
        # The snapshots before are on the way there.
        final = load_net(a.net, a.best.with_name("final.caffemodel"))
        return final, f"training diverged at iteration {at}; the weights that it ended with"
    (first, *others) = a.snapshots
    folder = first.is_dir() and not others
    last = read_flags(a, AverageOptions).average or LAST
    files = snapshots_in(first, last) if folder else a.snapshots
    fewer = f"; {last} were asked for, there are no more" if folder and len(files) < last else ""
    return averaged(a.net, files), f"the mean of {', '.join(path.name for path in files)}{fewer}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    crop = commands.add_parser("crop", help="keep the layers of a smaller prototxt", description=cropped.__doc__)
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

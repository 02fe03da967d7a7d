"""Weights that a training starts from: download published ones, copy them into a net, and tell what became of each layer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

import caffe
from caffe.proto import caffe_pb2
from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.options.flags import read_flags
from pipeline.options.training import DownloadWeightsOptions, InitialWeights
from pipeline.sources import fetch

COLUMNS = ["layer", "shapes", "start", "learned", "weights", "why"]


def download_weights(url: str, sha256: str, path: Path) -> None:
    """Write the weights at `url` to `path`, whole, once their SHA-256 is the expected one."""
    with written_whole(path) as part:
        try:
            found = fetch.fetch_url(url, part).sha256
        except fetch.Failed as failure:
            raise InputError(url, failure.error, do="correct the URL, or try again later") from None
        if found != sha256.lower():
            raise InputError(
                url, f"SHA-256 {found}", f"sha256 is {sha256}", "correct sha256 if this is the file that you mean, else the URL"
            )


@dataclass(frozen=True)
class Given:
    """The weights that a training starts from.

    files         .caffemodels, copied one after the other, so that of layers with the same name the last file's counts
    skip          layers that are not copied from them
    same_classes  they are of the databases' classes, so that a copied last layer is meant
    fitted        classifier.caffemodel of pipeline.training.linear, copied last; without layers where it chose another strategy
    """

    files: Sequence[Path] = ()
    skip: Sequence[str] = ()
    same_classes: bool = False
    fitted: Path | None = None


@dataclass(frozen=True)
class Taken:
    """What became of one file of weights: layers copied, and ignored as the net has none of the name.

    skipped  {layer: why it could not have been copied, if so} of those that were not to be copied
    unfit    {layer: (what the file has, what the net has, what to do)} where the shapes differ; then nothing was copied
    fitted   whether this is the classifier that was fitted
    """

    path: Path
    copied: Sequence[str] = ()
    ignored: Sequence[str] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    unfit: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    fitted: bool = False


def copied(net: caffe.Net, given: Given) -> list[Taken]:
    """Copy weights into a net; what became of each file."""
    taken = []
    layers = caffe_pb2.NetParameter.FromString(given.fitted.read_bytes()).layer if given.fitted else []
    for path in (*given.files, *([given.fitted] if layers else [])):
        fitted = path == given.fitted
        try:
            report = net.copy_from(path, () if fitted else given.skip)
        except caffe.WeightsError as error:
            taken.append(Taken(path, unfit=error.layers, fitted=fitted))
        else:
            taken.append(Taken(path, report.copied, report.ignored, report.skipped, fitted=fitted))
    return taken


def layers_of(net: caffe.Net, taken: Sequence[Taken]) -> pd.DataFrame:
    """A row for each layer with weights: of the net, then of the files where the net has none of the name.

    shapes   of its parameters
    start    copied; filled, as its prototxt says; or left out
    learned  whether it has a learning rate
    weights  the file that has the layer
    why      why it was not copied
    """
    rows = []
    for name, blobs in net.params.items():
        having = [one for one in taken if name in one.copied]
        skipping = [one for one in taken if name in one.skipped]
        start, path, why = "filled", "", "the weights have no layer of this name" if taken else "no weights"
        if having:
            start, path, why = "copied", having[-1].path, ""
        elif skipping:
            path, why = skipping[-1].path, skipping[-1].skipped[name] or "it was to be skipped"
        specs = net.layer_dict[name].param.param
        learned = any(spec.lr_mult for spec in specs) or not specs
        rows.append([name, " ".join("×".join(map(str, blob.shape)) for blob in blobs), start, learned, path, why])
    for one in taken:
        rows += [[name, "", "left out", False, one.path, "the net has no layer of this name"] for name in one.ignored]
    return pd.DataFrame(rows, columns=COLUMNS)


def add_files(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the files of `Given`; its other fields are options."""
    weights = ".caffemodel files to start from; for layers of the same name, the last file's weights"
    parser.add_argument("--weights", nargs="*", action="extend", type=Path, default=[], help=weights)
    parser.add_argument("--fitted", nargs="?", type=Path, help="classifier.caffemodel of training.linear, copied last")


def given_by(arguments: argparse.Namespace, options: InitialWeights) -> Given:
    """The weights that a command line gives."""
    return Given(arguments.weights, options.skip_layers, options.same_classes, arguments.fitted)


def main(argv: list[str] | None = None) -> None:
    parser = step_parser("Download weights, checked by their SHA-256.", DownloadWeightsOptions)
    parser.add_argument("file", type=Path, help="the file to write")
    a = parser.parse_args(argv)
    options = read_flags(a, DownloadWeightsOptions)
    download_weights(options.url, options.sha256, a.file)
    print(f"{a.file}: {a.file.stat().st_size} bytes")


if __name__ == "__main__":
    run(main)

"""Initial weights: download published ones, copy them into a net, and list which layers were copied."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import caffe
from caffe.proto import caffe_pb2
from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.formats import digests
from pipeline.options.flags import read_flags
from pipeline.options.training import DownloadWeightsOptions
from pipeline.sources import fetch

COLUMNS = ("layer", "shapes", "start", "learned", "weights", "why")
"""Columns of `layer_table`."""


def download_weights(url: str, sha256: str, path: Path) -> None:
    """Write the weights at `url` to `path`, whole; raises InputError if their SHA-256 is not the expected one."""
    with written_whole(path) as part:
        try:
            actual = fetch.fetch_url(url, part).sha256
        except fetch.FetchError as failure:
            raise InputError(url, failure.error, do="correct the URL, or try again later") from None
        if actual != sha256.lower():
            do = "correct sha256 if this is the file that you mean, else the URL"
            raise InputError(url, f"SHA-256 {actual}", f"sha256 is {sha256}", do)


@dataclass(frozen=True)
class WeightFiles:
    """The weights that a training starts from.

    files   .caffemodels, copied in this order: of layers with the same name, the last file's weights are used
    fitted  classifier.caffemodel of pipeline.training.linear, copied last; without layers if it chose another strategy
    """

    files: Sequence[Path] = ()
    fitted: Path | None = None


@dataclass(frozen=True)
class CopiedFile:
    """One file of weights: layers copied, and ignored because the net has no layer of the name.

    skipped  {layer to skip: why it could not have been copied, if so}
    unfit    {layer: (what the file has, what the net has, what to do)} if shapes differ; then nothing was copied
    fitted   whether this is the fitted classifier
    """

    path: Path
    copied: Sequence[str] = ()
    ignored: Sequence[str] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    unfit: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    fitted: bool = False


def copy_weights(net: caffe.Net, weights: WeightFiles, skip: Sequence[str] = ()) -> list[CopiedFile]:
    """Copy weights into a net; return which layers of each file were copied.

    skip  layers that are not copied from `weights.files`
    """
    copied = []
    files = list(weights.files)
    if weights.fitted and caffe_pb2.NetParameter.FromString(weights.fitted.read_bytes()).layer:
        files.append(weights.fitted)
    for path in files:
        fitted = path == weights.fitted
        digests.check(Path(path))
        try:
            report = net.copy_from(path, () if fitted else skip)
        except caffe.WeightsError as error:
            copied.append(CopiedFile(path, unfit=error.layers, fitted=fitted))
        else:
            copied.append(CopiedFile(path, report.copied, report.ignored, report.skipped, fitted=fitted))
    return copied


def layer_table(net: caffe.Net, copied: Sequence[CopiedFile]) -> list[list[object]]:
    """A row for each layer of the net with weights, then for each layer of the files that the net does not have.

    layer    its name
    shapes   of its parameters
    start    copied; filled, by its fillers; or left out
    learned  whether its learning rate is not 0
    weights  the file that has the layer
    why      why it was not copied
    """
    rows: list[list[object]] = []
    for name, blobs in net.params.items():
        sources = [file for file in copied if name in file.copied]
        skipping = [file for file in copied if name in file.skipped]
        start, path, why = "filled", "", "the weights have no layer of this name" if copied else "no weights"
        if sources:
            start, path, why = "copied", str(sources[-1].path), ""
        elif skipping:
            path, why = str(skipping[-1].path), skipping[-1].skipped[name] or "it was to be skipped"
        shapes = " ".join("×".join(map(str, blob.shape)) for blob in blobs)
        rows.append([name, shapes, start, is_learned(net.layer_dict[name].param), path, why])
    for file in copied:
        rows += [[name, "", "left out", False, file.path, "the net has no layer of this name"] for name in file.ignored]
    return rows


def is_learned(layer: caffe_pb2.LayerParameter) -> bool:
    """Whether a layer with weights has a learning rate other than 0."""
    return not layer.param or any(spec.lr_mult for spec in layer.param)


def add_files(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the files of `WeightFiles`."""
    weights = ".caffemodel files to start from; for layers of the same name, the last file's weights"
    parser.add_argument("--weights", nargs="*", action="extend", type=Path, default=[], help=weights)
    parser.add_argument("--fitted", nargs="?", type=Path, help="classifier.caffemodel of training.linear, copied last")


def main(argv: list[str] | None = None) -> None:
    parser = step_parser("Download weights, checked by their SHA-256.", DownloadWeightsOptions)
    parser.add_argument("file", type=Path, help="the file to write")
    a = parser.parse_args(argv)
    options = read_flags(a, DownloadWeightsOptions)
    download_weights(options.url, options.sha256, a.file)
    print(f"{a.file}: {a.file.stat().st_size} bytes")


if __name__ == "__main__":
    run(main)

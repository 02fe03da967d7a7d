"""Check a training before it starts: errors and common mistakes in its nets, weights and databases."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, fields, replace
from pathlib import Path

import caffe
from caffe.preflight import Finding, Records
from caffe.proto import caffe_pb2
from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.files import write_table, written_whole
from pipeline.formats import digests
from pipeline.formats.records import read_manifest, verify_database
from pipeline.nets.solver_defaults import most_tested, slow_test
from pipeline.options.flags import read_flags
from pipeline.options.training import InitialWeights
from pipeline.training import initial_weights

RECORDS = 5000
"""How many of a database's first records are read."""


def findings(solver: caffe.Solver, taken: Sequence[initial_weights.CopiedFile], same_classes: bool) -> list[Finding]:
    """All findings, errors first.

    taken         the files of weights that were copied into the solver's net
    same_classes  the weights were trained on the same classes; copying the last layer is intended
    """
    train, tests = solver.net, solver.test_nets
    sources = [_records(net) for net in (train, *tests)]
    found = [*_of_weights(train, taken, same_classes)]
    for net, read in zip((train, *tests), sources, strict=True):
        found += caffe.preflight.of_labels(net, read)
    found += caffe.preflight.of_order(sources[0].values())
    for net, read, batches in zip(tests, sources[1:], solver.param.test_iter, strict=True):
        found += _of_tests(net, read, batches)
        found += _of_transforms(train, net)
    found += caffe.preflight.of_inputs(train, sources[0])
    found += _of_batch_norms(train, tests, {name for file in taken for name in file.copied})
    return sorted(dict.fromkeys(found), key=lambda finding: finding.kind)


def refuse(found: Iterable[Finding]) -> None:
    """Raise one InputError with all errors, a line each."""
    if errors := [str(finding) for finding in found if finding.kind == "error"]:
        raise InputError("", "\n".join(errors))


def tell(found: Iterable[Finding]) -> None:
    """Print the warnings, a line each."""
    for finding in found:
        if finding.kind == "warning":
            print(f"warning: {finding}", flush=True)


def write(found: Iterable[Finding], path: Path) -> None:
    """Write a table: kind, where, found, do."""
    with written_whole(path) as part:
        write_table(part, [field.name for field in fields(Finding)], map(astuple, found))


# ---- the records that nets read


def data_layers(net: caffe.Net) -> list[str]:
    """Names of the layers that read a database or a list of images."""
    return [name for name, layer in net.layer_dict.items() if layer.reads in ("database", "image list")]


def _records(net: caffe.Net) -> dict[str, Records]:
    """{layer: the records that it reads}, with the number of classes that the workflow's manifests have.

    Raises InputError for a database or list that is not as it was written; the net has opened it already.
    """
    for name in data_layers(net):
        layer = net.layer_dict[name]
        verify = verify_database if layer.reads == "database" else digests.check
        verify(Path(layer.settings_of(layer.param).source))
    read = caffe.preflight.read_records(net, RECORDS)
    for name, records in read.items():
        if manifest := read_manifest(Path(records.name)):
            read[name] = replace(records, classes=manifest["classes"])
    return read


# ---- the checks


def _of_weights(net: caffe.Net, taken: Sequence[initial_weights.CopiedFile], same_classes: bool) -> Iterator[Finding]:
    last = dict.fromkeys(classifier for _, classifier, _, _ in caffe.preflight.heads(net))
    rename = "set rename_last: true in the experiment"
    for file in taken:
        path = str(file.path)
        if not file.copied and not file.unfit and not file.fitted:
            layers = ", ".join([*file.skipped, *file.ignored][:5]) or "none"
            found = f"weights of layers {layers}, but the net takes none of them: its layers are {', '.join([*net.params][:5])}"
            yield Finding("error", path, found, "give the weights of a net that shares layer names with this one")
        for name, (found, expected, do) in itertools.islice(file.unfit.items(), 5):
            if name in last:
                do = f"{rename} (or give the layer a new name in the net), so that it is learned from scratch and not copied"
            else:
                do += "; or name it in the experiment's skip_layers, so that it is not copied"
            yield Finding("error", f'{path}: layer "{name}"', f"{found}, but {expected}", do)
        if len(file.unfit) > 5:
            found = f"{len(file.unfit) - 5} more layers have other shapes"
            yield Finding("error", path, found, "are these the weights of this net?")
        for name in last:
            if name in file.copied and not same_classes and not file.fitted:
                found = "the last layer is copied, too: right if the weights are of the same classes in the same order"
                yield Finding("warning", f'{path}: layer "{name}"', found, f"otherwise {rename}")


def _of_tests(net: caffe.Net, sources: dict[str, Records], batches: int) -> Iterator[Finding]:
    for name, source in sources.items():
        layer = net.layer_dict[name]
        size = layer.settings_of(layer.param).batch_size
        read = size * batches
        whole, rest = divmod(source.total, size)
        do = f"set test_iter: {whole}" if not rest else f"take a batch_size that divides {source.total}, and test_iter to match"
        where = f'{source.name}: layer "{name}"'
        if read < source.total:
            found = f"a test reads {read} of {source.total} images (test_iter {batches} × batch_size {size})"
            yield Finding("warning", where, found, do)
        elif read > source.total:
            found = f"a test reads {read} images, but there are {source.total} (test_iter {batches} × batch_size {size})"
            again = "each equally often, which takes longer" if read % source.total == 0 else "some count more often than others"
            yield Finding("warning", where, f"{found}: {again}", do)
        elif slow := slow_test(source.total, size, most_tested(math.prod(net.blobs[net.top_names[name][0]].shape[2:]))):
            yield Finding("warning", where, *slow)


def _of_transforms(train: caffe.Net, test: caffe.Net) -> Iterator[Finding]:
    """Whether tests preprocess images as training does."""

    def settings(net: caffe.Net, layer: str) -> dict[str, str]:
        p = net.layer_dict[layer].param.transform_param
        mean = p.mean_file or ", ".join(f"{value:g}" for value in p.mean_value) or "none"
        return {"scale": f"{p.scale:g}", "mean": mean, "crop_size": str(p.crop_size)}

    for name, test_name in zip(data_layers(train), data_layers(test), strict=False):
        testing = settings(test, test_name)
        for key, value in settings(train, name).items():
            if testing[key] != value:
                found = f"{key} {value} in training, and {testing[key]} in testing"
                yield Finding("warning", f'layer "{name}"', found, "give both the same transform_param")


def _of_batch_norms(train: caffe.Net, tests: Sequence[caffe.Net], copied: set[str]) -> Iterator[Finding]:
    for name, layer in train.layer_dict.items():
        if not layer.has_statistics(layer.param):
            continue
        where, setting, kept = f'layer "{name}"', layer.statistics_setting, not layer.updates_statistics(layer.param)
        weighted = (other for other, _ in caffe.preflight.layers_before(train, name) if train.params.get(other))
        before = next((other for other in weighted if not train.layer_dict[other].normalizes_batch), None)
        if kept and name not in copied:
            found = f"{setting}: true in training, but no weights give it statistics: it divides by 0"
            yield Finding("warning", where, found, f"leave {setting} out, or start from weights that have this layer")
        elif not kept and before and not initial_weights.is_learned(train.layer_dict[before].param):
            found = f'training updates its statistics, though layer "{before}" before it is frozen'
            yield Finding("warning", where, found, f"set {setting}: true in the training net to freeze it, too")
    for net in tests:
        for name, layer in net.layer_dict.items():
            if layer.has_statistics(layer.param) and layer.tests_by_batch(layer.param):
                setting = layer.statistics_setting
                found = f"{setting}: false in testing: results depend on which images share a batch"
                yield Finding("warning", f'layer "{name}"', found, f"leave {setting} out, so that the phase decides")


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, InitialWeights)
    parser.add_argument("solver", type=Path)
    initial_weights.add_files(parser)
    parser.add_argument("--csv", type=Path, help="write the findings to a table")
    a = parser.parse_args(argv)
    options = read_flags(a, InitialWeights)
    caffe.init_log(2)
    param = caffe.read_solver(a.solver)
    param.solver_mode = caffe_pb2.SolverParameter.CPU
    solver = caffe.get_solver(str(a.solver), param)
    weights = initial_weights.WeightFiles(a.weights, a.fitted)
    copied = initial_weights.copy_weights(solver.net, weights, options.skip_layers)
    found = findings(solver, copied, options.same_classes)
    solver.close()
    if a.csv:
        write(found, a.csv)
    tell(found)
    refuse(found)
    if not found:
        print(f"{a.solver}: nothing found")


if __name__ == "__main__":
    run(main)

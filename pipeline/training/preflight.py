"""Check a training before it starts: errors and common mistakes in its nets, weights and databases."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

import caffe
from caffe.proto import caffe_pb2
from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.files import write_table, written_whole
from pipeline.formats.lists import read_image_list
from pipeline.nets.solver_defaults import most_tested, slow_test
from pipeline.options.flags import read_flags
from pipeline.options.training import InitialWeights
from pipeline.training import initial_weights

RECORDS = 5000
"""How many of a database's first records are read."""
LOOKED_AT = 16
"""How many of them are decoded."""
LARGE = 32
"""Input values beyond this are large for a net that has nothing to make them smaller."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or may be.

    kind   error: it cannot work; or warning
    where  the file, database or layer
    found  what stands there, and what is wrong about it
    do     what to do about it
    """

    kind: str
    where: str
    found: str
    do: str

    def __str__(self) -> str:
        return f"{self.where}: {self.found}; {self.do}"


@dataclass(frozen=True)
class Source:
    """What a Data or ImageData layer reads.

    total    how many records there are
    labels   of the first RECORDS of them
    classes  how many there are, where a manifest tells
    largest  the largest value of the first images' pixels
    """

    name: str
    total: int
    labels: np.ndarray
    classes: int | None
    largest: float

    @property
    def whole(self) -> bool:
        """Whether the labels are all of them."""
        return len(self.labels) == self.total


def findings(solver: caffe.Solver, taken: Sequence[initial_weights.CopiedFile], same_classes: bool) -> list[Finding]:
    """What is found, errors first.

    taken         what became of the weights that the solver's net starts from
    same_classes  the weights are of the same classes, so that a copied last layer is meant
    """
    train, tests = solver.net, solver.test_nets
    sources = {id(net): _sources(net) for net in (train, *tests)}
    found = [*_of_weights(train, taken, same_classes)]
    for net in (train, *tests):
        found += _of_labels(net, sources[id(net)])
    found += _of_order(sources[id(train)].values())
    for net, batches in zip(tests, solver.param.test_iter, strict=True):
        found += _of_tests(net, sources[id(net)], batches)
        found += _of_transforms(train, net)
    found += _of_inputs(train, sources[id(train)])
    found += _of_batch_norms(train, tests, {name for one in taken for name in one.copied})
    return sorted(dict.fromkeys(found), key=lambda one: one.kind)


def refuse(found: Iterable[Finding]) -> None:
    """Raise one InputError with all errors that were found, a line each."""
    errors = [str(one) for one in found if one.kind == "error"]
    if errors:
        raise InputError("", "\n".join(errors))


def tell(found: Iterable[Finding]) -> None:
    """Print the warnings, a line each."""
    for one in found:
        if one.kind == "warning":
            print(f"warning: {one}", flush=True)


def write(found: Iterable[Finding], path: Path) -> None:
    """Write a table: kind, where, found, do."""
    with written_whole(path) as part:
        write_table(part, [field.name for field in fields(Finding)], map(astuple, found))


# ---- the ways through a net


def _before(net: caffe.Net, layer: str, bottom: int = 0) -> Iterator[tuple[str, str]]:
    """(layer, blob that it gives) of the layers that a bottom is made by, the nearest first, along their first bottoms."""
    order = list(net.top_names)
    for value in net.graph.back_from(net.graph.bottoms[order.index(layer)][bottom]):
        yield order[value.layer], value.blob


def _heads(net: caffe.Net) -> Iterator[tuple[str, str, int, tuple[str, str]]]:
    """(loss, classifier, outputs, where the labels come from: layer and blob) of each loss of scores and labels."""
    for name, layer in net.layer_dict.items():
        if not (layer.is_loss and layer.compares_labels):
            continue
        scores = net.blobs[net.bottom_names[name][0]].shape
        classifier = next((maker for maker, _ in _before(net, name) if net.params.get(maker)), name)
        *_, origin = [("", ""), *_before(net, name, 1)]
        yield name, classifier, scores[layer.along] if len(scores) > 1 else 1, origin


def _learned(layer: Any) -> bool:
    """Whether a layer has a learning rate."""
    return not layer.param.param or any(spec.lr_mult for spec in layer.param.param)


# ---- what nets read


def _sources(net: caffe.Net) -> dict[str, Source]:
    """{layer: what it reads}."""
    read = {"database": _database, "image list": _image_list}
    return {name: read[layer.reads](layer.param) for name, layer in net.layer_dict.items() if layer.reads in read}


def _database(param: caffe_pb2.LayerParameter) -> Source:
    path = param.data_param.source
    database = caffe.open_db(path, param.data_param.backend)
    labels, largest = [], 0.0
    for number, value in enumerate(itertools.islice(database.values(), RECORDS)):
        record = caffe.parse_datum(value)
        labels.append(record.label)
        if number < LOOKED_AT:
            largest = max(largest, float(np.abs(caffe.pixels_of(record, None, path).astype(np.float32)).max()))
    manifest = Path(f"{path}.manifest.json")
    classes = json.loads(manifest.read_text()).get("classes") if manifest.is_file() else None
    return Source(path, len(database), np.array(labels), classes, largest)


def _image_list(param: caffe_pb2.LayerParameter) -> Source:
    path = param.image_data_param.source
    labels = [label for _, label in read_image_list(Path(path))]
    return Source(path, len(labels), np.array(labels[:RECORDS]), max(labels) + 1, 255.0)


# ---- what is checked


def _of_weights(net: caffe.Net, taken: Sequence[initial_weights.CopiedFile], same_classes: bool) -> Iterator[Finding]:
    last = dict.fromkeys(classifier for _, classifier, _, _ in _heads(net))
    for one in taken:
        if not one.copied and not one.unfit and not one.fitted:
            there = ", ".join([*one.skipped, *one.ignored][:5]) or "none"
            found = f"weights of layers {there}, but the net takes none of them: its layers are {', '.join(list(net.params)[:5])}"
            do = "give the weights of a net that shares layer names with this one"
            yield Finding("error", str(one.path), found, do)
        for name, (found, expected, do) in itertools.islice(one.unfit.items(), 5):
            do = (
                "set rename_last: true in the experiment (or give the layer a new name in the net), so that it is learned from"
                " scratch and not copied"
                if name in last
                else f"{do}; or name it in the experiment's skip_layers, so that it is not copied"
            )
            yield Finding("error", f'{one.path}: layer "{name}"', f"{found}, but {expected}", do)
        if len(one.unfit) > 5:
            found = f"{len(one.unfit) - 5} more layers have other shapes"
            yield Finding("error", str(one.path), found, "are these the weights of this net?")
        for name in last:
            if name in one.copied and not same_classes and not one.fitted:
                found = "the last layer is copied, too: right if the weights are of the same classes in the same order"
                yield Finding(
                    "warning", f'{one.path}: layer "{name}"', found, "otherwise set rename_last: true in the experiment"
                )


def _of_labels(net: caffe.Net, sources: dict[str, Source]) -> Iterator[Finding]:
    for loss, classifier, outputs, (origin, blob) in _heads(net):
        if origin not in sources or list(net.top_names[origin]).index(blob) != 1:
            continue
        source, loss_param = sources[origin], net.layer_dict[loss].param.loss_param
        labels = source.labels[source.labels != loss_param.ignore_label] if loss_param.HasField("ignore_label") else source.labels
        if not len(labels):
            continue
        low, high = int(labels.min()), max(int(labels.max()), (source.classes or 0) - 1)
        where = f"{source.name}"
        if outputs == 1 and high == 0 and net.layer_dict[loss].applies_softmax:
            found = "one output, for images of one class: it is 1 whatever the image"
            do = "give images of two classes or more: each folder, or each label, is one"
            yield Finding("error", f'layer "{classifier}"', found, do)
        elif low < 0 or high >= outputs:
            from_one = low == 1 and high == outputs
            yield Finding(
                "error",
                where,
                f'labels {low} to {high}, but layer "{classifier}" has {outputs} outputs, for labels 0 to {outputs - 1}',
                "Caffe's labels start from 0: subtract 1 from each"
                if from_one
                else f"set num_output: {high + 1}"
                if low >= 0
                else "correct the labels",
            )
        elif (source.whole or source.classes) and high + 1 < outputs:
            found = f'labels {low} to {high}, and layer "{classifier}" has {outputs} outputs: the others are never right'
            yield Finding("warning", where, found, f"set num_output: {high + 1}, unless the other classes are to come")
        if low > 0 and source.whole and high < outputs:
            yield Finding("warning", where, f"no label 0: the lowest is {low}", "Caffe's labels start from 0: are they shifted?")


def _of_order(sources: Iterable[Source]) -> Iterator[Finding]:
    """Databases whose records come class by class.

    In a shuffled list of n labels, of which a class has m, n_c (n_c - 1) / n neighbours are expected to be alike for each class;
    six standard deviations more than that are no chance.
    """
    for source in sources:
        labels, count = source.labels, len(source.labels)
        if count < 2:
            continue
        alike = int((labels[1:] == labels[:-1]).sum())
        expected = sum(many * (many - 1) for many in Counter(labels.tolist()).values()) / count
        share = min(expected / (count - 1), 1.0)
        deviation = math.sqrt((count - 1) * share * (1 - share))
        one_class = share == 1 and not source.whole and (source.classes or 2) > 1
        if one_class or alike > expected + 6 * deviation + 1:
            found = (
                f"the first {count} records all have label {labels[0]}"
                if one_class
                else f"not shuffled: of the first {count} records, {alike} have the label of the one before;"
                f" {expected:.0f} would, if they were shuffled"
            )
            yield Finding("warning", source.name, found, "batches of few classes train badly: build it from a shuffled list")


def _of_tests(net: caffe.Net, sources: dict[str, Source], batches: int) -> Iterator[Finding]:
    for name, source in sources.items():
        size = net.layer_dict[name].batch_size
        read = size * batches
        whole, rest = divmod(source.total, size)
        do = f"set test_iter: {whole}" if not rest else f"take a batch_size that divides {source.total}, and test_iter to match"
        where = f'{source.name}: layer "{name}"'
        if read < source.total:
            found = f"a test reads {read} of {source.total} images (test_iter {batches} × batch_size {size})"
            yield Finding("warning", where, found, do)
        elif read > source.total:
            found = f"a test reads {read} images, and there are {source.total} (test_iter {batches} × batch_size {size})"
            again = "each as often, which takes longer" if read % source.total == 0 else "some count more often than others"
            yield Finding("warning", where, f"{found}: {again}", do)
        elif slow := slow_test(source.total, size, most_tested(math.prod(net.blobs[net.top_names[name][0]].shape[2:]))):
            yield Finding("warning", where, *slow)


def _of_transforms(train: caffe.Net, test: caffe.Net) -> Iterator[Finding]:
    """Whether tests prepare images as training does."""

    def prepared(net: caffe.Net) -> Iterator[tuple[str, dict[str, str]]]:
        for name, layer in net.layer_dict.items():
            if layer.reads in ("database", "image list"):
                p = layer.param.transform_param
                mean = p.mean_file or ", ".join(f"{value:g}" for value in p.mean_value) or "none"
                yield name, {"scale": f"{p.scale:g}", "mean": mean, "crop_size": str(p.crop_size)}

    for (name, one), (_, other) in zip(prepared(train), prepared(test), strict=False):
        for key, value in one.items():
            if other[key] != value:
                found = f"{key} {value} in training, and {other[key]} in testing"
                yield Finding("warning", f'layer "{name}"', found, "give both the same transform_param")


def _of_inputs(net: caffe.Net, sources: dict[str, Source]) -> Iterator[Finding]:
    for name, source in sources.items():
        p = net.layer_dict[name].param.transform_param
        images = net.graph.tops[list(net.top_names).index(name)][0]
        if any(net.layers[reader].rescales for reader, _ in net.graph.readers[images]):
            continue
        if not p.mean_file and not p.mean_value and source.largest * p.scale > LARGE:
            found = f"inputs reach {source.largest * p.scale:g}, with no mean subtracted and no scale"
            yield Finding(
                "warning", f'{source.name}: layer "{name}"', found, "set mean_file, mean_value or scale in transform_param"
            )


def _of_batch_norms(train: caffe.Net, tests: Sequence[caffe.Net], copied: set[str]) -> Iterator[Finding]:
    for name, layer in train.layer_dict.items():
        if not layer.has_statistics(layer.param):
            continue
        where, setting, kept = f'layer "{name}"', layer.statistics_setting, not layer.updates_statistics(layer.param)
        feeding = next((other for other, _ in _before(train, name) if _weighed(train, other)), None)
        if kept and name not in copied:
            found = f"{setting}: true in training, but no weights give it statistics: it divides by nothing"
            yield Finding("warning", where, found, f"leave {setting} out, or start from weights that have this layer")
        elif not kept and feeding and not _learned(train.layer_dict[feeding]):
            found = f'training goes on changing its statistics, though layer "{feeding}" before it is frozen'
            yield Finding("warning", where, found, f"set {setting}: true in the training net to freeze it, too")
    for net in tests:
        for name, layer in net.layer_dict.items():
            if layer.has_statistics(layer.param) and layer.tests_by_batch(layer.param):
                setting = layer.statistics_setting
                found = f"{setting}: false in testing: results depend on which images share a batch"
                yield Finding("warning", f'layer "{name}"', found, f"leave {setting} out, so that the phase decides")


def _weighed(net: caffe.Net, layer: str) -> bool:
    """Whether a layer has weights of its own to learn."""
    return bool(net.params.get(layer)) and not net.layer_dict[layer].normalizes_batch


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, InitialWeights)
    parser.add_argument("solver", type=Path)
    initial_weights.add_files(parser)
    parser.add_argument("--csv", type=Path, help="a table to write")
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

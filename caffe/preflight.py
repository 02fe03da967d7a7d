"""Check a training's records before it starts: labels against the net's outputs, order, and size of the inputs.

`caffe train` logs what `quick` finds; the workflow's preflight step checks more records, the weights and the tests as well.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from caffe.engine.net import Net
from caffe.formats.datum import parse_datum, pixels_of
from caffe.layer_types.data import Data
from caffe.layer_types.files import ImageData
from caffe.training.solver import Solver

QUICK_RECORDS = 1000
QUICK_SECONDS = 0.5
"""What `quick` reads at most of all databases together."""
DECODED = 16
"""How many of a database's first records are decoded."""
LARGE = 32
"""Input values beyond this are large for a net without a layer that rescales them."""


@dataclass(frozen=True)
class Finding:
    """A mistake, or a probable one.

    kind   error: the training cannot work; or warning
    where  the file, database or layer
    found  what is wrong there
    do     how to fix it
    """

    kind: str
    where: str
    found: str
    do: str

    def __str__(self) -> str:
        return f"{self.where}: {self.found}; {self.do}"


@dataclass(frozen=True)
class Records:
    """The records that a Data or ImageData layer reads.

    total     number of records
    labels    of the first ones
    classes   number of classes, if it is known
    largest   largest pixel value of the first images
    shuffled  whether the layer reads them in a random order
    """

    name: str
    total: int
    labels: np.ndarray
    classes: int | None
    largest: float
    shuffled: bool

    @property
    def whole(self) -> bool:
        """Whether `labels` has those of all records."""
        return len(self.labels) == self.total


def quick(solver: Solver) -> list[Finding]:
    """What a look at the first records finds, in less than a second; nothing is raised, and the training does not change."""
    until = time.monotonic() + QUICK_SECONDS
    try:
        records = [read_records(net, QUICK_RECORDS, until) for net in (solver.net, *solver.test_nets)]
    except Exception as error:  # a damaged record, which the training will name where it meets it
        return [Finding("warning", solver.path, f"the records cannot be checked ({error})", "rebuild the database")]
    found: list[Finding] = []
    for net, read in zip((solver.net, *solver.test_nets), records, strict=True):
        found += of_labels(net, read)
    return list(dict.fromkeys([*found, *of_order(records[0].values()), *of_inputs(solver.net, records[0])]))


# ---- the graph of a net


def layers_before(net: Net, layer: str, bottom: int = 0) -> Iterator[tuple[str, str]]:
    """(layer, its top) from the layer that makes a bottom back, along first bottoms, to a layer without bottoms."""
    order = list(net.top_names)
    for value in net.graph.back_from(net.graph.bottoms[order.index(layer)][bottom]):
        yield order[value.layer], value.blob


def heads(net: Net) -> Iterator[tuple[str, str, int, tuple[str, str]]]:
    """(loss, classifier, outputs, (layer, blob) that the labels come from) of each loss of scores and labels."""
    for name, layer in net.layer_dict.items():
        if layer.is_loss and layer.compares_labels:
            scores, labels = (net.blobs[blob] for blob in net.bottom_names[name][:2])
            classifier = next((maker for maker, _ in layers_before(net, name) if net.params.get(maker)), name)
            *_, origin = [("", ""), *layers_before(net, name, 1)]
            yield name, classifier, scores.count // labels.count, origin


# ---- the records that a net reads


def read_records(net: Net, most: int, until: float = math.inf) -> dict[str, Records]:
    """{layer: its records} of the layers that read a database or a list of images.

    most   how many records of each database are read, and labels of each list
    until  time, as time.monotonic() gives it, at which reading ends with fewer
    """
    read: dict[str, Records] = {}
    for name, layer in net.layer_dict.items():
        if isinstance(layer, Data) and layer.reads == "database":
            read[name] = _of_database(layer, most, until)
        elif isinstance(layer, ImageData) and layer.reads == "image list":
            p, labels = layer.param.image_data_param, [label for _, label in layer.lines]
            read[name] = Records(p.source, len(labels), np.array(labels[:most]), max(labels) + 1, 255.0, p.shuffle)
    return read


def _of_database(layer: Data, most: int, until: float) -> Records:
    path, labels, largest = layer.param.data_param.source, [], 0.0
    for number, value in enumerate(islice(layer.database.values(), most)):
        record = parse_datum(value)
        labels.append(record.label)
        if number < DECODED:
            largest = max(largest, float(np.abs(pixels_of(record, None, path).astype(np.float32)).max()))
        if time.monotonic() > until:
            break
    return Records(path, len(layer.database), np.array(labels), None, largest, False)


# ---- the checks


def of_labels(net: Net, records: dict[str, Records]) -> Iterator[Finding]:
    """Labels that the net has no output for, and outputs that no label has."""
    for loss, classifier, outputs, (origin, blob) in heads(net):
        if origin not in records or list(net.top_names[origin]).index(blob) != 1:
            continue
        source, loss_param = records[origin], net.layer_dict[loss].param.loss_param
        labels = source.labels[source.labels != loss_param.ignore_label] if loss_param.HasField("ignore_label") else source.labels
        if not len(labels):
            continue
        low, high = int(labels.min()), max(int(labels.max()), (source.classes or 0) - 1)
        if outputs == 1 and high == 0 and net.layer_dict[loss].applies_softmax:
            found = "one output, for images of one class: it is 1 whatever the image"
            do = "give images of two classes or more: each folder, or each label, is a class"
            yield Finding("error", f'layer "{classifier}"', found, do)
        elif low < 0 or high >= outputs:
            found = f'labels {low} to {high}, but layer "{classifier}" has {outputs} outputs, for labels 0 to {outputs - 1}'
            do = f"set num_output: {high + 1}" if low >= 0 else "correct the labels"
            if low == 1 and high == outputs:
                do = "Caffe's labels start from 0: subtract 1 from each"
            yield Finding("error", source.name, found, do)
        elif (source.whole or source.classes) and high + 1 < outputs:
            found = f'labels {low} to {high}, and layer "{classifier}" has {outputs} outputs: the others are never right'
            yield Finding("warning", source.name, found, f"set num_output: {high + 1}, unless images of the others will follow")
        if low > 0 and source.whole and high < outputs:
            found = f"no label 0: the lowest is {low}"
            yield Finding("warning", source.name, found, "Caffe's labels start from 0: are they shifted?")


def of_order(records: Iterable[Records]) -> Iterator[Finding]:
    """Records that are not shuffled.

    In a shuffled list of n labels, n_c of them of class c, the sum of n_c (n_c - 1) / n neighbours are expected to be equal; six
    standard deviations more than that are not by chance.
    """
    for source in records:
        labels, count = source.labels, len(source.labels)
        if count < 2 or source.shuffled:
            continue
        alike = int((labels[1:] == labels[:-1]).sum())
        expected = sum(many * (many - 1) for many in Counter(labels.tolist()).values()) / count
        share = min(expected / (count - 1), 1.0)
        deviation = math.sqrt((count - 1) * share * (1 - share))
        one_class = share == 1 and not source.whole and (source.classes or 2) > 1
        if one_class or alike > expected + 6 * deviation + 1:
            found = f"not shuffled: of the first {count} records, {alike} have the label of the record before;"
            found += f" about {expected:.0f} would in random order"
            if one_class:
                found = f"the first {count} records all have label {labels[0]}"
            shuffle = "build the database with convert_imageset -shuffle, or set shuffle: true in image_data_param"
            yield Finding("warning", source.name, found, f"batches of few classes train badly: {shuffle}")


def of_inputs(net: Net, records: dict[str, Records]) -> Iterator[Finding]:
    """Inputs as large as pixel values, which nothing rescales."""
    for name, source in records.items():
        p = net.layer_dict[name].param.transform_param
        images = net.graph.tops[list(net.top_names).index(name)][0]
        if any(net.layers[reader].rescales for reader, _ in net.graph.readers[images]):
            continue
        if not p.mean_file and not p.mean_value and source.largest * p.scale > LARGE:
            found = f"inputs reach {source.largest * p.scale:g}, with no mean subtracted and no scale"
            do = "set mean_file, mean_value or scale in transform_param"
            yield Finding("warning", f'{source.name}: layer "{name}"', found, do)

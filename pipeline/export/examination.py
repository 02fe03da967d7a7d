"""What a deploy net is: its format and fork, what runs and can be exported, shapes, memory, operations, and its images."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.message import DecodeError

import caffe
from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.export import onnx_graph
from pipeline.export.onnx_layers import NOT_EXPORTED
from pipeline.export.torch_program import NOT_TRACED
from pipeline.nets import graph
from pipeline.nets.known import KnownNet, forks_of, known_net
from pipeline.nets.parameters import tensors_of

FORMATS = {
    "V0": "V0 (2013: layers { layer { … } })",
    "V1": "V1 (2014: layers { type: CONVOLUTION })",
    "current": "current (since 2015: layer { … })",
}
WIDTH = 110
"""Columns of the report."""


def report(net_file: Path, weights: Path | None) -> None:
    """Print what a net is, on one screen. Raises InputError, after that, if layers are missing, the net does not fit together, or
    the weights are not its own."""
    problems = []
    for name, text in examine(net_file, weights):
        if name == "problem":
            problems.append(text)
            continue
        print(textwrap.fill(text, WIDTH, initial_indent=f"{name:10}", subsequent_indent=" " * 10, break_long_words=False))
    if problems:
        raise InputError(net_file, problems[0])


def examine(net_file: Path, weights: Path | None) -> Iterator[tuple[str, str]]:
    """The lines of the report: (heading, text); a problem is called "problem" and comes last."""
    definition = caffe.read_net(net_file)
    layers = [layer for layer in definition.layer if not _only_in_training(layer)]
    types = [layer.type for layer in layers]
    yield "net", f'"{definition.name}", {_counted(len(layers), "layer")}; {FORMATS[format_of(net_file)]}'
    missing = sorted({name for name in types if name not in caffe.layer_type_list()})
    added = forks_of(name for name in types if name not in missing)
    text = "; ".join(f"{fork}: {', '.join(names)}" for fork, names in added.items())
    yield "fork", text or "none: only layers of BVLC Caffe"
    if missing:
        near = {name: caffe.nearest(name, caffe.layer_type_list()) for name in missing}
        named = [
            f"{layer.name} ({layer.type}{f'; {near[layer.type]}' if near[layer.type] else ''})"
            for layer in layers
            if layer.type in missing
        ]
        yield "missing", f"{_some(named)}: no layer type of that name; write it as a Python layer, or crop the net before it"
    known = known_net(definition)
    if not missing:
        yield from _built(net_file, weights)
    yield "images", _images(known)
    if not missing:
        target = net_file.with_suffix(".onnx").name
        page = f"; docs/{known.page} has an example" if known and known.page else ""
        size = f" --size {known.size[0]}x{known.size[1]}" if known and known.size else ""
        yield "next", f"roastery convert {net_file} {weights or 'WEIGHTS.caffemodel'} {target}{size}{page}"
    if missing:
        yield "problem", f"{_counted(len(missing), 'layer type')} missing: {', '.join(missing)}"


def _built(net_file: Path, weights: Path | None) -> Iterator[tuple[str, str]]:
    """The lines about a net all of whose layers are there."""
    try:
        net = caffe.Net(str(net_file), caffe.TEST)
    except caffe.Error as error:
        yield "layers", "all types are there, but the net cannot be built"
        yield "problem", str(error)
        return
    counts = Counter(layer.type for layer in graph.definition_of(net).layer)
    yield "layers", "all run: " + ", ".join(f"{count} {name}" if count > 1 else name for name, count in counts.most_common())
    yield "export", exportable(net)
    if not net.inputs:
        yield "input", "none: a training net, which reads its own data; give the deploy prototxt"
    for name in net.inputs:
        yield "input", f"{name} {_shape(net.blobs[name].shape)}"
    for name in net.outputs:
        yield "output", f"{name} {_shape(net.blobs[name].shape)}"
    parameters = sum(blob.count for blobs in net.params.values() for blob in blobs)
    yield "cost", _cost(net, parameters)
    if weights:
        yield from _weights(net, weights)
    elif net.params:
        yield "weights", f"not given; a file of about {_bytes(4 * parameters)} is expected"


def format_of(net_file: Path) -> str:
    """The version of a prototxt's format: V0, V1 or current."""
    return _version(caffe.read_prototxt(net_file, caffe_pb2.NetParameter()).layers, "layer")


def _version(old: Iterable[caffe_pb2.V1LayerParameter], inner: str) -> str:
    old = list(old)
    return "V0" if any(layer.HasField(inner) for layer in old) else "V1" if old else "current"


def _only_in_training(layer: caffe_pb2.LayerParameter) -> bool:
    return bool(layer.include) and all(rule.HasField("phase") and rule.phase == caffe.TRAIN for rule in layer.include)


def exportable(net: caffe.Net) -> str:
    """What the net can be converted to, and which layers prevent it."""
    layers = [layer for layer in graph.exported_of(net).layer if not caffe.layer_type(layer.type).is_input]
    parts = []
    for target, refused in (("ONNX (.onnx)", NOT_EXPORTED), ("PyTorch (.pt2)", NOT_TRACED)):
        named = [layer for layer in layers if layer.type in refused]
        if not named:
            parts.append(f"{target}: yes")
            continue
        reason = refused[named[0].type]
        parts.append(f"{target}: not {_some([f'{layer.name} ({layer.type})' for layer in named])}, as {reason}")
    batch = "any" if net.inputs and onnx_graph.takes_any_batch(net) else "the net's own"
    return f"{'; '.join(parts)}; batch size: {batch}"


def operations(net: caffe.Net) -> int:
    """Multiplications with an addition, of convolutions, fully connected and recurrent layers, for the net's batch."""
    total = 0
    for name, layer in net.layer_dict.items():
        kind = caffe.layer_type(layer.type)
        if not net.params.get(name):
            continue
        weight = net.params[name][0].shape
        bottom, top = (net.blobs[names[name][0]].shape for names in (net.bottom_names, net.top_names))
        if kind.drawn_as == "convolution":
            each, channels = (math.prod(bottom), bottom[1]) if kind.is_transposed else (math.prod(top), top[1])
            tensors = tensors_of(layer.param, [blob.data for blob in net.params[name]])
            weights = [values for called, values in tensors.items() if called.endswith("weight")]
            # A layer of several convolutions has them at all places of its top.
            places = each // (channels if len(weights) > 1 else weight[0])
            total += places * sum(values.size for values in weights) * len(net.top_names[name])
        elif kind.is_linear:
            total += math.prod(top) * (math.prod(weight) // layer.param.inner_product_param.num_output)
        elif kind.drawn_as == "inner product":  # recurrent
            matrices = sum(math.prod(blob.shape) for blob in net.params[name] if len(blob.shape) > 1)
            total += math.prod(bottom[: 1 if len(bottom) < 3 else 2]) * matrices
    return total


def _cost(net: caffe.Net, parameters: int) -> str:
    batch = net.blobs[net.inputs[0]].shape[0] if net.inputs and net.blobs[net.inputs[0]].shape else 1
    values = 4 * sum(blob.count for blob in net.blobs.values())
    images = "for the one image of the batch" if batch == 1 else f"per image, of {batch}"
    return (
        f"{_number(operations(net) // batch)} multiply-adds and {_bytes(values // batch)} of blobs {images}; "
        f"{_number(parameters)} parameters, {_bytes(4 * parameters)}"
    )


def _weights(net: caffe.Net, weights: Path) -> Iterator[tuple[str, str]]:
    """Whether the weights are the net's."""
    try:
        copied = net.copy_from(weights)
    except caffe.Error as error:
        yield "weights", f"{weights} does not fit"
        yield "problem", str(error)
        return
    text = f"{weights}: {weights_format(weights)}, {_counted(len(copied.copied), 'layer')} copied"
    if copied.ignored:
        text += f"; not in the net: {_some(list(copied.ignored))}"
    if copied.untouched:
        text += f"; missing in the file: {_some(list(copied.untouched))}"
    yield "weights", text
    if copied.untouched:
        yield "problem", f"{weights} has no weights of {_some(list(copied.untouched))}; give the weights of this net"


def weights_format(weights: Path) -> str:
    """The format of a weights file."""
    content = weights.read_bytes()
    if content.startswith(b"\x89HDF"):
        return "HDF5"
    message = caffe_pb2.WeightsParameter()
    try:
        message.ParseFromString(content)
    except DecodeError as error:
        raise InputError(weights, "not a .caffemodel", do="check that the download is whole") from error
    if any(layer.HasField("layer") for layer in message.layers):
        return "V0 format"
    return "V1 format" if message.layers else "current format"


def _images(known: KnownNet | None) -> str:
    if known is None:
        return (
            "not known: no published net that is known here has these layers. Look for transform_param in the training prototxt "
            "(mean_value, scale, crop_size); most nets take BGR"
        )
    size = f", {known.size[0]}×{known.size[1]}" if known.size else ""
    formula = known.formula() if known.mean or known.scale != 1 else "pixels of 0 to 255"
    note = f"; {known.note}" if known.note else ""
    return f"probably {known.name}'s, as {known.why()}: {known.channels}{size}, {formula}{note}"


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' * (count != 1)}"


def _shape(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape)) or "a number"


def _number(value: int) -> str:
    for size, word in ((10**9, "thousand million"), (10**6, "million"), (10**3, "thousand")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return str(value)


def _bytes(value: int) -> str:
    return f"{value / 1e6:.3g} MB" if value >= 10**5 else f"{value / 1e3:.3g} kB"

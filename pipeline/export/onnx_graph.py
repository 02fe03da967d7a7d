"""Build an ONNX model of a net: its inputs, outputs, initialisers and nodes; pipeline.export.onnx_… convert the layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper

import caffe
from pipeline.errors import InputError
from pipeline.export import (  # they register converters
    onnx_deformable,  # noqa: F401
    onnx_detection,
    onnx_forks,  # noqa: F401
    onnx_regions,  # noqa: F401
    onnx_sequences,
    onnx_yolo,  # noqa: F401
)
from pipeline.export.onnx_layers import NOT_EXPORTED
from pipeline.export.onnx_part import CONVERTERS, Part
from pipeline.nets import graph

OLDEST, OPSET, LATEST = 17, 17, 26
"""Versions of ONNX's operators: the oldest that is written, the default (docs/leaving.md says why), and the latest, that the
pinned onnxruntime computes."""


@dataclass(frozen=True)
class Form:
    """How a net is exported.

    opset  version of ONNX's operators, OLDEST to LATEST
    batch  "free": the batch size is free and called N; a number: it is that, and the net is reshaped; None: free if the net takes
           any batch size, else the net's own
    half   parameters and most layers in float16; inputs and outputs remain float32
    """

    opset: int = OPSET
    batch: int | str | None = None
    half: bool = False


def model(net: caffe.Net, metadata: Mapping[str, str] | None = None, form: Form = Form()) -> onnx.ModelProto:
    """The net as an ONNX model with the names of its blobs, and initialisers LAYER.weight, LAYER.bias and so on.

    The last value of a blob that in-place layers change has its name, earlier ones are BLOB@LAYER. `metadata`: metadata_props.
    Raises InputError for layers without an ONNX equivalent, all of them named.
    """
    return model_and_values(net, metadata, form)[0]


Values = dict[str, tuple[list[str], list[str]]]
"""{layer: names that its bottoms and its tops have in a model}."""


def model_and_values(net: caffe.Net, metadata: Mapping[str, str] | None, form: Form) -> tuple[onnx.ModelProto, Values]:
    """`model`, and the names of the values of layers whose number of rows depends on values."""
    opset, batch, half = form.opset, form.batch, form.half
    if isinstance(batch, int):
        set_batch(net, batch)
    definition = graph.exported_of(net)
    joined = caffe.NetGraph(definition.layer)
    refuse_missing(net, joined, NOT_EXPORTED)
    free = batch in (None, "free") and takes_any_batch(net)
    if batch == "free" and not free:
        raise fixed_batch(net)
    converted = _Converted(net, joined, opset, half)
    uncertain = rows_of_values(joined)
    inputs = [_value_info(name, net, free) for name in net.inputs]
    outputs = [_value_info(name, net, free, joined.last[name] in uncertain) for name in net.outputs]
    name = definition.name or "net"
    whole = helper.make_graph(converted.nodes, name, inputs, outputs, converted.initializers, doc_string=f"Caffe net {name}")
    opsets = [helper.make_opsetid("", opset)]
    version = helper.find_min_ir_version_for(opsets)
    result = helper.make_model(whole, opset_imports=opsets, ir_version=version, producer_name="roastery")
    helper.set_model_props(result, dict(metadata or {}))
    return result, converted.deciding


CROP = "remove it from the deploy prototxt, and compute what follows from the blob before it"


def refuse_missing(net: caffe.Net, joined: caffe.NetGraph, missing: Mapping[str, str], do: str = CROP) -> None:
    """Raise InputError if layers of the net are of types in `missing`, {type: reason}; one message names them all."""
    named = [layer for layer in joined.layers if layer.type in missing and not caffe.layer_type(layer.type).is_input]
    if named:
        first, *others = named
        also = f" (and {len(others)} more: {', '.join(layer.name for layer in others)})" if others else ""
        raise InputError(
            f'{net.path}: layer "{first.name}"',
            f"type {first.type}{also}",
            missing[first.type],
            do,
        )


def fixed_batch(net: caffe.Net) -> InputError:
    """The error of a net whose batch size is to be free, and is not."""
    do = "leave --batch out for the net's own, or give --batch and a number"
    return InputError(net.path, "the net fixes its batch size", "with --batch free it must take any", do)


def set_size(net: caffe.Net, height: int, width: int) -> None:
    """Reshape the inputs that are images; raises InputError if there are none, or if the net needs another size."""
    images = [name for name in net.inputs if len(net.blobs[name].shape) == 4]
    if not images:
        raise InputError(net.path, "no input of images (N, C, H, W)", "only their size can be chosen", "leave out --size")
    own = "×".join(map(str, net.blobs[images[0]].shape[2:]))
    try:
        for name in images:
            net.blobs[name].reshape(*net.blobs[name].shape[:2], height, width)
        net.reshape()
    except caffe.Error as error:
        raise InputError(net.path, f"no images of {height}×{width} ({error})", do=f"the net's own size is {own}") from error


def set_batch(net: caffe.Net, batch: int) -> None:
    """Reshape the inputs whose first axis is the batch, that of the first input; raises InputError if the net fixes another."""
    shapes = {name: tuple(net.blobs[name].shape) for name in net.inputs}
    own = next(iter(shapes.values()))[0]
    try:
        for name, shape in shapes.items():
            net.blobs[name].reshape(*((batch, *shape[1:]) if shape[0] == own else shape))
        net.reshape()
    except caffe.Error as error:
        raise InputError(net.path, f"no batch of {batch} images ({error})", do=f"the net's own is {own}") from error


def rows_of_values(joined: caffe.NetGraph) -> set[Any]:
    """The values whose number of rows depends on other values: of detections, proposals, filtered images, and what follows."""
    uncertain: set[Any] = set()
    for layer, bottoms, tops in zip(joined.layers, joined.bottoms, joined.tops, strict=True):
        if layer.type in onnx_detection.ROWS_OF_VALUES or uncertain.intersection(bottoms):
            uncertain.update(tops)
    return uncertain


def _value_info(blob: str, net: caffe.Net, free: bool, uncertain: bool = False) -> onnx.ValueInfoProto:
    shape: list[int | str] = [*net.blobs[blob].shape]
    if uncertain and shape:
        shape[2 if shape[:2] == [1, 1] and len(shape) == 4 else 0] = "rows"
    elif free and shape:
        shape[0] = "N"
    return helper.make_tensor_value_info(blob, TensorProto.FLOAT, shape)


def takes_any_batch(net: caffe.Net) -> bool:
    """Whether the outputs have the batch size of the inputs, whatever it is, or as many rows as there are detections."""
    shapes = {name: tuple(net.blobs[name].shape) for name in net.inputs}
    batches = {shape[0] for shape in shapes.values() if shape}
    if len(batches) != 1 or not all(shapes.values()):
        return False
    joined = caffe.NetGraph(graph.exported_of(net).layer)
    detectors = (tops for layer, tops in zip(joined.layers, joined.tops, strict=True) if layer.type in onnx_detection.DETECTIONS)
    detections = {value.blob for tops in detectors for value in tops}
    steps = [layer.bottom[0] for layer in joined.layers if layer.type in onnx_sequences.STEPS and layer.bottom]

    def measured() -> tuple[list[tuple[int, ...]], list[int]]:
        outputs = [tuple(net.blobs[name].shape) for name in net.outputs if name not in detections]
        return outputs, [onnx_sequences.steps_of(net, name) for name in steps]

    before, lengths = measured()
    more = batches.pop() + 1
    try:
        for name, shape in shapes.items():
            net.blobs[name].reshape(more, *shape[1:])
        net.reshape()
        after, longer = measured()
    except caffe.Error:
        return False
    finally:
        for name, shape in shapes.items():
            net.blobs[name].reshape(*shape)
        net.reshape()
    return longer == lengths and after == [(more, *shape[1:]) for shape in before]


class _Converted:
    """The nodes and initialisers of a net's layers."""

    def __init__(self, net: caffe.Net, joined: caffe.NetGraph, opset: int, half: bool):
        self.net = net
        self.joined = joined
        self.opset, self.half = opset, half
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.names: dict[Any, str] = {}
        self.halves: set[str] = set()
        """Names of float16 values."""
        self.casts: dict[tuple[str, bool], str] = {}
        self.deciding: Values = {}
        for number, layer in enumerate(joined.layers):
            if caffe.layer_type(layer.type).is_input:
                self.names |= {value: value.blob for value in joined.tops[number]}
            else:
                self.convert(number)
        for name in net.outputs:
            value = self.names[joined.last[name]]
            if value in self.halves:
                self.nodes.append(helper.make_node("Cast", [value], [name], f"{name}:output", to=TensorProto.FLOAT))
            elif value != name:
                self.nodes.append(helper.make_node("Identity", [value], [name], f"{name}:output"))

    def own_name(self, value: Any, half: bool) -> str:
        """The blob's name for its last version, unless an input has it or it is a float16 output; else BLOB@LAYER."""
        is_last = value == self.joined.last[value.blob] and value.blob not in self.net.inputs
        is_cast = half and value.blob in self.net.outputs
        return value.blob if is_last and not is_cast else f"{value.blob}@{self.joined.layers[value.layer].name}"

    def cast(self, name: str, half: bool) -> str:
        """The name of a value in float16 or float32, which is converted once."""
        if (name in self.halves) == half:
            return name
        if (name, half) not in self.casts:
            target = f"{name}:{'half' if half else 'single'}"
            to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
            self.nodes.append(helper.make_node("Cast", [name], [target], target, to=to))
            self.casts[name, half] = target
            if half:
                self.halves.add(target)
        return self.casts[name, half]

    def convert(self, number: int) -> None:
        """Add a layer's nodes and initialisers; its tops have their own names unless they are its bottoms unchanged."""
        layer, values = self.joined.layers[number], self.joined.tops[number]
        part = Part(self.net, layer, self.opset, self.half)
        bottoms = [self.cast(self.names[value], part.half) for value in self.joined.bottoms[number]]
        tops = CONVERTERS[layer.type](part, *bottoms)
        tops = [tops] if isinstance(tops, str) else list(tops)
        called = {top: self.own_name(value, part.half) for top, value in zip(tops, values, strict=True) if top not in bottoms}
        for made in part.nodes:
            made.input[:] = [called.get(name, name) for name in made.input]
            made.output[:] = [called.get(name, name) for name in made.output]
        self.nodes += part.nodes
        self.initializers += part.initializers
        self.names |= {value: called.get(top, top) for value, top in zip(values, tops, strict=True)}
        if part.half:
            self.halves.update(called.values())
        if layer.type in onnx_detection.ROWS_OF_VALUES:
            self.deciding[layer.name] = bottoms, [self.names[value] for value in values]

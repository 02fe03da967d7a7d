"""Build an ONNX model of a net: its inputs, outputs, initialisers and nodes; pipeline.export.onnx_layers converts the layers."""

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import TensorProto, helper

import caffe
from pipeline.export.onnx_layers import CONVERTERS, NOT_EXPORTED
from pipeline.export.onnx_part import Part
from pipeline.nets import graph

OPSET = 26
"""The latest opset that the pinned onnxruntime computes."""


def model(net: caffe.Net, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """The net as an ONNX model with the names of its blobs, and initialisers LAYER.weight, LAYER.bias and so on.

    If the net takes any batch size, it is free and called N. The last value of a blob that in-place layers change has its name,
    earlier ones are BLOB@LAYER. Raises InputError for a layer without an ONNX equivalent. `metadata`: metadata_props.
    """
    definition = graph.definition_of(net)
    converted = _Converted(net, caffe.NetGraph(definition.layer))
    free = _takes_any_batch(net)
    inputs, outputs = ([_value_info(name, net, free) for name in names] for names in (net.inputs, net.outputs))
    name = definition.name or "net"
    whole = helper.make_graph(converted.nodes, name, inputs, outputs, converted.initializers, doc_string=f"Caffe net {name}")
    opsets = [helper.make_opsetid("", OPSET)]
    version = helper.find_min_ir_version_for(opsets)
    result = helper.make_model(whole, opset_imports=opsets, ir_version=version, producer_name="roastery")
    helper.set_model_props(result, dict(metadata or {}))
    return result


def _value_info(blob: str, net: caffe.Net, free: bool) -> onnx.ValueInfoProto:
    shape = [*net.blobs[blob].shape]
    return helper.make_tensor_value_info(blob, TensorProto.FLOAT, ["N", *shape[1:]] if free else shape)


def _takes_any_batch(net: caffe.Net) -> bool:
    """Whether the outputs have the batch size of the inputs, whatever it is."""
    shapes = {name: tuple(net.blobs[name].shape) for name in net.inputs}
    batches = {shape[0] for shape in shapes.values() if shape}
    if len(batches) != 1 or not all(shapes.values()):
        return False
    before = [tuple(net.blobs[name].shape) for name in net.outputs]
    more = batches.pop() + 1
    try:
        for name, shape in shapes.items():
            net.blobs[name].reshape(more, *shape[1:])
        net.reshape()
        after = [tuple(net.blobs[name].shape) for name in net.outputs]
    except caffe.Error:
        return False
    finally:
        for name, shape in shapes.items():
            net.blobs[name].reshape(*shape)
        net.reshape()
    return after == [(more, *shape[1:]) for shape in before]


class _Converted:
    """The nodes and initialisers of a net's layers."""

    def __init__(self, net: caffe.Net, joined: caffe.NetGraph):
        self.net = net
        self.joined = joined
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.names: dict[Any, str] = {}
        for number, layer in enumerate(joined.layers):
            if caffe.layer_type(layer.type).is_input:
                self.names |= {value: value.blob for value in joined.tops[number]}
            else:
                self.convert(number)
        for name in net.outputs:
            value = self.names[joined.last[name]]
            if value != name:
                self.nodes.append(helper.make_node("Identity", [value], [name], name))

    def own_name(self, value: Any) -> str:
        """The blob's name for its last version, unless an input has it; else BLOB@LAYER."""
        is_last = value == self.joined.last[value.blob] and value.blob not in self.net.inputs
        return value.blob if is_last else f"{value.blob}@{self.joined.layers[value.layer].name}"

    def convert(self, number: int) -> None:
        """Add a layer's nodes and initialisers; its tops have their own names unless they are its bottoms unchanged."""
        layer, values = self.joined.layers[number], self.joined.tops[number]
        part = Part(self.net, layer)
        if layer.type not in CONVERTERS:
            raise part.error(f"type {layer.type}", NOT_EXPORTED[layer.type], "crop the net before this layer")
        bottoms = [self.names[value] for value in self.joined.bottoms[number]]
        tops = CONVERTERS[layer.type](part, *bottoms)
        tops = [tops] if isinstance(tops, str) else list(tops)
        called = {top: self.own_name(value) for top, value in zip(tops, values, strict=True) if top not in bottoms}
        for made in part.nodes:
            made.input[:] = [called.get(name, name) for name in made.input]
            made.output[:] = [called.get(name, name) for name in made.output]
        self.nodes += part.nodes
        self.initializers += part.initializers
        self.names |= {value: called.get(top, top) for value, top in zip(values, tops, strict=True)}

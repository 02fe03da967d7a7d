"""A net as an ONNX model: its values, initialisers and nodes; what each layer becomes is in pipeline.export.onnx_layers."""

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
    """The net as an ONNX model with the names of its blobs, and initialisers LAYER.weight, LAYER.bias and the like.

    The batch is any where the net takes any, and is called N. A blob that layers in place write to has its last value's name; an
    earlier value is BLOB@LAYER. A layer that ONNX has no counterpart for is an error.
    metadata  metadata_props
    """
    definition = graph.definition_of(net)
    made = _Made(net, caffe.NetGraph(definition.layer))
    free = _takes_any_batch(net)
    inputs = [_described(name, net, free) for name in net.inputs]
    outputs = [_described(name, net, free) for name in net.outputs]
    name = definition.name or "net"
    described = helper.make_graph(made.nodes, name, inputs, outputs, made.initializers, doc_string=f"Caffe net {name}")
    opsets = [helper.make_opsetid("", OPSET)]
    result = helper.make_model(
        described, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets), producer_name="roastery"
    )
    helper.set_model_props(result, dict(metadata or {}))
    return result


def _described(blob: str, net: caffe.Net, free: bool) -> onnx.ValueInfoProto:
    batch, *rest = net.blobs[blob].shape or (None,)
    return helper.make_tensor_value_info(blob, TensorProto.FLOAT, [] if batch is None else ["N" if free else batch, *rest])


def _takes_any_batch(net: caffe.Net) -> bool:
    """Whether another batch gives outputs of that batch."""
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


class _Made:
    """Nodes and initialisers of the layers so far."""

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
        """Add what a layer becomes; its tops have their own names unless they are its bottoms unchanged."""
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

"""A net as an ONNX model: its values, initialisers and nodes; what each layer becomes is in pipeline.export.onnx_layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import caffe
from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.export.onnx_layers import CONVERTERS
from pipeline.nets import graph
from pipeline.nets.graph import Node, Value
from pipeline.nets.parameters import tensors_of

OPSET = 26
"""The latest opset that the pinned onnxruntime computes."""


def model(net: caffe.Net, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """The net as an ONNX model with the names of its blobs, and initialisers LAYER.weight, LAYER.bias and the like.

    The batch is any where the net takes any, and is called N. A blob that layers in place write to has its last value's name; an
    earlier value is BLOB@LAYER. A layer that ONNX has no counterpart for is an error.
    metadata  metadata_props
    """
    definition = graph.definition_of(net)
    made = _Made(net, graph.nodes(definition))
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

    def __init__(self, net: caffe.Net, layers: Sequence[Node]):
        self.net = net
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.names: dict[Value, str] = {}
        last = dict(value for node in layers for value in node.tops)
        for node in layers:
            if node.layer.type == "Input":
                self.names |= {value: value[0] for value in node.tops}
                last |= {name: 0 for name, _ in node.tops}
            else:
                self.convert(node, [self.own_name(value, node, last) for value in node.tops])
        for name in net.outputs:
            value = self.names[name, max(number for blob, number in self.names if blob == name)]
            if value != name:
                self.nodes.append(helper.make_node("Identity", [value], [name], name))

    @staticmethod
    def own_name(value: Value, node: Node, last: dict[str, int]) -> str:
        blob, number = value
        return blob if last[blob] == number else f"{blob}@{node.layer.name}"

    def convert(self, node: Node, names: list[str]) -> None:
        """Add what a layer becomes; its tops are called `names` unless they are its bottoms unchanged."""
        part = Part(self.net, node)
        if node.layer.type not in CONVERTERS:
            raise part.error(f"type {node.layer.type}", "the export has no counterpart for it", "crop the net before this layer")
        bottoms = [self.names[value] for value in node.bottoms]
        tops = CONVERTERS[node.layer.type](part, *bottoms)
        tops = [tops] if isinstance(tops, str) else list(tops)
        called = {top: name for top, name in zip(tops, names, strict=True) if top not in bottoms}
        for made in part.nodes:
            made.input[:] = [called.get(name, name) for name in made.input]
            made.output[:] = [called.get(name, name) for name in made.output]
        self.nodes += part.nodes
        self.initializers += part.initializers
        self.names |= {value: called.get(top, top) for value, top in zip(node.tops, tops, strict=True)}


class Part:
    """What one layer becomes, while it is being made.

    param         the layer
    tensors       {name: values} of its parameters
    shapes, tops  shapes of its bottoms and of its tops, with the net's own batch
    """

    def __init__(self, net: caffe.Net, node: Node):
        self.param: caffe_pb2.LayerParameter = node.layer
        self.tensors = tensors_of(node.layer, [blob.data for blob in net.params.get(node.layer.name, [])])
        self.shapes = [tuple(net.blobs[name].shape) for name, _ in node.bottoms]
        self.tops = [tuple(net.blobs[name].shape) for name, _ in node.tops]
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.where = f'{net.path}: layer "{node.layer.name}"'

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes) -> str | list[str]:
        """Add a node; the name of its output, or names of its outputs."""
        name = self.param.name + (f"/{len(self.nodes)}" if self.nodes else "")
        made = [f"{name}:{slot}" for slot in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, made, name, **attributes))
        return made[0] if outputs == 1 else made

    def tensor(self, name: str, values: np.ndarray | None = None) -> str:
        """An initialiser LAYER.NAME; by default the layer's parameter of that name, as it is."""
        values = np.ascontiguousarray(self.tensors[name] if values is None else values)
        self.initializers.append(numpy_helper.from_array(values, f"{self.param.name}.{name}"))
        return self.initializers[-1].name

    def number(self, name: str, value: float) -> str:
        """An initialiser LAYER.NAME of one number, float32."""
        return self.tensor(name, np.float32(value))

    def whole(self, name: str, values: Sequence[int]) -> str:
        """An initialiser LAYER.NAME of whole numbers."""
        return self.tensor(name, np.array(values, np.int64))

    def axis(self, axis: int, bottom: int = 0) -> int:
        """A possibly negative axis of a bottom, from 0."""
        return axis % len(self.shapes[bottom])

    def error(self, found: str, expected: str, do: str = "") -> InputError:
        return InputError(self.where, found, expected, do)

"""Part: the nodes and initialisers of one layer in an ONNX model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

import caffe
from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.nets.parameters import tensors_of


class Part:
    """The nodes and initialisers of one layer, added by its converter.

    param, layer  its LayerParameter, and the layer object in the net
    tensors       {name: values} of its parameters
    shapes, tops  shapes of its bottoms and of its tops, with the net's own batch
    """

    def __init__(self, net: caffe.Net, layer: caffe_pb2.LayerParameter):
        self.param = layer
        self.layer: Any = net.layer_dict[layer.name]
        self.tensors = tensors_of(layer, [blob.data for blob in net.params.get(layer.name, [])])
        self.shapes = [tuple(net.blobs[name].shape) for name in layer.bottom]
        self.tops = [tuple(net.blobs[name].shape) for name in layer.top]
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.where = f'{net.path}: layer "{layer.name}"'

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node; return the name of its first output."""
        name = self.param.name + (f"/{len(self.nodes)}" if self.nodes else "")
        names = [f"{name}:{slot}" for slot in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, name, **attributes))
        return names[0]

    def tensor(self, name: str, values: np.ndarray | np.float32 | None = None) -> str:
        """Add an initialiser LAYER.NAME, by default the layer's parameter of that name; return its name."""
        values = np.ascontiguousarray(self.tensors[name] if values is None else values)
        self.initializers.append(numpy_helper.from_array(values, f"{self.param.name}.{name}"))
        return self.initializers[-1].name

    def number(self, name: str, value: float) -> str:
        """Add an initialiser LAYER.NAME that is a float32 scalar."""
        return self.tensor(name, np.float32(value))

    def whole(self, name: str, values: Sequence[int]) -> str:
        """Add an initialiser LAYER.NAME of int64 values."""
        return self.tensor(name, np.array(values, np.int64))

    def error(self, found: str, expected: str, do: str = "") -> InputError:
        return InputError(self.where, found, expected, do)

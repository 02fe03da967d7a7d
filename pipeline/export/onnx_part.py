"""Part: the nodes and initialisers that one layer becomes in an ONNX model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import onnx
from onnx import helper, numpy_helper

import caffe
from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.nets.parameters import tensors_of


class Part:
    """What one layer becomes, while it is being made.

    param, layer  its LayerParameter, and the layer that the net has made of it
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

    @overload
    def add(self, operator: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]: ...

    @overload
    def add(self, operator: str, *inputs: str, **attributes: Any) -> str: ...

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str | list[str]:
        """Add a node; the name of its output, or names of its outputs."""
        name = self.param.name + (f"/{len(self.nodes)}" if self.nodes else "")
        made = [f"{name}:{slot}" for slot in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, made, name, **attributes))
        return made[0] if outputs == 1 else made

    def tensor(self, name: str, values: np.ndarray | np.float32 | None = None) -> str:
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

    def error(self, found: str, expected: str, do: str = "") -> InputError:
        return InputError(self.where, found, expected, do)

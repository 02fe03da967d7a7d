"""Part: the nodes and initialisers of one layer in an ONNX model; CONVERTERS: the functions that add them, by layer type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import caffe
from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.nets.parameters import tensors_of

Converter = TypeVar("Converter", bound=Callable[..., str | list[str]])
CONVERTERS: dict[str, Callable[..., str | list[str]]] = {}
"""By layer type: functions of a Part and the names of its bottoms that return the name of its top, or those of its tops."""
SINGLE_PRECISION: dict[str, Callable[[caffe_pb2.LayerParameter], bool]] = {}
"""Types that compute in float32 in a float16 model, too, and in which of their layers: their pixels, indices, exponentials or
sums are beyond its range."""


def converts(
    *types: str, single_precision: bool | Callable[[caffe_pb2.LayerParameter], bool] = False
) -> Callable[[Converter], Converter]:
    """Decorator: register a converter of these layer types."""

    def decorate(function: Converter) -> Converter:
        CONVERTERS.update(dict.fromkeys(types, function))
        if single_precision:
            SINGLE_PRECISION.update(dict.fromkeys(types, single_precision if callable(single_precision) else _always))
        return function

    return decorate


def _always(param: caffe_pb2.LayerParameter) -> bool:
    return True


class Part:
    """The nodes and initialisers of one layer, added by its converter.

    param, layer  its LayerParameter, and the layer object in the net
    tensors       {name: values} of its parameters
    shapes, tops  shapes of its bottoms and of its tops, with the net's own batch
    opset         version of ONNX's operators
    half          whether the layer computes in float16
    """

    def __init__(self, net: caffe.Net, layer: caffe_pb2.LayerParameter, opset: int, half: bool = False):
        self.opset = opset
        self.half = half and not (layer.type in SINGLE_PRECISION and SINGLE_PRECISION[layer.type](layer))
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

    @property
    def float_type(self) -> int:
        """ONNX's type of the layer's values."""
        return TensorProto.FLOAT16 if self.half else TensorProto.FLOAT

    def reduce(self, operator: str, x: str, axes: Sequence[int], keepdims: int = 1) -> str:
        """Add a reduction (ReduceMean …); its axes are an input from opset 18 on (ReduceSum's from 13 on)."""
        if self.opset >= 18 or operator == "ReduceSum":
            return self.add(operator, x, self.whole("axes", axes), keepdims=keepdims)
        return self.add(operator, x, axes=list(axes), keepdims=keepdims)

    def slice(self, x: str, axes: Sequence[int], starts: Sequence[int], ends: Sequence[int], steps: Sequence[int] = ()) -> str:
        """Add a Slice: along each of the axes from a start to before an end."""
        given = {"starts": starts, "ends": ends, "axes": axes, **({"steps": steps} if steps else {})}
        return self.add("Slice", x, *[self.whole(name, values) for name, values in given.items()])

    def columns(self, x: str, first: int, last: int) -> str:
        """Add a Slice: columns `first` to before `last` of the last axis."""
        return self.slice(x, [-1], [first], [last])

    def resize(self, x: str, old: Sequence[int], new: Sequence[int], **attributes: Any) -> str:
        """Add a Resize of maps of height and width `old` to those of `new`.

        By scales, as a free batch size has no constant: ONNX rounds their products down.
        """
        scales = [1.0, 1.0]
        for before, after in zip(old, new, strict=True):
            exact = float(np.float32(after / before))
            scales.append(exact if int(np.float32(exact) * np.float32(before)) == after else (after + 0.5) / before)
        return self.add("Resize", x, "", self.tensor("scales", np.array(scales, np.float32), exact=True), **attributes)

    def tensor(self, name: str, values: np.ndarray | np.generic | None = None, exact: bool = False) -> str:
        """Add an initialiser LAYER.NAME, by default the layer's parameter of that name; return its name.

        A name that the layer has already gets a number. In a float16 model float32 values are rounded, unless they are `exact`.
        """
        array = np.asarray(self.tensors[name] if values is None else values, order="C")
        if self.half and array.dtype == np.float32 and not exact:
            largest = np.abs(array).max(initial=0)
            if largest > np.finfo(np.float16).max:
                raise self.error(f"{name} up to {largest:g}", "float16 ends at 65504", "leave out --fp16")
            array = array.astype(np.float16)
        taken = {initializer.name for initializer in self.initializers}
        called = f"{self.param.name}.{name}"
        if called in taken:
            called = next(f"{called}{count}" for count in range(2, len(taken) + 3) if f"{called}{count}" not in taken)
        self.initializers.append(numpy_helper.from_array(array, called))
        return called

    def number(self, name: str, value: float) -> str:
        """Add an initialiser LAYER.NAME that is a scalar of the layer's type."""
        return self.tensor(name, np.float32(value))

    def whole(self, name: str, values: Sequence[int] | int) -> str:
        """Add an initialiser LAYER.NAME of int64 values, or of one."""
        return self.tensor(name, np.array(values, np.int64))

    def error(self, found: str, expected: str, do: str = "") -> InputError:
        return InputError(self.where, found, expected, do)

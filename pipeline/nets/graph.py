"""A net's layers as a prototxt has them, with the values told apart that share a blob's name; and nets made of changed layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import caffe
from caffe.proto import caffe_pb2
from pipeline.errors import InputError

Value = tuple[str, int]
"""A blob's name, and how many layers wrote to it before: conv1 before and after a ReLU in place."""


@dataclass(frozen=True)
class Node:
    """A layer with the values that it takes and makes."""

    layer: caffe_pb2.LayerParameter
    bottoms: tuple[Value, ...]
    tops: tuple[Value, ...]


def definition_of(net: caffe.Net) -> caffe_pb2.NetParameter:
    """The layers of a net in its phase, as a deploy prototxt has them: without the inserted Split layers, and without fillers."""
    definition = caffe_pb2.NetParameter()
    definition.CopyFrom(net.definition)
    definition.ClearField("state")
    del definition.layer[:]
    whole: dict[str, str] = {}
    for param in net.definition.layer:
        if param.type == "Split":
            whole |= dict.fromkeys(param.top, whole.get(param.bottom[0], param.bottom[0]))
            continue
        layer = definition.layer.add()
        layer.CopyFrom(param)
        layer.bottom[:] = [whole.get(name, name) for name in param.bottom]
        for field in ("phase", "include", "exclude"):
            layer.ClearField(field)
        for name in ("convolution_param", "inner_product_param"):
            if layer.HasField(name):
                for filler in ("weight_filler", "bias_filler"):
                    getattr(layer, name).ClearField(filler)
    return definition


def nodes(definition: caffe_pb2.NetParameter) -> list[Node]:
    """The layers in order, with their values."""
    writes: dict[str, int] = {}
    found = []
    for layer in definition.layer:
        bottoms = tuple((name, writes[name]) for name in layer.bottom)
        for name in layer.top:
            writes[name] = writes.get(name, -1) + 1
        found.append(Node(layer, bottoms, tuple((name, writes[name]) for name in layer.top)))
    return found


def made(definition: caffe_pb2.NetParameter, blobs: dict[str, list[np.ndarray]]) -> caffe.Net:
    """The net of these layers, for testing, with these parameters.

    blobs  {layer: arrays of its parameters}; every layer that has parameters is among them
    """
    net = caffe.Net(definition, caffe.TEST)
    for name, targets in net.params.items():
        for target, values in zip(targets, blobs[name], strict=True):
            if target.data.shape != values.shape:
                raise InputError(
                    f'layer "{name}"', f"a parameter of shape {values.shape}", f"the net made of it wants {target.data.shape}"
                )
            target.data[...] = values
    return net


def blobs_of(net: caffe.Net) -> dict[str, list[np.ndarray]]:
    """{layer: arrays of its parameters}, without copying."""
    return {name: [blob.data for blob in blobs] for name, blobs in net.params.items()}

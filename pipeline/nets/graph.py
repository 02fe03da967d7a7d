"""The layers of a net as in a deploy prototxt, and nets built from changed layers."""

from __future__ import annotations

from typing import Any

import numpy as np

import caffe
from caffe.proto import caffe_pb2
from pipeline.errors import InputError


def definition_of(net: caffe.Net) -> caffe_pb2.NetParameter:
    """The layers of a net in its phase, as in a deploy prototxt: without the inserted Split layers, and without fillers."""
    definition = caffe_pb2.NetParameter()
    definition.CopyFrom(net.definition)
    definition.ClearField("state")
    definition.ClearField("layer")
    whole: dict[str, str] = {}  # by the names of its copies
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


def exported_of(net: caffe.Net) -> caffe_pb2.NetParameter:
    """`definition_of`, in which the built-in version of rpn.proposal_layer is the Proposal layer that it is a form of."""
    definition = definition_of(net)
    for layer in definition.layer:
        built: Any = net.layer_dict[layer.name]
        if layer.type == "Python" and issubclass(type(built), caffe.layer_type("Proposal")):
            layer.type = "Proposal"
            layer.proposal_param.CopyFrom(built.settings)
    return definition


def made(definition: caffe_pb2.NetParameter, blobs: dict[str, list[np.ndarray]]) -> caffe.Net:
    """The net of these layers and parameters, in phase TEST.

    blobs  {layer: arrays of its parameters}, with every layer that has parameters
    """
    net = caffe.Net(definition, caffe.TEST)
    for name, targets in net.params.items():
        for target, values in zip(targets, blobs[name], strict=True):
            if target.data.shape != values.shape:
                expected = f"the net's has shape {target.data.shape}"
                raise InputError(f'layer "{name}"', f"a parameter of shape {values.shape}", expected)
            target.data[...] = values
    return net


def blobs_of(net: caffe.Net) -> dict[str, list[np.ndarray]]:
    """{layer: arrays of its parameters}, without copying."""
    return {name: [blob.data for blob in blobs] for name, blobs in net.params.items()}

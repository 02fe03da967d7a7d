"""Load a trained net: a prototxt and the weights of all of its layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import caffe
from pipeline.errors import InputError
from pipeline.formats import digests


def load_net(net_file: Path, weights: Path) -> caffe.Net:
    """A net in the TEST phase with all of its weights, a .caffemodel or .caffemodel.h5."""
    net = caffe.Net(str(net_file), caffe.TEST)
    copy_all_weights(net, weights, net_file)
    return net


def copy_all_weights(net: caffe.Net, weights: Path, net_file: Path) -> list[str]:
    """Copy the weights of all layers of a net, `net_file` in errors; return the layers of the file that it does not have.

    Raises InputError if a layer of the net has no weights in the file.
    """
    digests.check(Path(weights))
    report = net.copy_from(weights)
    if report.untouched:
        expected = f"{net_file} has {'them' if len(report.untouched) > 1 else 'it'}"
        do = caffe.nearest(report.untouched[0], [*report.copied, *report.ignored]) or "give the weights of this net"
        raise InputError(weights, f"no weights of {layer_names(report.untouched)}", expected, do)
    return list(report.ignored)


def outputs_of(net: caffe.Net, net_file: Path | str, inputs: np.ndarray, classes: int) -> np.ndarray:
    """The net's first output, inputs × classes. Raises InputError if it has another number of classes."""
    net.blobs[net.inputs[0]].reshape(*inputs.shape)
    net.blobs[net.inputs[0]].data[...] = inputs
    outputs: np.ndarray = net.forward()[net.outputs[0]].reshape(len(inputs), -1).copy()
    if outputs.shape[1] != classes:
        raise InputError(net_file, f"{outputs.shape[1]} outputs", f"there are {classes} class names", "give this net's labels")
    return outputs


def layer_names(layers: list[str]) -> str:
    """The first five layers, for messages."""
    return f"layer{'s' * (len(layers) > 1)} {', '.join(layers[:5])}" + (" …" if len(layers) > 5 else "")

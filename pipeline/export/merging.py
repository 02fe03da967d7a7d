"""Net surgery: BatchNorm, Scale and Bias become part of the convolution or fully connected layer before them."""

from __future__ import annotations

import numpy as np

import caffe
from caffe.proto import caffe_pb2
from pipeline.nets import graph
from pipeline.nets.parameters import tensors_of


def merged(net: caffe.Net) -> tuple[caffe.Net, list[str], list[str]]:
    """The net without the layers that can be merged; those layers, and the BatchNorm layers that stay.

    A linear layer takes in what alone reads its top, as long as that multiplies and adds channel by channel with numbers that
    are known: BatchNorm by its averages, Scale, Bias. What a layer after an activation, a sum or a concatenation does stays.
    """
    definition = graph.definition_of(net)
    joined = caffe.NetGraph(definition.layer)
    # Other layers may use parameters that have a name.
    shared = {layer.name for layer in definition.layer if any(spec.name for spec in layer.param)}
    blobs = dict(graph.blobs_of(net))
    gone: list[str] = []
    for layer, tops in zip(joined.layers, joined.tops, strict=True):
        if not _takes_in(net, layer) or layer.name in shared:
            continue
        (value,) = tops
        factor, term, before = np.ones(1), np.zeros(1), len(gone)
        while len(joined.readers[value]) == 1:
            ((number, _),) = joined.readers[value]
            reader = joined.layers[number]
            found = _per_channel(net, reader)
            if found is None:
                break
            factor, term = factor * found[0], term * found[0] + found[1]
            (value,) = joined.tops[number]
            layer.top[0] = reader.top[0]
            gone.append(reader.name)
        if len(gone) > before:
            blobs[layer.name] = _scaled(layer, blobs[layer.name], factor, term)
    stay = [layer for layer in definition.layer if layer.name not in gone]
    kept = caffe_pb2.NetParameter()
    kept.CopyFrom(definition)
    del kept.layer[:]
    kept.layer.extend(stay)
    left = [layer.name for layer in stay if caffe.layer_type(layer.type).normalizes_batch]
    return graph.made(kept, blobs), gone, left


def _takes_in(net: caffe.Net, layer: caffe_pb2.LayerParameter) -> bool:
    """Whether a layer's channels can be multiplied and added to by its own parameters."""
    kind = caffe.layer_type(layer.type)
    return kind.is_linear and len(layer.top) == 1 and _is_along_channels(net, layer)


def _is_along_channels(net: caffe.Net, layer: caffe_pb2.LayerParameter) -> bool:
    return caffe.layer_type(layer.type).settings_of(layer).axis in (1, 1 - len(net.blobs[layer.bottom[0]].shape))


def _per_channel(net: caffe.Net, layer: caffe_pb2.LayerParameter) -> tuple[np.ndarray, np.ndarray] | None:
    """What a layer multiplies each channel by, and what it then adds, float64; None for another kind of layer."""
    kind = caffe.layer_type(layer.type)
    if len(layer.bottom) != 1 or len(layer.top) != 1 or not (kind.is_affine or kind.normalizes_batch):
        return None
    blobs = [blob.data.astype(np.float64) for blob in net.params[layer.name]]
    tensors, channels = tensors_of(layer, blobs), net.blobs[layer.bottom[0]].shape[1]
    factor, term = tensors.get("weight", np.ones(channels)), tensors.get("bias", np.zeros(channels))
    if kind.is_affine:
        return (factor, term) if _is_along_channels(net, layer) and blobs[0].shape == (channels,) else None
    if kind.tests_by_batch(layer) or "running_mean" not in tensors:
        return None
    factor = factor / np.sqrt(tensors["running_var"] + kind.epsilon(layer))
    return factor, term - tensors["running_mean"] * factor


def _scaled(layer: caffe_pb2.LayerParameter, blobs: list[np.ndarray], factor: np.ndarray, term: np.ndarray) -> list[np.ndarray]:
    """A layer's weights and bias with each output times `factor` plus `term`; the layer gets a bias if it has none."""
    weight, *bias = (blob.astype(np.float64) for blob in blobs)
    kind = caffe.layer_type(layer.type)
    p = kind.settings_of(layer)
    if kind.is_transposed:  # inputs × outputs of a group × …
        parts = weight.reshape(p.group, -1, *weight.shape[1:])
        weight = (parts * factor.reshape(p.group, 1, -1, *(1,) * (weight.ndim - 2))).reshape(weight.shape)
    elif getattr(p, "transpose", False):
        weight = weight * factor
    else:
        weight = weight * factor.reshape(-1, *(1,) * (weight.ndim - 1))
    p.bias_term = True
    total = term + (bias[0] * factor if bias else 0)
    return [weight.astype(np.float32), total.astype(np.float32)]

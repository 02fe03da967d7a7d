"""Net surgery: merge BatchNorm, Scale and Bias into the convolution or fully connected layer before them."""

from __future__ import annotations

import numpy as np

import caffe
from caffe.proto import caffe_pb2
from pipeline.nets import graph
from pipeline.nets.parameters import tensors_of


def merged(net: caffe.Net) -> tuple[caffe.Net, list[str], list[str]]:
    """The net without the layers that can be merged; those layers, and the BatchNorm layers that stay.

    Into a linear layer are merged the only reader of its top, that one's only reader and so on, as long as each multiplies and
    adds constants channel by channel: BatchNorm with stored averages, Scale, Bias.
    """
    definition = graph.definition_of(net)
    joined = caffe.NetGraph(definition.layer)
    # Parameters with a name may be shared with other layers.
    shared = {layer.name for layer in definition.layer if any(spec.name for spec in layer.param)}
    blobs = dict(graph.blobs_of(net))
    gone: list[str] = []
    for layer, tops in zip(joined.layers, joined.tops, strict=True):
        if not _is_target(net, layer) or layer.name in shared:
            continue
        (value,) = tops
        factor, term, before = np.ones(1), np.zeros(1), len(gone)
        while len(joined.readers[value]) == 1:
            ((number, _),) = joined.readers[value]
            reader = joined.layers[number]
            affine = _affine(net, reader)
            if affine is None:
                break
            factor, term = factor * affine[0], term * affine[0] + affine[1]
            (value,) = joined.tops[number]
            layer.top[0] = reader.top[0]
            gone.append(reader.name)
        if len(gone) > before:
            blobs[layer.name] = _scaled(layer, blobs[layer.name], factor, term)
    stay = [layer for layer in definition.layer if layer.name not in gone]
    left = [layer.name for layer in stay if caffe.layer_type(layer.type).normalizes_batch]
    del definition.layer[:]
    definition.layer.extend(stay)
    return graph.made(definition, blobs), gone, left


def _is_target(net: caffe.Net, layer: caffe_pb2.LayerParameter) -> bool:
    """Whether a layer's own parameters can multiply and add to the channels of its top."""
    return caffe.layer_type(layer.type).is_linear and len(layer.top) == 1 and _is_along_channels(net, layer)


def _is_along_channels(net: caffe.Net, layer: caffe_pb2.LayerParameter) -> bool:
    return caffe.layer_type(layer.type).settings_of(layer).axis in (1, 1 - len(net.blobs[layer.bottom[0]].shape))


def _affine(net: caffe.Net, layer: caffe_pb2.LayerParameter) -> tuple[np.ndarray, np.ndarray] | None:
    """The factor and the term of each channel, float64, if a layer multiplies by and then adds constants; else None."""
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

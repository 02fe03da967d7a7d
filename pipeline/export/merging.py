"""Net surgery: BatchNorm, Scale and Bias become part of the convolution or fully connected layer before them."""

from __future__ import annotations

import numpy as np

import caffe
from caffe.proto import caffe_pb2
from pipeline.nets import graph
from pipeline.nets.graph import Node, Value


def merged(net: caffe.Net) -> tuple[caffe.Net, list[str], list[str]]:
    """The net without the layers that can be merged; those layers, and the BatchNorm layers that stay.

    A linear layer takes in what alone reads its top, as long as that multiplies and adds channel by channel with numbers that
    are known: BatchNorm by its averages, Scale, Bias. What a layer after an activation, a sum or a concatenation does stays.
    """
    definition = graph.definition_of(net)
    nodes = graph.nodes(definition)
    readers: dict[Value, list[Node]] = {}
    for node in nodes:
        for value in node.bottoms:
            readers.setdefault(value, []).append(node)
    shared = _shared(definition)
    blobs = dict(graph.blobs_of(net))
    gone: list[str] = []
    for node in nodes:
        layer = node.layer
        if not _takes_in(net, node) or layer.name in shared:
            continue
        (value,) = node.tops
        factor, term, before = np.ones(1), np.zeros(1), len(gone)
        while len(readers.get(value, [])) == 1:
            (reader,) = readers[value]
            found = _per_channel(net, reader)
            if found is None:
                break
            factor, term = factor * found[0], term * found[0] + found[1]
            (value,) = reader.tops
            layer.top[0] = reader.layer.top[0]
            gone.append(reader.layer.name)
        if len(gone) > before:
            blobs[layer.name] = _scaled(layer, blobs[layer.name], factor, term)
    stay = [layer for layer in definition.layer if layer.name not in gone]
    kept = caffe_pb2.NetParameter()
    kept.CopyFrom(definition)
    del kept.layer[:]
    kept.layer.extend(stay)
    left = [layer.name for layer in stay if layer.type in ("BatchNorm", "BN")]
    return graph.made(kept, blobs), gone, left


def _shared(definition: caffe_pb2.NetParameter) -> set[str]:
    """Layers whose parameters have a name, so that other layers may use them too."""
    return {layer.name for layer in definition.layer if any(spec.name for spec in layer.param)}


def _takes_in(net: caffe.Net, node: Node) -> bool:
    """Whether a layer's channels can be multiplied and added to by its own parameters."""
    layer = node.layer
    if not caffe.layer_type(layer.type).is_linear or len(node.tops) != 1:
        return False
    axis = layer.inner_product_param.axis if layer.type == "InnerProduct" else layer.convolution_param.axis
    return axis in (1, 1 - len(net.blobs[layer.bottom[0]].shape))


def _per_channel(net: caffe.Net, node: Node) -> tuple[np.ndarray, np.ndarray] | None:
    """What a layer multiplies each channel by, and what it then adds, float64; None for another kind of layer."""
    layer = node.layer
    if len(node.bottoms) != 1 or len(node.tops) != 1 or layer.type not in ("BatchNorm", "BN", "Scale", "Bias"):
        return None
    blobs = [blob.data.astype(np.float64) for blob in net.params[layer.name]]
    if layer.type in ("Scale", "Bias"):
        return _along_channels(net, layer, blobs)
    if layer.type == "BatchNorm":
        p = layer.batch_norm_param
        if p.HasField("use_global_stats") and not p.use_global_stats:
            return None
        if len(blobs) == 5:  # NVIDIA's: averages as they are, and a scale and a bias
            mean, variance, _, scale, bias = blobs
            factor = scale / np.sqrt(variance + max(p.eps, 1e-5))
            return factor, bias - mean * factor
        mean, variance, weight = blobs
        share = 1 / weight if weight[0] else weight
        factor = 1 / np.sqrt(variance * share + p.eps)
        return factor, -mean * share * factor
    if len(blobs) != 4:  # SegNet's, which takes the mean of its batch
        return None
    slope, bias, mean, variance = (blob.reshape(-1) for blob in blobs)
    factor = slope / np.sqrt(variance + layer.bn_param.eps)
    return factor, bias - mean * factor


def _along_channels(net: caffe.Net, layer: caffe_pb2.LayerParameter, blobs: list[np.ndarray]):
    """A Scale's or a Bias's numbers, where there is one of each for each channel."""
    shape = net.blobs[layer.bottom[0]].shape
    p = layer.scale_param if layer.type == "Scale" else layer.bias_param
    if p.axis not in (1, 1 - len(shape)) or blobs[0].shape != (shape[1],):
        return None
    if layer.type == "Bias":
        return np.ones(shape[1]), blobs[0]
    return blobs[0], blobs[1] if p.bias_term else np.zeros(shape[1])


def _scaled(layer: caffe_pb2.LayerParameter, blobs: list[np.ndarray], factor: np.ndarray, term: np.ndarray) -> list[np.ndarray]:
    """A layer's weights and bias with each output times `factor` plus `term`; the layer gets a bias if it has none."""
    weight, *bias = (blob.astype(np.float64) for blob in blobs)
    if layer.type == "Deconvolution":  # inputs × outputs of a group × …
        group = layer.convolution_param.group
        parts = weight.reshape(group, -1, *weight.shape[1:])
        weight = (parts * factor.reshape(group, 1, -1, *(1,) * (weight.ndim - 2))).reshape(weight.shape)
    elif layer.type == "InnerProduct" and layer.inner_product_param.transpose:
        weight = weight * factor
    else:
        weight = weight * factor.reshape(-1, *(1,) * (weight.ndim - 1))
    p = layer.inner_product_param if layer.type == "InnerProduct" else layer.convolution_param
    p.bias_term = True
    total = term + (bias[0] * factor if bias else 0)
    return [weight.astype(np.float32), total.astype(np.float32)]

"""Fine-tuning strategies: which layers are frozen, and linear classifiers of features.

Frozen layers get learning rates of 0. Caffe computes no gradient below the lowest layer that learns: the train log says of each
layer whether it needs backward computation.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import caffe
from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.nets.models.base import Built

AUTO = "auto"
"""Chooses one of the strategies, by the measurements of pipeline.training.linear."""
FITTED = ("features", AUTO)
"""The strategies for which a linear classifier is fitted before the nets are written."""
LINEAR = "linear"
"""The linear classifier's layer and blob."""


def _type_of(layer: caffe_pb2.LayerParameter) -> type[Any]:
    """The class of a layer's type; a LayerError names the layer if there is no such type."""
    return caffe.layer_type(layer.type, f'layer "{layer.name}"')


def _has_weights(layer: caffe_pb2.LayerParameter) -> bool:
    """Whether a layer has blobs; True for a Python layer, whose blobs only the built net knows."""
    return bool(_type_of(layer).blob_specs(layer) != ())


def frozen(built: Built, strategy: str, freeze_to: str) -> list[str]:
    """The names of the layers with weights that a strategy freezes; classifiers are never among them.

    freeze_to  freeze this layer and its ancestors; empty: by the strategy
    """
    names = [layer.name for layer in built.layers if _has_weights(layer)]
    graph = caffe.NetGraph(built.layers)
    if freeze_to:
        if freeze_to not in names:
            hint = caffe.nearest(freeze_to, names)
            raise InputError("freeze_to", f'"{freeze_to}"', f"the layers with weights are {', '.join(names)}", hint)
        if freeze_to in built.classifiers:
            expected = "a classifier is learned, or nothing would be left to learn"
            raise InputError("freeze_to", f'"{freeze_to}"', expected, "name a layer below it, or set strategy: last_layer")
        number = next(number for number, layer in enumerate(built.layers) if layer.name == freeze_to)
        below = graph.leading_to(graph.tops[number][0])
    elif strategy in ("last_layer", "features"):
        below = built.layers
    elif strategy == "half":
        below = graph.leading_to(built.heads[-1][0])
        linear_layers = [number for number, layer in enumerate(below) if _type_of(layer).is_linear]
        below = below[: linear_layers[len(linear_layers) // 2]] if linear_layers else []
    else:
        below = []
    return [layer.name for layer in below if _has_weights(layer) and layer.name not in built.classifiers]


def freeze(layers: Sequence[caffe_pb2.LayerParameter], names: Iterable[str], shape: Sequence[int]) -> None:
    """Set lr_mult and decay_mult of every blob of the layers with these names to 0, in place, and freeze running statistics.

    shape  of the blob `data`, (N, C, H, W); if one of the layers is a Python layer, a net is built with it
    """
    names = set(names)
    frozen_layers = [layer for layer in layers if layer.name in names]
    specs = {layer.name: _type_of(layer).blob_specs(layer) for layer in frozen_layers}
    built = _built_blobs(layers, shape) if None in specs.values() else {}
    for layer in frozen_layers:
        known = specs[layer.name]
        count = built.get(layer.name, 0) if known is None else len(known)
        del layer.param[count:]  # Caffe refuses more settings than blobs
        layer.param.extend([caffe_pb2.ParamSpec()] * (count - len(layer.param)))
        for spec in layer.param:
            spec.lr_mult = spec.decay_mult = 0
        _type_of(layer).freeze_statistics(layer)


def _built_blobs(layers: Sequence[caffe_pb2.LayerParameter], shape: Sequence[int]) -> dict[str, int]:
    """{layer: number of its blobs}, from the built net."""
    net = caffe_pb2.NetParameter()
    net.layer.add(name="data", type="Input", top=["data"]).input_param.shape.add(dim=shape)
    net.layer.extend(layers)
    return {name: len(blobs) for name, blobs in caffe.Net(net, caffe.TRAIN).params.items()}


def features(built: Built, name: str) -> str:
    """The blob that a linear classifier reads.

    name  `top`, the input of the net's own classifier; `middle`, the last blob in the first half of the layers from which alone
          all later layers are computed, so not within a block with parallel branches; or a blob's name
    """
    (last,) = (layer for layer in built.layers if layer.name in built.classifiers)
    if name == "top":
        return str(last.bottom[0])
    if name == "middle":
        return _middle(built.layers)
    blobs = list(dict.fromkeys(top for layer in built.layers if layer is not last for top in layer.top))
    if name not in blobs:
        hint = caffe.nearest(name, blobs)
        known = f"it is top, middle, or a blob below the classifier: {', '.join(blobs)}"
        raise InputError("features_from", f'"{name}"', known, hint)
    return name


def _middle(layers: list[caffe_pb2.LayerParameter]) -> str:
    depths = list(itertools.accumulate(_type_of(layer).is_linear for layer in layers))  # in linear layers
    graph = caffe.NetGraph(layers)
    middle = ""
    for number, depth in enumerate(depths):
        needed = {value.blob for value in graph.read_after(number)}
        if depth and len(needed) == 1 and (depth <= depths[-1] // 2 or not middle):
            (middle,) = needed
    return middle


def linear(built: Built, blob: str, outputs: int) -> Built:
    """A linear classifier of a blob's values, on the layers that lead to the blob.

    It reads the mean of each feature map, unless a fully connected layer of the net reads all of the values.
    """
    graph = caffe.NetGraph(built.layers)
    layers, bottom = graph.leading_to(blob), blob
    readers = [_type_of(layer) for layer in built.layers if blob in layer.bottom]
    if _has_maps(graph, blob) and not any(reader.is_linear and reader.gives_maps is False for reader in readers):
        bottom = f"{LINEAR}_pool"
        average = {"pool": caffe.params.Pooling.AVE, "global_pooling": True}
        layers.append(caffe_pb2.LayerParameter(name=bottom, type="Pooling", bottom=[blob], top=[bottom], pooling_param=average))
    classifier = caffe_pb2.LayerParameter(name=LINEAR, type="InnerProduct", bottom=[bottom], top=[LINEAR])
    classifier.inner_product_param.num_output = outputs
    return Built([*layers, classifier], [(LINEAR, 1.0)], {LINEAR})


def _has_maps(graph: caffe.NetGraph, blob: str) -> bool:
    """Whether a blob has height and width, by the layer that determines its shape."""
    makers = (_type_of(graph.layers[value.layer]) for value in graph.back_from(graph.last.get(blob)))
    return next((maker.gives_maps for maker in makers if maker.gives_maps is not None), True)

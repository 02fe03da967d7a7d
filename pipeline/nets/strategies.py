"""What of a net is learned: all of it, its last layers, what comes behind a layer, or a linear classifier of its features.

A layer that is not learned gets learning rates of 0. Where all that lies below a layer is frozen, Caffe stops the gradient there:
the train log says of each layer whether it needs backward computation.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import caffe
from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.nets.models.base import Built

AUTO = "auto"
"""One of the strategies, chosen by what pipeline.training.linear measures."""
FITTED = ("features", AUTO)
"""Those for which a linear classifier is fitted before the nets are written."""
LINEAR = "linear"
"""The linear classifier's layer and blob."""


def _type_of(layer: caffe_pb2.LayerParameter) -> type[Any]:
    """The class of a layer's type; a LayerError names the layer if there is no such type."""
    return caffe.layer_type(layer.type, f'layer "{layer.name}"')


def _has_weights(layer: caffe_pb2.LayerParameter) -> bool:
    """Whether a layer has blobs; True for a Python layer, of which only the built net knows."""
    return bool(_type_of(layer).blob_specs(layer) != ())


def _is_linear(layer: caffe_pb2.LayerParameter) -> bool:
    """Whether a net's depth counts a layer."""
    return bool(_type_of(layer).is_linear)


def frozen(built: Built, strategy: str, freeze_to: str) -> list[str]:
    """The names of the layers with weights that are not learned: of those that lead to the head that counts, never classifiers.

    freeze_to  the last of them, with all that lead to it; empty leaves it to the strategy
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
        (value, *_) = next(tops for layer, tops in zip(built.layers, graph.tops, strict=True) if layer.name == freeze_to)
        below = graph.leading_to(value)
    elif strategy in ("last_layer", "features"):
        below = built.layers
    elif strategy == "half":
        below = graph.leading_to(built.heads[-1][0])
        learned = [number for number, layer in enumerate(below) if _is_linear(layer)]
        below = below[: learned[len(learned) // 2]] if learned else []
    else:
        below = []
    return [layer.name for layer in below if _has_weights(layer) and layer.name not in built.classifiers]


def freeze(layers: Sequence[caffe_pb2.LayerParameter], names: Iterable[str], shape: Sequence[int]) -> None:
    """Set lr_mult and decay_mult 0 for every blob of the layers of these names, in place, and keep their running statistics.

    shape  of the blob `data` (N, C, H, W); a net is built with it if one of the layers is a Python layer
    """
    names = set(names)
    frozen_layers = [layer for layer in layers if layer.name in names]
    specs = {layer.name: _type_of(layer).blob_specs(layer) for layer in frozen_layers}
    built = _built_blobs(layers, shape) if None in specs.values() else {}
    for layer in frozen_layers:
        known = specs[layer.name]
        count = built.get(layer.name, 0) if known is None else len(known)
        del layer.param[count:]  # a layer has no more settings than blobs, says Caffe
        while len(layer.param) < count:
            layer.param.add()
        for spec in layer.param:
            spec.lr_mult = spec.decay_mult = 0
        _type_of(layer).freeze_statistics(layer)


def _built_blobs(layers: Sequence[caffe_pb2.LayerParameter], shape: Sequence[int]) -> dict[str, int]:
    """{layer: number of its blobs} of the built net."""
    net = caffe_pb2.NetParameter()
    net.layer.add(name="data", type="Input", top=["data"]).input_param.shape.add(dim=shape)
    net.layer.extend(layers)
    return {name: len(blobs) for name, blobs in caffe.Net(net, caffe.TRAIN).params.items()}


def features(built: Built, wanted: str) -> str:
    """The blob that a linear classifier reads.

    wanted  `top`, what the classifier reads; `middle`, the last blob in the first half of the layers that all that comes later is
            made of, so not inside of a block with several ways; or a blob's name
    """
    (last,) = (layer for layer in built.layers if layer.name in built.classifiers)
    if wanted == "top":
        bottom: str = last.bottom[0]
        return bottom
    if wanted == "middle":
        return _middle(built.layers)
    blobs = list(dict.fromkeys(top for layer in built.layers if layer is not last for top in layer.top))
    if wanted not in blobs:
        hint = caffe.nearest(wanted, blobs)
        known = f"it is top, middle, or a blob below the classifier: {', '.join(blobs)}"
        raise InputError("features_from", f'"{wanted}"', known, hint)
    return wanted


def _middle(layers: list[caffe_pb2.LayerParameter]) -> str:
    half = sum(map(_is_linear, layers)) // 2
    graph = caffe.NetGraph(layers)
    found, depth = "", 0
    for number, layer in enumerate(layers):
        depth += _is_linear(layer)
        needed = {value.blob for value in graph.read_after(number)}
        if depth and len(needed) == 1 and (depth <= half or not found):
            (found,) = needed
    return found


def linear(built: Built, blob: str, outputs: int) -> Built:
    """A linear classifier of the values of a blob, on the layers that lead to it.

    Of maps it reads the mean of each, unless a fully connected layer of the net reads all of their values.
    """
    graph = caffe.NetGraph(built.layers)
    layers, bottom = graph.leading_to(blob), blob
    readers = [_type_of(layer) for layer in built.layers if blob in layer.bottom]
    if _has_maps(graph, blob) and not any(reader.is_linear and reader.gives_maps is False for reader in readers):
        pool = caffe_pb2.LayerParameter(name=f"{LINEAR}_pool", type="Pooling", bottom=[blob], top=[f"{LINEAR}_pool"])
        pool.pooling_param.pool = caffe.params.Pooling.AVE
        pool.pooling_param.global_pooling = True
        layers.append(pool)
        bottom = pool.name
    classifier = caffe_pb2.LayerParameter(name=LINEAR, type="InnerProduct", bottom=[bottom], top=[LINEAR])
    classifier.inner_product_param.num_output = outputs
    return Built([*layers, classifier], [(LINEAR, 1.0)], {LINEAR})


def _has_maps(graph: caffe.NetGraph, blob: str) -> bool:
    """Whether a blob has height and width, by the layer that gave it its shape."""
    makers = (_type_of(graph.layers[value.layer]) for value in graph.back_from(graph.last.get(blob)))
    return next((maker.gives_maps for maker in makers if maker.gives_maps is not None), True)

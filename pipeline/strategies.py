"""What of a net is learned: all of it, its last layers, or what comes behind a layer.

A layer that is not learned gets learning rates of 0. Where all that lies below a layer is frozen, Caffe stops the gradient there:
the train log says of each layer whether it needs backward computation.
"""

from __future__ import annotations

from collections.abc import Iterable

import caffe
from caffe.proto import caffe_pb2
from pipeline.errors import InputError

STRATEGIES = ("full", "last_layer", "half", "scratch")
"""All is learned, from given weights; the classifiers alone; the second half of the layers with weights; all, from nothing."""


def _blobs(layer: caffe_pb2.LayerParameter) -> int:
    """How many blobs a layer learns; 0 for one without weights."""
    by_itself = len(layer.bottom) == 1  # Scale and Bias may take theirs from a second bottom
    counts = {
        "Convolution": 1 + layer.convolution_param.bias_term,
        "Deconvolution": 1 + layer.convolution_param.bias_term,
        "InnerProduct": 1 + layer.inner_product_param.bias_term,
        "Embed": 1 + layer.embed_param.bias_term,
        "Scale": by_itself + layer.scale_param.bias_term,
        "Bias": int(by_itself),
    }
    return {"BatchNorm": 3, "PReLU": 1, "Parameter": 1, "LSTM": 3, "RNN": 5, **counts}.get(layer.type, 0)


def frozen(layers: Iterable[caffe_pb2.LayerParameter], strategy: str, freeze_to: str, classifiers: set[str]) -> list[str]:
    """The names of the layers with weights that are not learned.

    freeze_to    the last of them; empty leaves it to the strategy
    classifiers  the last layers
    """
    names = [layer.name for layer in layers if _blobs(layer)]
    if freeze_to:
        if freeze_to not in names:
            hint = caffe.nearest(freeze_to, names)
            raise InputError("freeze_to", f'"{freeze_to}"', f"the layers with weights are {', '.join(names)}", hint)
        return names[: names.index(freeze_to) + 1]
    if strategy == "last_layer":
        return [name for name in names if name not in classifiers]
    if strategy == "half":
        learned = [layer.name for layer in layers if layer.type in ("Convolution", "Deconvolution", "InnerProduct")]
        return names[: names.index(learned[len(learned) // 2])] if learned else []
    return []


def freeze(layers: Iterable[caffe_pb2.LayerParameter], names: Iterable[str]) -> None:
    """Let the layers of these names not be learned, in place; a frozen BatchNorm keeps its statistics, too."""
    names = set(names)
    for layer in layers:
        if layer.name not in names:
            continue
        while len(layer.param) < _blobs(layer):
            layer.param.add()
        for spec in layer.param:
            spec.lr_mult = spec.decay_mult = 0
        if layer.type == "BatchNorm":
            layer.batch_norm_param.use_global_stats = True

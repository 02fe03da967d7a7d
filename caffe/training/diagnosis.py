"""Diagnose a diverged training (NaN or infinite loss): the first layer, the labels, the learning rate."""

import math
from collections.abc import Iterator

import torch

from caffe.engine.net import Net
from caffe.errors import Error

LARGEST_LOSS = -math.log(torch.finfo(torch.float32).tiny)
"""87.3365: the loss of a label whose probability is 0, as SoftmaxWithLoss takes the logarithm of at least FLT_MIN."""


class DivergenceError(Error):
    """The loss of a training is NaN or infinite."""


def is_largest(loss: float) -> bool:
    """Whether a loss is that of labels whose probability is 0."""
    return abs(loss - LARGEST_LOSS) < 0.01


def divergence(path: str, net: Net, found: str, rate: float, before: float | None) -> DivergenceError:
    """The error for a loss that is NaN or infinite: where it began, and common causes.

    path    the solver's prototxt
    found   which loss, and when
    before  the last finite loss
    """
    if before is not None:
        found += f" (before: {before:g})"
    causes = [_first_place(net), *_labels(net), f"learning rate {rate:g}"]
    if before is not None and is_largest(before):
        causes.append("a loss of 87.3365 is -log(FLT_MIN): before, the labels' probabilities were already 0")
    advice = (
        "if the labels are within range and the inputs are scaled (mean, scale), try a base_lr ten times smaller, "
        "or clip_gradients; debug_info: true shows every layer's magnitudes"
    )
    return DivergenceError(path, "; ".join([found, *causes]), do=advice)


def _first_place(net: Net) -> str:
    """The first layer with a NaN or infinite value in a parameter or a top."""
    for layer in net.layers:
        name, tops, bottoms = layer.param.name, layer.param.top, layer.param.bottom
        for position, blob in enumerate(layer.blobs):
            if not torch.isfinite(blob.tensor).all():
                return f'first in layer "{name}": its parameter {position} is not finite, so an earlier update was too large'
        for top in tops:
            value = net.blobs[top].tensor
            if not torch.isfinite(value).all():
                source = "the data" if not bottoms else "its values"
                return f'first in layer "{name}": top "{top}", {source}, from finite parameters'
    return "all layers' values are finite, and only their sum is not"


def _labels(net: Net) -> Iterator[str]:
    """For each loss, the range of its labels and the number of its classes."""
    for layer in net.layers:
        if layer.is_loss and layer.compares_labels:
            scores, labels = (net.blobs[bottom] for bottom in layer.param.bottom[:2])
            low, high = (float(end) for end in labels.tensor.aminmax())
            yield f"labels {low:g} to {high:g} for {scores.count // labels.count} classes"

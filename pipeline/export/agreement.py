"""Whether two nets compute the same: random images through both, and the largest difference of what comes out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import caffe
from pipeline.errors import InputError
from pipeline.nets import graph

LIMIT = 1e-4
"""The largest difference that is rounding, as a share of the largest value."""


def random_inputs(net: caffe.Net, batch: int | None = None, scale: float = 1.0) -> dict[str, np.ndarray]:
    """{input: values}, the same at every call, as images less their mean are spread: standard deviation 50.

    batch  extent of the first axis; by default the net's
    scale  what images are multiplied by
    """
    draw = np.random.default_rng(1)
    shapes = {name: tuple(net.blobs[name].shape) for name in net.inputs}
    return {
        name: (draw.standard_normal((batch or shape[0], *shape[1:])) * 50 * scale).astype(np.float32)
        for name, shape in shapes.items()
    }


def telling(net: caffe.Net) -> list[str]:
    """The blobs that tell whether a net is the same: its outputs, and before a Softmax the scores, which differ more clearly."""
    layers = [layer for layer in graph.definition_of(net).layer if set(layer.top) & set(net.outputs)]
    softmax = {layer.name for layer in layers if caffe.layer_type(layer.type).applies_softmax}
    names = [name for layer in layers for name in ([*layer.bottom[:1]] if layer.name in softmax else []) + [*layer.top]]
    return list(dict.fromkeys(names))


def computed(net: caffe.Net, inputs: dict[str, np.ndarray], blobs: Sequence[str]) -> list[np.ndarray]:
    """The values of those blobs for these inputs; the inputs' shapes are restored."""
    shapes = {name: tuple(net.blobs[name].shape) for name in inputs}
    for name, values in inputs.items():
        net.blobs[name].reshape(*values.shape)
    made = net.forward(blobs=list(blobs), **inputs)
    made = [made[name].copy() for name in blobs]
    for name, shape in shapes.items():
        net.blobs[name].reshape(*shape)
    net.reshape()
    return made


def agreed(where: str, expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """The largest difference, as a share of the largest value of its array; raises an error where that is above LIMIT.

    Arrays of one count are compared whatever their shapes. Values that are no numbers are an error too.
    where  what was found, for the error
    """
    worst = 0.0
    for ours, theirs in zip(expected, found, strict=True):
        if ours.size != theirs.size:
            raise InputError(where, f"an output of shape {theirs.shape}", f"the net's own has {ours.shape}")
        if not np.isfinite(ours).all():
            raise InputError(where, "the net's output for random images is not finite", do="check the weights")
        difference = np.abs(ours.ravel().astype(np.float64) - theirs.ravel()).max(initial=0)
        difference /= np.abs(ours).max(initial=0) or 1.0
        if not difference <= LIMIT:
            differs = f"its output differs from the net's own by {difference:.1e} of the largest value"
            raise InputError(where, differs, f"{LIMIT:g} is the most that rounding explains", "nothing is written")
        worst = max(worst, difference)
    return worst

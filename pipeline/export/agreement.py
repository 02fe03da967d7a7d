"""Check that two nets compute the same: run random images through both and compare the outputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import caffe
from pipeline.errors import InputError
from pipeline.nets import graph

LIMIT = 1e-4
"""The largest difference that rounding explains, as a share of the largest value."""


def random_inputs(net: caffe.Net, batch: int | None = None, scale: float = 1.0) -> dict[str, np.ndarray]:
    """{input: values}, always the same, of standard deviation 50 · scale as images less their mean, for `batch` images."""
    draw = np.random.default_rng(1)
    shapes = {name: net.blobs[name].shape for name in net.inputs}
    return {
        name: (draw.standard_normal((batch or shape[0], *shape[1:])) * 50 * scale).astype(np.float32)
        for name, shape in shapes.items()
    }


def compared_blobs(net: caffe.Net) -> list[str]:
    """The net's outputs, and the bottom of a Softmax that gives one: scores differ more clearly than probabilities."""
    names: list[str] = []
    for layer in graph.definition_of(net).layer:
        if set(layer.top) & set(net.outputs):
            names += [*layer.bottom[:1], *layer.top] if caffe.layer_type(layer.type).applies_softmax else layer.top
    return list(dict.fromkeys(names))


def compute(net: caffe.Net, inputs: dict[str, np.ndarray], blobs: Sequence[str]) -> list[np.ndarray]:
    """The values of these blobs for these inputs; the inputs' shapes are restored."""
    shapes = {name: tuple(net.blobs[name].shape) for name in inputs}
    for name, values in inputs.items():
        net.blobs[name].reshape(*values.shape)
        net.blobs[name].data[...] = values
    outputs = net.forward(blobs=list(blobs))
    result = [outputs[name].copy() for name in blobs]
    for name, shape in shapes.items():
        net.blobs[name].reshape(*shape)
    net.reshape()
    return result


def assert_close(where: str, expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """The largest difference, as a share of the largest value of its array. Arrays of equal size may differ in shape.

    Raises InputError, with `where` as its place, if it is above LIMIT or if `expected` has NaN or infinite values.
    """
    worst = 0.0
    for ours, theirs in zip(expected, found, strict=True):
        if ours.size != theirs.size:
            raise InputError(where, f"an output of shape {theirs.shape}", f"the net's own has {ours.shape}")
        if not np.isfinite(ours).all():
            raise InputError(where, "the net's output for random images is not finite", do="check the weights")
        absolute = np.abs(ours.ravel().astype(np.float64) - theirs.ravel()).max(initial=0)
        difference = float(absolute / (np.abs(ours).max(initial=0) or 1.0))
        if not difference <= LIMIT:
            differs = f"its output differs from the net's own by {difference:.1e} of the largest value"
            raise InputError(where, differs, f"rounding explains at most {LIMIT:g}", "nothing was written")
        worst = max(worst, difference)
    return worst

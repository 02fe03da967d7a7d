"""Diagnose a diverged training (NaN or infinite loss): inputs, labels, learning rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import caffe
from caffe.proto import caffe_pb2
from pipeline.training.preflight import data_layers


def diagnose(error: caffe.DivergenceError, solver: caffe.Solver, rows: Sequence[dict[str, Any]]) -> caffe.DivergenceError:
    """The error, with findings about inputs, labels and learning rate, and remedies, in its field `do`.

    rows  the metrics measured so far
    """
    inputs = list(_inputs(solver.net))
    hints = [_check_input(*layer) for layer in inputs] or ["the net has no data layer to check"]
    if all(np.isfinite(values).all() for _, _, values in inputs):
        hints.append("labels are within range" if inputs else "check the labels")
        losses = [(row["iteration"], row["loss"]) for row in rows if row["loss"] is not None and np.isfinite(row["loss"])]
        hints.append(_check_learning_rate(losses, solver.param.base_lr))
    return caffe.DivergenceError(error.where, error.found, do="; ".join(hints))


def _inputs(net: caffe.Net) -> Iterator[tuple[str, caffe_pb2.TransformationParameter, np.ndarray]]:
    """(name, transform_param, last batch) of each data layer."""
    for name in data_layers(net):
        yield name, net.layer_dict[name].param.transform_param, net.blobs[net.top_names[name][0]].data


def _check_input(layer: str, param: caffe_pb2.TransformationParameter, values: np.ndarray) -> str:
    if not np.isfinite(values).all():
        return f'layer "{layer}" gives NaN or infinite values: check the mean and the database'
    largest, mean = float(np.abs(values).max()), param.mean_file or param.mean_value
    prepared = f"inputs reach {largest:g} ({'a mean is' if mean else 'no mean is'} subtracted, scale {param.scale:g})"
    return prepared + (": subtract a mean, or set scale" if largest > caffe.preflight.LARGE and not mean else "")


def _check_learning_rate(losses: Sequence[tuple[int, float]], rate: float) -> str:
    """Whether the loss, (iteration, loss), rose before it became NaN, and which rate to try."""
    lowest = min(losses, key=lambda point: point[1], default=(0, 0.0))
    later = [point for point in losses if point[0] > lowest[0]]
    rose = f"the loss rose from {lowest[1]:g} at iteration {lowest[0]} to {later[-1][1]:g} at {later[-1][0]}: " if later else ""
    return f"{rose}try base_lr: {rate / 10:g}, a tenth of {rate:g}, or clip_gradients"

"""Why a training has left the numbers: the common causes, each looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

import caffe
from caffe.proto import caffe_pb2
from pipeline.training.preflight import LARGE


def diagnosed(error: caffe.DivergenceError, solver: caffe.Solver, rows: Sequence[dict]) -> caffe.DivergenceError:
    """The error with what was seen of the inputs, the labels and the learning rate, and what to do about it.

    rows  the metrics that were measured before
    """
    inputs = list(_inputs(solver.net))
    said = [_of_input(*one) for one in inputs] or ["there is no data layer to look at"]
    if all(np.isfinite(values).all() for _, _, values in inputs):
        said.append("labels are within range" if inputs else "check the labels")
        losses = [(row["iteration"], row["loss"]) for row in rows if row["loss"] is not None and np.isfinite(row["loss"])]
        said.append(_of_rate(losses, solver.param.base_lr))
    return caffe.DivergenceError(error.where, error.found, do="; ".join(said))


def _inputs(net: caffe.Net) -> Iterator[tuple[str, caffe_pb2.TransformationParameter, np.ndarray]]:
    """Layer, transformation and last batch of each data layer."""
    for name, layer in net.layer_dict.items():
        if layer.reads in ("database", "image list"):
            yield name, layer.param.transform_param, net.blobs[net.top_names[name][0]].data


def _of_input(layer: str, param: caffe_pb2.TransformationParameter, values: np.ndarray) -> str:
    if not np.isfinite(values).all():
        return f'layer "{layer}" gives values that are no numbers: look at the mean and at the database'
    largest, mean = float(np.abs(values).max()), param.mean_file or param.mean_value
    prepared = f"inputs reach {largest:g} ({'a mean is' if mean else 'no mean is'} subtracted, scale {param.scale:g})"
    return prepared + (": subtract a mean, or set scale" if largest > LARGE and not mean else "")


def _of_rate(losses: Sequence[tuple[int, float]], rate: float) -> str:
    """What the losses, (iteration, loss), say of the learning rate."""
    lowest = min(losses, key=lambda one: one[1], default=(0, 0.0))
    later = [one for one in losses if one[0] > lowest[0]]
    rose = f"the loss rose from {lowest[1]:g} at iteration {lowest[0]} to {later[-1][1]:g} at {later[-1][0]}: " if later else ""
    return f"{rose}try base_lr: {rate / 10:g}, a tenth of {rate:g}, or clip_gradients"

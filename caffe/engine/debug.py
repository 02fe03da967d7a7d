"""The log of `debug_info: true`: mean magnitudes of each layer's values and gradients, in BVLC Caffe's form."""

from collections.abc import Iterable, Mapping

import torch

from caffe import events
from caffe.engine.blob import Blob
from caffe.engine.layer import Layer
from caffe.engine.parameter import Parameter


def _mean_magnitude(value: torch.Tensor | None) -> float:
    return 0.0 if value is None or not value.numel() else float(value.abs().mean())


def log_forward(layer: Layer, blobs: Mapping[str, Blob]) -> None:
    """Log the tops and parameters of a layer after its forward pass."""
    for top in layer.param.top:
        events.forward_top(layer.param.name, top, _mean_magnitude(blobs[top].tensor))
    for position, blob in enumerate(layer.blobs):
        events.forward_parameter(layer.param.name, blob.name or position, _mean_magnitude(blob.tensor))


def log_backward(layer: Layer, propagates: list[bool], blobs: Mapping[str, Blob]) -> None:
    """Log the gradients of a layer's bottoms and parameters after its backward pass."""
    for bottom, propagated in zip(layer.param.bottom, propagates, strict=True):
        if propagated:
            events.backward_bottom(layer.param.name, bottom, _mean_magnitude(blobs[bottom].gradient))
    for position, blob in enumerate(layer.blobs):
        if blob.leaf.requires_grad:
            events.backward_parameter(layer.param.name, blob.name or position, _mean_magnitude(blob.gradient))


def log_parameters(parameters: Iterable[Parameter]) -> None:
    """Log the norms of all parameters and their gradients after a full backward pass."""
    blobs, norms = list(parameters), []
    for norm in (1, 2):
        for values in ([blob.tensor for blob in blobs], [blob.gradient for blob in blobs]):
            total = sum(float(value.norm(norm)) ** norm for value in values if value is not None)
            norms.append(total ** (1 / norm))
    events.parameter_norms(*norms)

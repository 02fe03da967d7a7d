"""What `debug_info: true` logs: mean magnitudes of values and gradients, layer by layer, in BVLC Caffe's form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from caffe import glog

if TYPE_CHECKING:
    from caffe.engine.net import Net


def _mean_magnitude(value: torch.Tensor | None) -> float:
    return 0.0 if value is None or not value.numel() else float(value.abs().mean())


def _named_parameters(net: Net, index: int):
    for position, blob in enumerate(net.layers[index].blobs):
        yield blob.name or str(position), blob


def log_forward(net: Net, index: int) -> None:
    """The tops and parameters of a layer that has just computed."""
    name = net._layer_names[index]
    for top in net.layers[index].param.top:
        glog.info("net.cpp:591", f"    [Forward] Layer {name}, top blob {top} data: {_mean_magnitude(net.blobs[top].tensor):g}")
    for shown, blob in _named_parameters(net, index):
        glog.info("net.cpp:603", f"    [Forward] Layer {name}, param blob {shown} data: {_mean_magnitude(blob.tensor):g}")


def log_backward(net: Net, index: int, propagates: list[bool]) -> None:
    """The gradients of a layer's bottoms and parameters, just computed."""
    name = net._layer_names[index]
    for bottom, propagated in zip(net.layers[index].param.bottom, propagates, strict=True):
        if propagated:
            magnitude = _mean_magnitude(net.blobs[bottom].gradient)
            glog.info("net.cpp:619", f"    [Backward] Layer {name}, bottom blob {bottom} diff: {magnitude:g}")
    for shown, blob in _named_parameters(net, index):
        if blob.leaf.requires_grad:
            glog.info("net.cpp:630", f"    [Backward] Layer {name}, param blob {shown} diff: {_mean_magnitude(blob.gradient):g}")


def log_parameters(net: Net) -> None:
    """Norms of all parameters and their gradients, after a whole backward pass."""
    norms = {}
    for norm in (1, 2):
        for part in ("tensor", "gradient"):
            values = [getattr(blob, part) for blob in net.learnable_params()]
            total = sum(float(value.norm(norm)) ** norm for value in values if value is not None)
            norms[norm, part] = total ** (1 / norm)
    glog.info(
        "net.cpp:683",
        "    [Backward] All net params (data, diff): "
        f"L1 norm = ({norms[1, 'tensor']:g}, {norms[1, 'gradient']:g}); "
        f"L2 norm = ({norms[2, 'tensor']:g}, {norms[2, 'gradient']:g})",
    )

"""What layers' parameters are called where they are exported, and in which form: as PyTorch names a module's."""

from __future__ import annotations

import numpy as np

import caffe
from caffe.proto import caffe_pb2

NAMES = {
    **dict.fromkeys(
        ("Convolution", "DepthwiseConvolution", "ConvolutionDepthwise", "Deconvolution", "InnerProduct", "Embed", "Scale"),
        ("weight", "bias"),
    ),
    "Bias": ("bias",),
    **dict.fromkeys(("PReLU", "Normalize", "Parameter"), ("weight",)),
}


def tensors_of(layer: caffe_pb2.LayerParameter, blobs: list[np.ndarray]) -> dict[str, np.ndarray]:
    """{name: values} of a layer's parameters, in Caffe's shapes: weight, bias, running_mean, running_var.

    BatchNorm's sums are divided by their weight, which is not kept. Types that are not known here have "0", "1", ….
    """
    if layer.type == "BatchNorm":
        mean, variance, weight, *learned = blobs
        share = 1.0 if learned else (1 / weight[0] if weight[0] else 0.0)
        averages = {"running_mean": mean * np.float32(share), "running_var": variance * np.float32(share)}
        return averages | dict(zip(("weight", "bias"), learned, strict=False))
    if layer.type == "BN":
        names = ("weight", "bias", "running_mean", "running_var")
        return {name: blob.reshape(-1) for name, blob in zip(names, blobs, strict=False)}
    if layer.type == "Scale" and len(layer.bottom) > 1:
        return dict(zip(("bias",), blobs, strict=False))
    names = NAMES.get(layer.type, [str(index) for index in range(len(blobs))])
    return dict(zip(names, blobs, strict=False))


def named_tensors(net: caffe.Net) -> dict[str, np.ndarray]:
    """{LAYER.NAME: values} of all parameters of a net."""
    return {
        f"{layer}.{name}": values
        for layer, blobs in net.params.items()
        for name, values in tensors_of(net.layer_dict[layer].param, [blob.data for blob in blobs]).items()
    }

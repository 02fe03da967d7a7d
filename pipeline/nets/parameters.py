"""Names and form of exported parameters, like those of PyTorch's modules."""

from __future__ import annotations

import numpy as np

import caffe
from caffe.proto import caffe_pb2


def tensors_of(layer: caffe_pb2.LayerParameter, blobs: list[np.ndarray]) -> dict[str, np.ndarray]:
    """{name: values} of a layer's parameters, in Caffe's shapes; named by its type: weight, bias, running_mean, running_var.

    BatchNorm's sums are divided by their weight, which is left out; its statistics, scale and shift are vectors. Those of a
    Python layer are called "0", "1", ….
    """
    kind = caffe.layer_type(layer.type)
    specs = kind.blob_specs(layer)
    names = map(str, range(len(blobs))) if specs is None else [spec.name for spec in specs]
    tensors = dict(zip(names, blobs, strict=True))
    weight = tensors.pop("running_weight", None)
    if kind.stores_sums(layer):
        assert weight is not None  # stored with the sums
        share = weight.dtype.type(1 / weight[0] if weight[0] else 0.0)
        tensors |= {name: tensors[name] * share for name in ("running_mean", "running_var")}
    return {name: values.reshape(-1) for name, values in tensors.items()} if kind.normalizes_batch else tensors


def named_tensors(net: caffe.Net) -> dict[str, np.ndarray]:
    """{LAYER.NAME: values} of all parameters of a net."""
    return {
        f"{layer}.{name}": values
        for layer, blobs in net.params.items()
        for name, values in tensors_of(net.layer_dict[layer].param, [blob.data for blob in blobs]).items()
    }

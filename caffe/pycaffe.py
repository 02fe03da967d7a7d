"""`caffe.pycaffe`: nets and solvers, for scripts that import them from this module of BVLC Caffe.

Its functions that it adds to nets are here too, as scripts wrap them: `_Net_forward(net, …)` is `net.forward(…)`.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import caffe
from caffe import io

_SOLVERS = ("AdaDeltaSolver", "AdaGradSolver", "AdamSolver", "NesterovSolver", "RMSPropSolver", "SGDSolver")
_METHODS = ("backward", "batch", "forward", "forward_all", "forward_backward_all", "set_input_arrays")
_VALUES = ("blob_loss_weights", "blobs", "inputs", "layer_dict", "outputs", "params")
__all__ = ["io", *("NCCL", "Net", "Timer"), *_SOLVERS]


def __getattr__(name: str) -> Any:
    short = name.removeprefix("_Net_")
    if short == name:
        return getattr(caffe, name)
    if short == "get_id_name":
        return _names_of_layers
    if short in _METHODS:
        return getattr(caffe.Net, "_batch" if short == "batch" else short)
    if short in _VALUES:
        return lambda net: getattr(net, short)
    raise AttributeError(f"module 'caffe.pycaffe' has no attribute {name!r}")


def _names_of_layers(numbers: Callable[[Any, int], list[int]], field: str) -> property:
    """`_Net_get_id_name`: a property of a net, {layer name: names of the blobs that `numbers(net, layer's number)` gives}.

    field  name of the attribute that keeps it
    """

    def names(net: Any) -> OrderedDict[str, list[str]]:
        if not hasattr(net, field):
            blobs = list(net.blobs)
            layers = enumerate(net._layer_names)
            setattr(net, field, OrderedDict((layer, [blobs[blob] for blob in numbers(net, number)]) for number, layer in layers))
        kept: OrderedDict[str, list[str]] = getattr(net, field)
        return kept

    return property(names)

"""`caffe.pycaffe`: nets and solvers, for scripts that import them from this module of BVLC Caffe.

Its functions that it adds to nets are here too, as scripts wrap them: `_Net_forward(net, …)` is `net.forward(…)`.
"""

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
    if short in _METHODS:
        return getattr(caffe.Net, "_batch" if short == "batch" else short)
    if short in _VALUES:
        return lambda net: getattr(net, short)
    raise AttributeError(f"module 'caffe.pycaffe' has no attribute {name!r}")

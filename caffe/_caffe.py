"""`caffe._caffe`: the names of BVLC Caffe's compiled module, for scripts that import them from there."""

from __future__ import annotations

from typing import Any

import caffe
from caffe.engine.python_layer import BlobVec
from caffe.proto.caffe_pb2 import SolverParameter

_NAMES = (
    *("AdaDeltaSolver", "AdaGradSolver", "AdamSolver", "Blob", "Layer", "NCCL", "NesterovSolver", "Net", "RMSPropSolver"),
    *("SGDSolver", "Solver", "Timer", "__version__", "get_solver", "has_nccl", "init_log", "layer_type_list", "log"),
    *("set_device", "set_mode_cpu", "set_mode_gpu", "set_multiprocess", "set_random_seed", "set_solver_count"),
    *("set_solver_rank", "solver_count", "solver_rank"),
)
__all__ = ["BlobVec", "SolverParameter", *_NAMES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(caffe, name)
    raise AttributeError(f"module 'caffe._caffe' has no attribute {name!r}")

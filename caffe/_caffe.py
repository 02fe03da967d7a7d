"""`caffe._caffe`: the names of BVLC Caffe's compiled module, for scripts that import them from there."""

from caffe import __getattr__ as __getattr__  # type: ignore[attr-defined] # resolves every public name of caffe
from caffe import __version__
from caffe.engine.python_layer import BlobVec
from caffe.proto.caffe_pb2 import SolverParameter

_NAMES = (
    *("AdaDeltaSolver", "AdaGradSolver", "AdamSolver", "Blob", "Layer", "NCCL", "NesterovSolver", "Net", "RMSPropSolver"),
    *("SGDSolver", "Solver", "Timer", "get_solver", "has_nccl", "init_log", "layer_type_list", "log", "set_device"),
    *("set_mode_cpu", "set_mode_gpu", "set_multiprocess", "set_random_seed", "set_solver_count", "set_solver_rank"),
    *("solver_count", "solver_rank"),
)
__all__ = ["BlobVec", "SolverParameter", "__version__", *_NAMES]

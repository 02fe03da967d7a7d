"""`caffe._caffe`: the names of BVLC Caffe's compiled module, for scripts that import them from there."""

import caffe
from caffe.engine.python_layer import BlobVec
from caffe.proto.caffe_pb2 import SolverParameter

_OF_CAFFE = (
    *("NCCL", "AdaDeltaSolver", "AdaGradSolver", "AdamSolver", "Blob", "Layer", "NesterovSolver", "Net", "RMSPropSolver"),
    *("SGDSolver", "Solver", "Timer", "__version__", "get_solver", "has_nccl", "init_log", "layer_type_list", "log"),
    *("set_device", "set_mode_cpu", "set_mode_gpu", "set_multiprocess", "set_random_seed", "set_solver_count"),
    *("set_solver_rank", "solver_count", "solver_rank"),
)
__all__ = ["BlobVec", "SolverParameter", *_OF_CAFFE]
globals().update((name, getattr(caffe, name)) for name in _OF_CAFFE)

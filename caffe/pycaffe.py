"""`caffe.pycaffe`: nets and solvers, for scripts that import them from this module of BVLC Caffe."""

from caffe import NCCL, Net, Timer, io

_SOLVERS = ("AdaDeltaSolver", "AdaGradSolver", "AdamSolver", "NesterovSolver", "RMSPropSolver", "SGDSolver")
__all__ = ["NCCL", "Net", "Timer", "io", *_SOLVERS]

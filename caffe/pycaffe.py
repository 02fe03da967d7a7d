"""`caffe.pycaffe`: nets and solvers, for scripts that import them from this module of BVLC Caffe."""

from caffe import __getattr__ as __getattr__  # type: ignore[attr-defined] # resolves every public name of caffe
from caffe import io

_SOLVERS = ("AdaDeltaSolver", "AdaGradSolver", "AdamSolver", "NesterovSolver", "RMSPropSolver", "SGDSolver")
__all__ = ["io", *("NCCL", "Net", "Timer"), *_SOLVERS]

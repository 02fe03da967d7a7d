"""`caffe._caffe`: the names of BVLC Caffe's compiled module, for scripts that import them from there."""

from caffe import __getattr__ as __getattr__  # type: ignore[attr-defined] # resolves every public name of caffe
from caffe import __version__
from caffe.engine.blob import Blob
from caffe.engine.layer import Layer as _Layer
from caffe.engine.net import Net as _Net
from caffe.engine.python_layer import BlobVec as BlobVec
from caffe.proto.caffe_pb2 import SolverParameter


class RawBlobVec(list[Blob]):
    """Blobs, as bottoms and tops of a layer."""


class LayerVec(list[_Layer]):
    """Layers of a net."""


class NetVec(list[_Net]):
    """Test nets of a solver."""


class StringVec(list[str]):
    """Names."""


class IntVec(list[int]):
    """Numbers of blobs and axes."""


class BoolVec(list[bool]):
    """Whether bottoms take part in the backward pass."""


class DtypeVec(list[float]):
    """Weights of losses."""


_NAMES = (
    *("AdaDeltaSolver", "AdaGradSolver", "AdamSolver", "Blob", "Layer", "NCCL", "NesterovSolver", "Net", "RMSPropSolver"),
    *("SGDSolver", "Solver", "Timer", "get_solver", "has_nccl", "init_log", "layer_type_list", "log", "set_device"),
    *("set_mode_cpu", "set_mode_gpu", "set_multiprocess", "set_random_seed", "set_solver_count", "set_solver_rank"),
    *("solver_count", "solver_rank"),
)
_VECTORS = ("BlobVec", "BoolVec", "DtypeVec", "IntVec", "LayerVec", "NetVec", "RawBlobVec", "StringVec")
__all__ = ["SolverParameter", "__version__", *_NAMES, *_VECTORS]

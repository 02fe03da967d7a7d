"""pycaffe: the interface, formats and numbers of BVLC Caffe 1.0, computed by PyTorch.

Names are loaded when first used, so that what needs no PyTorch (`caffe.proto`, `caffe.NetSpec`, `caffe.io`) starts at once.
"""

from __future__ import annotations

import importlib

_HOME = {
    "DivergenceError": "diagnosis",
    "Error": "errors",
    "FileError": "errors",
    "LayerError": "errors",
    "ParseError": "errors",
    "SolverError": "errors",
    "WeightsError": "errors",
    "nearest": "errors",
    "NetSpec": "net_spec",
    "layers": "net_spec",
    "params": "net_spec",
    "to_proto": "net_spec",
    "check_bottoms": "topology",
    "layer_places": "prototxt",
    "read_net": "prototxt",
    "read_solver": "prototxt",
    "write_prototxt": "prototxt",
    "init_log": "glog",
    "log_to_file": "glog",
    "log": "glog",
    "set_device": "mode",
    "set_mode_cpu": "mode",
    "set_mode_gpu": "mode",
    "set_random_seed": "mode",
    "set_multiprocess": "mode",
    "set_solver_count": "mode",
    "set_solver_rank": "mode",
    "solver_count": "mode",
    "solver_rank": "mode",
    "Blob": "blob",
    "Timer": "timer",
    "NCCL": "nccl",
    "has_nccl": "nccl",
    "Net": "net",
    "Classifier": "classifier",
    "Detector": "detector",
    "Layer": "python_layer",
    "layer_type": "layer",
    "layer_type_list": "layer",
    "AdaDeltaSolver": "solver_types",
    "AdaGradSolver": "solver_types",
    "AdamSolver": "solver_types",
    "NesterovSolver": "solver_types",
    "RMSPropSolver": "solver_types",
    "SGDSolver": "solver_types",
    "Solver": "solver",
    "get_solver": "solver_types",
}

_MODULES = (
    *("_caffe", "classifier", "coord_map", "detector", "draw", "io", "net_spec", "proto", "pycaffe"),
    *("allocator", "augmentation", "datum", "db", "transform"),
)

TRAIN = 0
TEST = 1
__version__ = "1.0.0"
__all__ = ["TEST", "TRAIN", "__version__", *_MODULES, *_HOME]


def __getattr__(name: str):
    if name in _HOME:
        value = getattr(importlib.import_module(f"caffe.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"caffe.{name}")
    else:
        raise AttributeError(f"module 'caffe' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)

"""pycaffe: the interface, formats and numbers of BVLC Caffe 1.0, computed by PyTorch.

Names are imported on first use, so that `caffe.proto`, `caffe.NetSpec` and `caffe.io` work without importing PyTorch.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULE_OF = {
    "DivergenceError": "training.diagnosis",
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
    "check_bottoms": "engine.topology",
    "layer_places": "formats.prototxt",
    "read_net": "formats.prototxt",
    "read_solver": "formats.prototxt",
    "write_prototxt": "formats.prototxt",
    "init_log": "glog",
    "log_to_file": "glog",
    "log": "glog",
    "set_device": "engine.mode",
    "set_mode_cpu": "engine.mode",
    "set_mode_gpu": "engine.mode",
    "set_random_seed": "engine.mode",
    "set_multiprocess": "engine.mode",
    "set_solver_count": "engine.mode",
    "set_solver_rank": "engine.mode",
    "solver_count": "engine.mode",
    "solver_rank": "engine.mode",
    "Blob": "engine.blob",
    "Timer": "timer",
    "NCCL": "training.nccl",
    "has_nccl": "training.nccl",
    "Net": "engine.net",
    "Classifier": "classifier",
    "Detector": "detector",
    "Layer": "engine.python_layer",
    "layer_type": "engine.layer",
    "layer_type_list": "engine.layer",
    "AdaDeltaSolver": "training.solver_types",
    "AdaGradSolver": "training.solver_types",
    "AdamSolver": "training.solver_types",
    "NesterovSolver": "training.solver_types",
    "RMSPropSolver": "training.solver_types",
    "SGDSolver": "training.solver_types",
    "Solver": "training.solver",
    "get_solver": "training.solver_types",
}

_MODULES = (
    *("_caffe", "classifier", "coord_map", "detector", "draw", "io", "net_spec", "proto", "pycaffe"),
    *("allocator", "augmentation", "datum", "db", "transform"),
)

TRAIN = 0
TEST = 1
__version__ = "1.0.0"
__all__ = ["TEST", "TRAIN", "__version__", *_MODULES, *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(f"caffe.{_MODULE_OF[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"caffe.{name}")
    else:
        raise AttributeError(f"module 'caffe' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

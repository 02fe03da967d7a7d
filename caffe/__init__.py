"""pycaffe: the interface, formats and numbers of BVLC Caffe 1.0, computed by PyTorch.

Names are loaded when first used, so that what needs no PyTorch (`caffe.proto`, `caffe.NetSpec`, `caffe.io`) starts at once.
"""

from __future__ import annotations

import importlib

_HOME = {
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
    "open_db": "formats.db",
    "parse_datum": "formats.datum",
    "pixels_of": "formats.datum",
    "written_whole": "formats.files",
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

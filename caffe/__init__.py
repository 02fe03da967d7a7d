"""pycaffe: the interface, formats and numbers of BVLC Caffe 1.0, computed by PyTorch.

Names are loaded when first used, so that what needs no PyTorch (`caffe.proto`, `caffe.NetSpec`, `caffe.io`) starts at once.
"""

from __future__ import annotations

import importlib

_NAMES = {
    "errors": ("Error", "FileError", "LayerError", "ParseError", "SolverError", "WeightsError", "nearest"),
    "net_spec": ("NetSpec", "layers", "params", "to_proto"),
    "formats.datum": ("parse_datum", "pixels_of"),
    "formats.db": ("open_db",),
    "formats.files": ("written_whole",),
    "formats.prototxt": ("layer_places", "read_net", "read_solver", "write_prototxt"),
    "glog": ("init_log", "log", "log_to_file"),
    "engine.mode": (
        *("set_device", "set_mode_cpu", "set_mode_gpu", "set_multiprocess", "set_random_seed", "set_solver_count"),
        *("set_solver_rank", "solver_count", "solver_rank"),
    ),
    "engine.blob": ("Blob",),
    "engine.graph": ("NetGraph",),
    "engine.layer": ("layer_type", "layer_type_list"),
    "engine.net": ("Net",),
    "engine.python_layer": ("Layer",),
    "engine.topology": ("check_bottoms",),
    "timer": ("Timer",),
    "training.diagnosis": ("DivergenceError",),
    "training.nccl": ("NCCL", "has_nccl"),
    "training.solver": ("Solver",),
    "training.solver_types": (
        *("AdaDeltaSolver", "AdaGradSolver", "AdamSolver", "NesterovSolver", "RMSPropSolver", "SGDSolver", "get_solver"),
    ),
    "classifier": ("Classifier",),
    "detector": ("Detector",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

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

"""pycaffe: the interface, formats and numbers of BVLC Caffe 1.0, computed by PyTorch.

The public names are the imports in __init__.pyi, made on first use, so that `caffe.proto`, `caffe.NetSpec` and `caffe.io` work
without importing PyTorch.
"""

import ast
import gc
import importlib
from pathlib import Path

_IMPORTS = [node for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text()).body if isinstance(node, ast.ImportFrom)]
_MODULE_OF = {alias.name: f"{node.module}" for node in _IMPORTS for alias in node.names}

TRAIN = 0
TEST = 1
__version__ = "1.0.0"
__all__ = ["TEST", "TRAIN", "__version__", *_MODULE_OF]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'caffe' has no attribute {name!r}")
    module, is_collecting = _MODULE_OF[name], gc.isenabled()
    gc.disable()  # PyTorch's modules stay: collections while they are imported would take a third of the time
    try:
        value = importlib.import_module(f"caffe.{name}") if module == "caffe" else getattr(importlib.import_module(module), name)
    finally:
        if is_collecting:
            gc.enable()
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

"""Numerics, a choice between exactness and speed that holds while nets compute: `reproducible`, `fp32` or `fast`."""

import contextlib
import sys
import threading
from collections.abc import Iterator

import torch

from caffe.numerics.operations import Reproducible

_SMALLEST = sys.float_info.min
_active = threading.local()


@contextlib.contextmanager
def computing(numerics: str) -> Iterator[None]:
    """Let PyTorch compute in one of NUMERICS; nothing changes within another such scope.

    Numbers below 1.2e-38 are taken as 0: softmax probabilities of well separated classes and the histories of dead units end among
    such numbers, for which processors take a hundred times longer: some starts of LeNet trained ten times slower than others.
    """
    if getattr(_active, "is_inside", False):
        yield
        return
    flushed = _SMALLEST * 0.5 == 0.0
    _active.is_inside = True
    torch.set_flush_denormal(True)
    try:
        with Reproducible() if numerics == "reproducible" else contextlib.nullcontext():
            yield
    finally:
        torch.set_flush_denormal(flushed)
        _active.is_inside = False

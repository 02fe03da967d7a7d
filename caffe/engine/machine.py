"""What the processor and its libraries are told, so that passes run at full speed and with full precision."""

import functools
import sys
from collections.abc import Callable

import torch

from caffe.engine.allocator import keep_freed_memory

_SMALLEST = sys.float_info.min
_OF_VECTORS = (
    *(torch.acos, torch.asin, torch.atan, torch.cos, torch.sin, torch.tan, torch.tanh),
    *(torch.erf, torch.erfc, torch.erfinv, torch.exp, torch.log, torch.log10, torch.log2, torch.sqrt),
)
"""Functions that PyTorch has MKL compute (ATen/cpu/vml.h), but for the one that is exact."""


@functools.cache
def prepare() -> None:
    """Set up the process, once, before the first net runs."""
    keep_freed_memory()
    _choose_kernels()
    _start_threads()


def without_denormals(function: Callable) -> Callable:
    """`function`, computed with numbers below 1.2e-38 taken as 0.

    Softmax probabilities of well separated classes and the histories of dead units end among such numbers, for which processors
    take a hundred times longer: some starts of LeNet trained ten times slower than others.
    """

    @functools.wraps(function)
    def computed(*arguments):
        before = _SMALLEST * 0.5 == 0.0
        torch.set_flush_denormal(True)
        try:
            return function(*arguments)
        finally:
            torch.set_flush_denormal(before)

    return computed


def _choose_kernels() -> None:
    """Let MKL choose its kernel for each function now, on one thread.

    It chooses at the first call, and where several threads make that call at once, MKL 2024.2 may give one of them a kernel of
    11 bits (PyTorch's issue 188792). On a busy machine LRN's first pass was wrong by 2e-4 for half the images in one process of
    four.
    """
    for kind in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=kind)
        for function in _OF_VECTORS:
            function(one)


@without_denormals
def _start_threads() -> None:
    """Let PyTorch start its threads now: they take over for good what the thread that starts them does with denormals."""
    torch.zeros(1 << 20).add_(1)

"""What the processor and the C library are told, so that passes run at full speed."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import torch

from caffe.allocator import keep_freed_memory

_SMALLEST = sys.float_info.min


@functools.cache
def prepare() -> None:
    """Set up the process, once, before the first net runs."""
    keep_freed_memory()
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


@without_denormals
def _start_threads() -> None:
    """Let PyTorch start its threads now: they take over for good what the thread that starts them does with denormals."""
    torch.zeros(1 << 20).add_(1)

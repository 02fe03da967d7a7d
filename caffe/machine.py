"""What the processor and the C library are told, so that passes run at full speed."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

import torch

_SMALLEST = sys.float_info.min


@functools.cache
def prepare() -> None:
    """Set up the process, once, before the first net runs."""
    _keep_freed_memory()
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


def _keep_freed_memory() -> None:
    """Let the C library keep what a pass frees for the next pass, where that can be said (glibc).

    A pass frees its activations all at once; given back to the system, they would come back page by page in the next pass,
    which made LeNet's training step a third slower.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 1 << 30)
        mallopt(top_pad, 64 << 20)

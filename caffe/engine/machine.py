"""Process-wide CPU setup: flush denormals, select MKL kernels, start threads."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

from caffe import events, kernels
from caffe.engine import memory, mode
from caffe.engine.allocator import keep_freed_memory
from caffe.numerics import scope
from caffe.numerics.exact import settled

P = ParamSpec("P")
T = TypeVar("T")

_MKL_FUNCTIONS = (
    *(torch.acos, torch.asin, torch.atan, torch.cos, torch.sin, torch.tan, torch.tanh),
    *(torch.erf, torch.erfc, torch.erfinv, torch.exp, torch.log, torch.log10, torch.log2, torch.sqrt),
)
"""Functions that PyTorch computes by MKL (ATen/cpu/vml.h), except the one that is exact."""


@functools.cache
def prepare() -> None:
    """Set up the process, once, before the first net runs."""
    keep_freed_memory()
    _choose_kernels()
    _start_threads()


def in_numerics(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, computed in the process's numerics (`mode.set_numerics`)."""

    @functools.wraps(function)
    def computed(*arguments: P.args, **options: P.kwargs) -> T:
        try:
            with scope.computing(mode.numerics()):
                return function(*arguments, **options)
        except RuntimeError as error:
            memory.raise_shortage(error, "")
            raise

    return computed


def entering(value: torch.Tensor) -> torch.Tensor:
    """Values that enter a net; in `reproducible`, without subnormal numbers and -0, which devices treat in their ways."""
    return settled(value) if mode.numerics() == "reproducible" and value.dtype == torch.float32 else value


def product_type(device: torch.device) -> torch.dtype:
    """What convolutions and inner products multiply: bfloat16 in `fast` where that is faster; sums are float32."""
    return torch.bfloat16 if mode.numerics() == "fast" and _multiplies_bfloat16(device) else torch.float32


def has_kernels(device: torch.device) -> bool:
    """Whether a GPU's kernels are used now."""
    return mode.numerics() != "reproducible" and kernels.are_used(device)


def by_kernel(name: str, plain: Callable[..., T], *given: Any) -> T:
    """What `plain` computes from the arguments given; on a GPU by the kernel of that name, except in `reproducible`."""
    return plain(*given) if mode.numerics() == "reproducible" else kernels.compute(name, plain, *given)


def sum_type(x: torch.Tensor) -> torch.dtype:
    """What sums of x are: float32 of bfloat16."""
    return torch.float32 if x.dtype is torch.bfloat16 else x.dtype


@functools.cache
def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 faster than float32: by AVX512-BF16 or AMX, or by tensor cores since NVIDIA's Ampere.

    If a CPU does not, it is logged once.
    """
    if device.type == "cuda":
        return bool(torch.cuda.get_device_properties(device).major >= 8)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    found = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    found = found and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # not where its vector code is turned off
    if not found:
        events.fast_in_float32()
    return found


def _choose_kernels() -> None:
    """Let MKL choose its kernel for each function now, on one thread.

    It chooses at the first call, and if several threads make that call at once, MKL 2024.2 may give one of them a kernel of
    11 bits (PyTorch's issue 188792). On a busy machine LRN's first pass was wrong by 2e-4 for half the images in one process of
    four.
    """
    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype)
        for function in _MKL_FUNCTIONS:
            function(one)


def _start_threads() -> None:
    """Let PyTorch start its threads now: they keep the treatment of denormals of the thread that starts them."""
    with scope.computing("fp32"):
        torch.zeros(1 << 20).add_(1)

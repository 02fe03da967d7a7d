"""Kernels for GPUs: what PyTorch computes as several operations, each of which reads and writes all its values, in one.

They are written in Triton, which PyTorch's builds for CUDA bring along, and are for `fp32` and `fast`. The first time that one is
used on a GPU, its results are compared with those of PyTorch's operations; where it fails, or gives others, those are used from
then on. Nothing here imports Triton before a net computes on a GPU.
"""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from caffe import events

SWITCH = "CAFFE_GPU_KERNELS"
"""Environment variable; 0 turns this off."""
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest distance of a kernel's result from that of PyTorch's operations, over the norm of the latter."""
PIECE = 1 << 22
"""Number of values that are compared at once: the memory for it should not be what a GPU lacks."""
R = TypeVar("R")

_works: dict[tuple[str, torch.device, torch.dtype], bool] = {}
"""Whether a kernel gives what PyTorch's operations give on a GPU, for values of a type."""


def are_used(device: torch.device) -> bool:
    """Whether kernels are used on a device at all."""
    return device.type == "cuda" and os.environ.get(SWITCH) != "0" and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def compute(name: str, plain: Callable[..., R], *given: Any) -> R:
    """What `plain` computes by PyTorch's operations, by a kernel if there is one for the device and the values given.

    name   module and name of the kernel: "response.lrn"
    given  arguments of both; the first is a tensor
    """
    first: Tensor = given[0]
    if are_used(first.device) and works(name, first.device, first.dtype, lambda: _gives_same(name, plain, given)):
        kernel = _kernel(name)
        if kernel.fits(*given):
            return kernel.compute(*given)  # type: ignore[no-any-return]
    return plain(*given)


def works(name: str, device: torch.device, dtype: torch.dtype, gives_same: Callable[[], bool | None]) -> bool:
    """Whether a kernel is used on a GPU for values of a type; if not, that is logged once.

    gives_same  tries the kernel: whether it gives what PyTorch's operations give; None if it does not take what there is. It may
                raise whatever a compiler or a driver raises.
    """
    key = name, device, dtype
    if key not in _works:
        try:
            same, reason = gives_same(), "it gives other values than PyTorch's operations"
        except Exception as error:
            same, reason = False, (str(error) or type(error).__name__).splitlines()[0]
        if same is None:
            return False
        _works[key] = same
        if not same:
            events.kernel_not_used(name, device, reason)
    return _works[key]


def _gives_same(name: str, plain: Callable[..., Any], given: Iterable[Any]) -> bool | None:
    kernel = _kernel(name)
    return are_close(_tensors(kernel.compute(*given)), _tensors(plain(*given))) if kernel.fits(*given) else None


@functools.cache
def _kernel(name: str) -> Any:
    module, _, function = name.partition(".")
    return getattr(importlib.import_module(f"caffe.kernels.{module}"), function)


def _tensors(result: Any) -> Iterable[Tensor]:
    return [result] if isinstance(result, Tensor) else [each for each in result if each is not None]


def are_close(mine: Iterable[Tensor], theirs: Iterable[Tensor]) -> bool:
    """Whether a kernel's results are those of PyTorch's operations within rounding, where these are finite."""
    return all(_is_close(ours, other) for ours, other in zip(mine, theirs, strict=True))


def _is_close(mine: Tensor, theirs: Tensor) -> bool:
    if mine.shape != theirs.shape:
        return False
    distance, norm = (torch.zeros((), dtype=torch.float64, device=mine.device) for _ in range(2))
    rows = max(1, PIECE * max(1, len(mine)) // max(1, mine.numel())) if mine.dim() else 1
    for ours, other in zip(*(each.split(rows) if each.dim() else [each] for each in (mine, theirs)), strict=True):
        ours, other = ours.float(), other.float()
        finite = other.isfinite()
        distance += torch.where(finite, ours - other, 0).double().square().sum()
        norm += torch.where(finite, other, 0).double().square().sum()
    return bool(distance <= TOLERANCE[mine.dtype] ** 2 * norm)

"""Kernels for GPUs: what PyTorch computes as several operations, each of which reads and writes all its values, in one.

They are written in Triton, which PyTorch's builds for CUDA bring along, and are for `fp32` and `fast`. Before one is used on a
GPU, it is tried: where it fails, or gives other values than PyTorch's operations, those are used from then on. Nothing here
imports Triton before a net computes on a GPU.
"""

import functools
import importlib
import os
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from caffe import events

SWITCH = "CAFFE_GPU_KERNELS"
"""Environment variable; 0 turns this off."""
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest distance of a kernel's result from that of PyTorch's operations, over the norm of the latter."""
SEED = 1
TRIED = 1 << 20
"""Number of values on which a kernel is tried, about: the memory for it should not be what a GPU lacks."""
R = TypeVar("R")
V = TypeVar("V")

_Key = tuple[str, torch.device, Hashable]
_works: dict[_Key, bool] = {}
"""Whether a variant of a kernel gives what PyTorch's operations give on a GPU."""
_logged: set[tuple[str, torch.device]] = set()


def are_used(device: torch.device) -> bool:
    """Whether kernels are used on a device at all."""
    return device.type == "cuda" and os.environ.get(SWITCH) != "0" and _has_triton()


@functools.cache
def _has_triton() -> bool:
    try:
        importlib.import_module("triton")
    except Exception:  # a broken installation raises many things
        return False
    return True


def compute(name: str, plain: Callable[..., R], *given: Any) -> R:
    """What `plain` computes by PyTorch's operations, by a kernel if there is one for the device and the values given.

    name   module and name of the kernel: "response.lrn"
    given  arguments of both; the first is a tensor
    """
    first: Tensor = given[0]
    kernel = _kernel(name) if are_used(first.device) else None
    if kernel is None or not kernel.fits(*given):
        return plain(*given)

    def by_kernel(values: tuple[Any, ...]) -> R:
        return kernel.compute(*values)  # type: ignore[no-any-return]

    def by_pytorch(values: tuple[Any, ...]) -> R:
        return plain(*values)

    key = name, first.device, tuple(map(_kind, given))
    return choose(key, given, _drawn, by_kernel, by_pytorch, lambda values, result: _tensors(result))


def choose(
    key: _Key,
    given: V,
    draw: Callable[[V], V],
    by_kernel: Callable[[V], R],
    by_pytorch: Callable[[V], R],
    results: Callable[[V, R], Iterable[Tensor]],
) -> R:
    """The result by a kernel, which has been tried; or by PyTorch's operations if it fails or gives others.

    key        name, device, and what is different in other variants, each of which is tried
    draw       makes other values such as those given, for the trial: the same each time, since they may be changed in place
    by_kernel  must have changed nothing if it raises an error
    results    the tensors that have to be the same
    """
    try:
        if key not in _works:
            values, theirs = draw(given), draw(given)
            expected = by_pytorch(theirs)  # what it raises is not the kernel's
            try:
                same = are_close(results(values, by_kernel(values)), results(theirs, expected))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever a compiler or a driver may raise
                _refuse(key, error)
            else:
                _works[key] = True
                if not same:
                    _refuse(key, "it gives other values than PyTorch's operations")
    except torch.OutOfMemoryError:
        return by_pytorch(given)  # and it is tried the next time
    if not _works[key]:
        return by_pytorch(given)
    try:
        return by_kernel(given)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of a variant that was not tried
        if torch.cuda.is_current_stream_capturing():
            raise
        _refuse(key, error)
        return by_pytorch(given)


def _refuse(key: _Key, reason: object) -> None:
    """Use PyTorch's operations from now on; logged once for each kernel and GPU."""
    _works[key] = False
    if key[:2] not in _logged:
        _logged.add(key[:2])
        events.kernel_not_used(key[0], key[1], (str(reason) or type(reason).__name__).splitlines()[0])


def _kind(value: Any) -> Hashable:
    """What makes another variant of a kernel: a tensor's type and layout, a number itself."""
    return (value.dtype, value.dim(), value.is_contiguous()) if isinstance(value, Tensor) else value


@functools.cache
def _kernel(name: str) -> Any:
    """The kernel of that name; None if another version of Triton is here, in which it cannot be written so."""
    module, _, function = name.partition(".")
    try:
        return getattr(importlib.import_module(f"caffe.kernels.{module}"), function)
    except Exception as error:
        events.kernel_not_used(name, "GPUs", error)
        return None


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [each for each in result if each is not None]


def _drawn(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments with the types, strides and integers of those given, but of fewer images, and normally distributed.

    Rounding errors of values given may be large: those of log p where all p are nearly 1, or of a sum of terms that cancel out.
    """
    random = torch.Generator().manual_seed(SEED)
    first: Tensor = given[0]
    alike = [each for each in given if isinstance(each, Tensor) and each.dim() == first.dim()]
    rows = max(1, TRIED // max(1, first[:1].numel())) if first.dim() and len({len(each) for each in alike}) == 1 else None

    def draw(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        part = value[:rows] if rows and value.dim() == first.dim() else value
        return torch.empty_like(part).copy_(torch.randn(part.shape, generator=random)) if part.is_floating_point() else part

    return tuple(draw(each) for each in given)


def are_close(mine: Iterable[Tensor], theirs: Iterable[Tensor]) -> bool:
    """Whether a kernel's results are those of PyTorch's operations within rounding."""
    for ours, other in zip(mine, theirs, strict=True):
        if ours.shape != other.shape:
            return False
        tolerance, expected = TOLERANCE[ours.dtype], other.float()
        if not bool(torch.linalg.vector_norm(ours.float() - expected) <= tolerance * torch.linalg.vector_norm(expected)):
            return False
    return True

"""What all kernels share: they are operations of PyTorch, which its modes and CUDA graphs see, and are started alike."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("caffe_kernels", "DEF")

LARGEST = 2**31 - 1
"""Greatest number of values of a tensor whose positions the kernels can count."""


@dataclass
class Kernel:
    """An operation.

    compute  it, as PyTorch knows it
    fits     whether it takes such arguments
    """

    compute: Callable[..., Any]
    fits: Callable[..., bool]


def kernel(arguments: str, fits: Callable[..., bool]) -> Callable[[Callable[..., Any]], Kernel]:
    """Make a function an operation of PyTorch, with arguments and results as in its schemas: "(Tensor x) -> Tensor"."""

    def defined(function: Callable[..., Any]) -> Kernel:
        name = function.__name__
        _LIBRARY.define(name + arguments)
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        return Kernel(getattr(torch.ops.caffe_kernels, name).default, fits)

    return defined


def are_countable(*values: Tensor) -> bool:
    """Whether values are of one type that the kernels take, and one shape, neither empty nor too large to count."""
    first = values[0]
    is_known = first.dtype in (torch.float32, torch.bfloat16) and 0 < first.numel() <= LARGEST
    return is_known and all(each.dtype is first.dtype and each.shape == first.shape for each in values)


def launch(function: Any, programs: int, like: Tensor, *arguments: object, warps: int = 4, **constants: object) -> None:
    """Start a function of Triton on the GPU of a tensor.

    Products and sums are rounded one by one, as PyTorch's are, not fused to what a compiler's version prefers.
    """
    with torch.cuda.device_of(like):
        function[(programs,)](*arguments, **constants, num_warps=warps, enable_fp_fusion=False)


def dense(x: Tensor) -> Tensor:
    """Images in row-major or channels-last memory, others row-major: x itself, if it is."""
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


def alike(value: Tensor, other: Tensor) -> Tensor:
    """`value` with the strides of `other`, which is dense: `value` itself, if it has them."""
    return value if value.stride() == other.stride() else torch.empty_like(other, dtype=value.dtype).copy_(value)


def blocks(count: int, block: int) -> int:
    """Number of blocks that hold `count` values."""
    return -(-count // block)

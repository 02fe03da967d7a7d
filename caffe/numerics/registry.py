"""PyTorch's operations that have an implementation of ours."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from caffe.numerics.exact import flushed, rounded

F = TypeVar("F", bound=Callable[..., Any])

OURS: dict[str, Callable[..., Any]] = {}
"""Operations by name, without the `_` of those in place, and their implementations."""


class RefusedError(Exception):
    """Raised by an implementation for arguments that it does not support."""


def ours(*names: str) -> Callable[[F], F]:
    """Register the implementation of operations."""

    def register(function: F) -> F:
        OURS.update(dict.fromkeys(names, function))
        return function

    return register


def in_double(x: Any) -> Any:
    """float32 numbers as float64; a number as it is."""
    return flushed(x).double() if isinstance(x, Tensor) and x.is_floating_point() else x


def like(value: Tensor, *sources: Any) -> Tensor:
    """float64 results as float32, unless one of the sources is a float64 array, or none is float32."""
    dtypes = [(x.dtype, bool(x.dim())) for x in sources if isinstance(x, Tensor) and x.is_floating_point()]
    wide = (torch.float64, True) in dtypes or all(dtype == torch.float64 for dtype, _ in dtypes)
    return value if wide else rounded(value)


def constant(value: float, x: Tensor) -> Tensor:
    """A number as a float64 array that broadcasts to x: on GPUs, a division by a plain number multiplies by its reciprocal."""
    return torch.full([1] * x.dim(), float(value), dtype=torch.float64, device=x.device)

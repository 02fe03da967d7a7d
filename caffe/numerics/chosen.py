"""PyTorch's operations that order, count or round, where an argument decides whether all devices do it alike."""

from typing import Any

import torch
from torch import Tensor

from caffe.numerics.registry import RefusedError, ours


@ours("arange")
def _arange(*bounds: float, **how: Any) -> Tensor:
    """Whole numbers only: fractions are added up by vectors and threads."""
    if any(bound != int(bound) for bound in bounds):
        raise RefusedError
    return torch.arange(*bounds, **how)


@ours("round")
def _round(x: Tensor, *, decimals: int = 0) -> Tensor:
    if decimals:
        raise RefusedError
    return torch.round(x)


@ours("sort")
def _sort(x: Tensor, dim: int = -1, descending: bool = False, *, stable: bool | None = None) -> tuple[Tensor, Tensor]:
    """Equal values in their order, whether that is asked for or not."""
    values, places = torch.sort(x, dim=dim, descending=descending, stable=True)
    return values, places


@ours("topk")
def _topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, Tensor]:
    """Of equal values, the first ones."""
    values, places = _sort(x, dim, largest)
    return values.narrow(dim, 0, k), places.narrow(dim, 0, k)

"""PyTorch's bilinear interpolation and its gradient."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from caffe.numerics.exact import added, rounded
from caffe.numerics.registry import in_double, ours


class Neighbours(NamedTuple):
    """For each place along an axis of the result: the places of the source on both sides of it, and the upper one's share."""

    lower: Tensor
    upper: Tensor
    share: Tensor


def _neighbours(source: int, result: int, align_corners: bool, scale: float | None, device: torch.device) -> Neighbours:
    places = torch.arange(result, device=device).double()
    if align_corners:
        position = places * ((source - 1) / (result - 1) if result > 1 else 0.0)
    else:
        position = ((places + 0.5) * (1 / scale if scale else source / result) - 0.5).clamp_min(0)
    lower = position.floor().clamp_max(source - 1)
    return Neighbours(lower.long(), (lower + 1).clamp_max(source - 1).long(), position - lower)


def _both(
    x: Sequence[int], size: Sequence[int], align_corners: bool, scales: Sequence[float | None], device: torch.device
) -> list[Neighbours]:
    """The neighbours along height and width."""
    axes = zip(x[2:], size, scales, strict=True)
    return [_neighbours(source, result, align_corners, scale, device) for source, result, scale in axes]


@ours("upsample_bilinear2d")
def _bilinear(
    x: Tensor, size: Sequence[int], align_corners: bool, scale_h: float | None = None, scale_w: float | None = None
) -> Tensor:
    y = in_double(x)
    for axis, at in zip((2, 3), _both(x.shape, size, align_corners, (scale_h, scale_w), x.device), strict=True):
        share = at.share.view(-1, *[1] * (3 - axis))
        y = y.index_select(axis, at.lower) * (1 - share) + y.index_select(axis, at.upper) * share
    return rounded(y)


@ours("upsample_bilinear2d_backward")
def _bilinear_backward(
    gradient: Tensor, size: Sequence[int], input_size: Sequence[int], align_corners: bool, scale_h: float | None = None,
    scale_w: float | None = None,
) -> Tensor:  # fmt: skip
    g = in_double(gradient)
    for axis, at in zip((2, 3), _both(input_size, size, align_corners, (scale_h, scale_w), g.device), strict=True):
        share = at.share.view(-1, *[1] * (3 - axis))
        terms, places = torch.cat([g * (1 - share), g * share], axis), torch.cat([at.lower, at.upper])
        add = functools.partial(_added_along, axis, input_size[axis], places)
        g = added(terms, (2, 3), len(places), add, twice=True)
    return rounded(g)


def _added_along(axis: int, extent: int, places: Tensor, terms: Tensor) -> Tensor:
    """Terms added at their places on an axis of zeros."""
    shape = [extent if index == axis else length for index, length in enumerate(terms.shape)]
    return torch.zeros(shape, dtype=terms.dtype, device=terms.device).index_add(axis, places, terms)

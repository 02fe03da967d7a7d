"""Pooling's sums and gradients with overlapping windows added in a fixed order, in float64."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from caffe.numerics.exact import PIECE, rounded
from caffe.numerics.registry import constant, in_double, ours

Part = tuple[EllipsisType, slice, slice]


def _pair(value: Sequence[int]) -> tuple[int, int]:
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


@dataclass(frozen=True)
class Windows:
    """How windows lie on images; each attribute is a pair, for height and width.

    size  of the image
    out   number of windows
    """

    size: tuple[int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def padded(self) -> list[int]:
        """The size of an image with padding in which every window lies."""
        axes = zip(self.size, self.out, self.kernel, self.stride, self.padding, strict=True)
        return [max(n + 2 * p, (o - 1) * s + k) for n, o, k, s, p in axes]

    def parts(self) -> Iterator[Part]:
        """For each offset in a window, the slices of a padded image that hold that number of every window."""
        for offset in itertools.product(*map(range, self.kernel)):
            rows, columns = (slice(o, o + s * (n - 1) + 1, s) for o, s, n in zip(offset, self.stride, self.out, strict=True))
            yield ..., rows, columns

    def inside(self) -> Part:
        """The slices of a padded image that hold the image."""
        rows, columns = (slice(p, p + n) for p, n in zip(self.padding, self.size, strict=True))
        return ..., rows, columns

    def divisors(self, include_pad: bool, given: int | None, x: Tensor) -> Tensor:
        """What the mean of each window divides by: how many numbers lie inside the padded image, or inside the image."""
        if given is not None:
            return constant(given, x)
        sides = []
        for n, o, k, s, p in zip(self.size, self.out, self.kernel, self.stride, self.padding, strict=True):
            start = torch.arange(o, device=x.device) * s - p
            end = (start + k).clamp(max=n + p)
            sides.append(end - start if include_pad else end.clamp(max=n) - start.clamp(min=0))
        return (sides[0][:, None] * sides[1][None, :]).double()

    def zeros(self, x: Tensor) -> Tensor:
        """Padded images for those of x, float64."""
        return torch.zeros(*x.shape[:-2], *self.padded(), dtype=torch.float64, device=x.device)


def by_images(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of batches, computed some images at a time, so that they stay in a processor's cache."""

    @functools.wraps(function)
    def computed(*given: Any) -> Tensor:
        images = max((each for each in given if isinstance(each, Tensor)), key=Tensor.numel)
        step = max(1, PIECE // 4 // max(1, images[:1].numel()))
        if images.dim() < 4 or images.is_cuda or len(images) <= step:
            return function(*given)
        starts = range(0, len(images), step)
        return torch.cat(
            [function(*(each[start : start + step] if isinstance(each, Tensor) else each for each in given)) for start in starts]
        )

    return computed


@ours("avg_pool2d")
@by_images
def _mean(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,), ceil_mode: bool = False,
    include_pad: bool = True, divisor: int | None = None,
) -> Tensor:  # fmt: skip
    like = torch.empty(x.shape, device="meta")
    out = torch.ops.aten.avg_pool2d(like, kernel, stride, padding, ceil_mode, include_pad, divisor).shape
    w = Windows(_pair(x.shape[-2:]), _pair(out[-2:]), _pair(kernel), _pair(stride or kernel), _pair(padding))
    source = w.zeros(x)
    source[w.inside()] = in_double(x)
    total = torch.zeros(out, dtype=torch.float64, device=x.device)
    for part in w.parts():
        total += source[part]
    return rounded(total / w.divisors(include_pad, divisor, x))


@ours("avg_pool2d_backward")
@by_images
def _mean_backward(
    gradient: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool,
    include_pad: bool, divisor: int | None,
) -> Tensor:  # fmt: skip
    w = Windows(_pair(x.shape[-2:]), _pair(gradient.shape[-2:]), _pair(kernel), _pair(stride or kernel), _pair(padding))
    shares = in_double(gradient) / w.divisors(include_pad, divisor, x)
    target = w.zeros(x)
    for part in w.parts():
        target[part] += shares
    return rounded(target[w.inside()])


@ours("max_pool2d_with_indices_backward")
@by_images
def _maximum_backward(
    gradient: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    ceil_mode: bool, indices: Tensor,
) -> Tensor:  # fmt: skip
    # Windows of one phase are so far apart that they have no number in common.
    axes = zip(_pair(kernel), _pair(stride or kernel), _pair(dilation), strict=True)
    down, across = (d * (k - 1) // s + 1 for k, s, d in axes)
    target = torch.zeros(*x.shape[:-2], x.shape[-2] * x.shape[-1], dtype=torch.float64, device=x.device)
    values = in_double(gradient)
    if max(dilation) > 1:  # a window may lie between padding: it has no maximum
        values, indices = torch.where(indices < target.shape[-1], values, 0.0), indices.clamp(max=target.shape[-1] - 1)
    for row, column in itertools.product(range(down), range(across)):
        phase: Part = (..., slice(row, None, down), slice(column, None, across))
        target.scatter_add_(-1, indices[phase].flatten(-2), values[phase].flatten(-2))
    return rounded(target.view(x.shape))

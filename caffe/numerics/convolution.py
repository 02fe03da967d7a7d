"""Convolution and its gradients as exact products of unfolded images, for any number of axes, groups, strides and dilations.

Images are taken some at a time, so that they stay in a processor's cache, and a product's partial sums over positions have at
most `exact.BLOCK` terms where one image has fewer.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType

import torch
from torch import Tensor

from caffe.numerics import exact
from caffe.numerics.exact import Sliced

Index = tuple[EllipsisType | slice, ...]


@dataclass(frozen=True)
class Geometry:
    """How windows lie on an image; one number for each axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, weight: Tensor, *settings: Sequence[int], groups: int) -> "Geometry":
        """That of a kernel, from PyTorch's arguments: stride, padding and dilation, which may hold one number for all axes."""
        kernel = tuple(weight.shape[2:])
        stride, padding, dilation = (tuple(each) * len(kernel) if len(each) == 1 else tuple(each) for each in settings)
        return cls(kernel, stride, padding, dilation, groups)

    def positions(self, size: Sequence[int]) -> tuple[int, ...]:
        """The number of windows along each axis of an image."""
        axes = zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * pad - step * (k - 1) - 1) // stride + 1 for n, k, stride, pad, step in axes)

    def windows(self, x: Tensor) -> Tensor:
        """A view of padded images, N × C × size, as N × C × kernel × positions."""
        out = self.positions(x.shape[2:])
        x = torch.nn.functional.pad(x, [pad for pads in reversed(self.padding) for pad in (pads, pads)])
        steps = x.stride()[2:]
        strides = [step * d for step, d in zip(steps, self.dilation, strict=True)]
        strides += [step * s for step, s in zip(steps, self.stride, strict=True)]
        return x.as_strided((*x.shape[:2], *self.kernel, *out), (*x.stride()[:2], *strides))

    def unfold(self, x: Tensor) -> Tensor:
        """Images as matrices: groups × (channels of a group · kernel) × (images · positions)."""
        rows = x.shape[1] // self.groups * math.prod(self.kernel)
        return self.windows(x).movedim(0, 1 + len(self.kernel)).reshape(self.groups, rows, -1)

    def fold(self, columns: Tensor, images: int, size: Sequence[int]) -> Tensor:
        """The adjoint of `unfold`: N × C × size, overlapping windows added in a fixed order, in float64."""
        out, axes = self.positions(size), len(size)
        padded = [n + 2 * pad for n, pad in zip(size, self.padding, strict=True)]
        values = columns.reshape(-1, *self.kernel, images, *out).movedim(1 + axes, 0)
        target = torch.zeros(images, values.shape[1], *padded, dtype=torch.float64, device=columns.device)
        for offset in itertools.product(*map(range, self.kernel)):
            spans = zip(offset, self.dilation, self.stride, out, strict=True)
            part: Index = (..., *(slice(o * d, o * d + s * (n - 1) + 1, s) for o, d, s, n in spans))
            at: tuple[slice | int, ...] = (slice(None), slice(None), *offset)
            target[part] += values[at]
        inner: Index = (..., *(slice(pad, pad + n) for pad, n in zip(self.padding, size, strict=True)))
        return target[inner]

    def sliced(self, x: Tensor) -> Sliced:
        """Unfolded images in slices, with one scale."""
        x = exact.flushed(x)
        high, low, scale, special = exact.slices(x, tuple(range(x.dim())))
        columns = self.unfold(high), None if low is None else self.unfold(low), scale.reshape(1, 1, 1)
        return Sliced(*columns, special, lambda: self.unfold(x), lambda: self._occupied(x))

    def _occupied(self, x: Tensor) -> Tensor:
        """Which columns of the unfolded images have a value other than 0: groups × 1 × columns."""
        some = (x != 0).view(len(x), self.groups, -1, *x.shape[2:]).any(2)
        view = self.windows(some)
        axes = tuple(range(2, 2 + len(self.kernel)))
        return view.any(axes).transpose(0, 1).reshape(self.groups, 1, -1)

    def chunks(self, images: int, channels: int, size: Sequence[int], most: int = exact.PIECE) -> Iterator[slice]:
        """Which images, channels × size, are taken together: at most so many positions, unless one image has more."""
        positions = math.prod(self.positions(size))
        step = max(1, min(most, exact.PIECE // (channels * math.prod(self.kernel))) // positions)
        return (slice(start, min(start + step, images)) for start in range(0, images, step))


def _rows(g: Geometry, values: Tensor) -> Tensor:
    """N × C × positions as groups × channels of a group × (N · positions)."""
    return values.transpose(0, 1).reshape(g.groups, values.shape[1] // g.groups, -1)


def forward(g: Geometry, x: Tensor, weight: Tensor) -> Tensor:
    """The convolution without bias: N × C × size with outputs × (C / groups) × kernel."""
    out = g.positions(x.shape[2:])
    rows = exact.sliced(weight.reshape(g.groups, weight.shape[0] // g.groups, -1), -1)
    parts = []
    for here in g.chunks(len(x), x.shape[1], x.shape[2:]):
        y = exact.rounded(exact.sum_of_products(rows, g.sliced(x[here])))
        parts.append(y.reshape(weight.shape[0], -1, *out).transpose(0, 1))
    return torch.cat(parts) if parts else x.new_zeros(0, weight.shape[0], *out)


def input_gradient(g: Geometry, gradient: Tensor, weight: Tensor, size: Sequence[int]) -> Tensor:
    """The gradient for the input of `forward`, whose images have this size."""
    if reverse := _reverse(g, gradient.shape[2:], size):
        kernels = weight.flip(tuple(range(2, weight.dim()))).view(g.groups, -1, *weight.shape[1:]).transpose(1, 2)
        return forward(reverse, gradient, kernels.reshape(-1, *kernels.shape[2:]))
    matrix = weight.reshape(g.groups, weight.shape[0] // g.groups, -1).transpose(1, 2)
    rows = exact.sliced(matrix, -1)
    parts = []
    for here in g.chunks(len(gradient), weight.shape[1] * g.groups, size):
        some = gradient[here]
        columns = exact.sum_of_products(rows, exact.sliced(_rows(g, some), -2))
        parts.append(exact.rounded(g.fold(columns, len(some), size)))
    return torch.cat(parts) if parts else gradient.new_zeros(0, weight.shape[1] * g.groups, *size)


def _reverse(g: Geometry, windows: Sequence[int], size: Sequence[int]) -> Geometry | None:
    """For a stride of 1, the input's gradient is a convolution with the kernels reversed, which takes less memory: its geometry.

    None where that would take longer, as it computes a product for each pixel, not for each window.

    windows, size  of the gradient, and of the input
    """
    if any(step != 1 for step in g.stride) or math.prod(size) > 1.25 * math.prod(windows):
        return None
    padding = tuple(d * (k - 1) - pad for k, d, pad in zip(g.kernel, g.dilation, g.padding, strict=True))
    reverse = Geometry(g.kernel, g.stride, padding, g.dilation, g.groups)
    return reverse if reverse.positions(windows) == tuple(size) else None


def _transposed(g: Geometry, x: Tensor) -> Sliced:
    """Unfolded images, with one scale, as a product's right side: a column is an input channel at an offset in the window."""
    some = g.sliced(x)
    high, low = some.high.transpose(1, 2), None if some.low is None else some.low.transpose(1, 2)

    def occupied() -> Tensor:
        channels = (x != 0).transpose(0, 1).flatten(1).any(1)
        return channels.view(g.groups, 1, -1).repeat_interleave(math.prod(g.kernel), 2)

    return Sliced(high, low, some.scale, some.special, lambda: some.values().transpose(1, 2), occupied)


def weight_gradient(g: Geometry, gradient: Tensor, x: Tensor, shape: Sequence[int]) -> Tensor:
    """The gradient for the weights of `forward`, of this shape."""
    total: Tensor | None = None
    for here in g.chunks(len(x), x.shape[1], x.shape[2:], exact.BLOCK):
        columns = _transposed(g, x[here])
        part = exact.sum_of_products(exact.sliced(_rows(g, gradient[here]), -1), columns)
        total = part if total is None else total.add_(part)
    return x.new_zeros(shape) if total is None else exact.rounded(total).reshape(shape)

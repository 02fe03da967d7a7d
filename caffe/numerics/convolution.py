"""Convolution and its gradients as exact products of windows of images, for any number of axes, groups, strides and dilations.

Images are unfolded along all axes but the first, and have that axis outermost: what a row of a kernel meets in all windows is one
piece of memory. A kernel of 5 × 5 takes five products with parts of an array that has a fifth of the windows' numbers. Images are
taken some at a time, so that they stay in a processor's cache.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType

import torch
from torch import Tensor

from caffe.numerics import exact
from caffe.numerics.exact import BLOCK, QUICK_BLOCK, SAMPLE, Sliced

TOGETHER = 128
"""Columns that are multiplied together, at least: with few, a matrix library spends its time on copies of the rows."""

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

    def fold(self, columns: Tensor, images: int, size: Sequence[int]) -> Tensor:
        """Add windows, groups × (channels of a group · kernel) × (images · positions), to images, in a fixed order, float64."""
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

    def chunks(self, images: int, channels: int, outputs: int, size: Sequence[int]) -> Iterator[slice]:
        """Which images, channels × size, are taken together, so that neither unfolded images nor results have many numbers."""
        return self.pieces(images, max(channels * math.prod(self.kernel[1:]) * self.stride[0], 2 * outputs), size)

    def pieces(self, images: int, numbers: int, size: Sequence[int]) -> Iterator[slice]:
        """Which images are taken together, if there are so many numbers for each window."""
        step = max(1, exact.PIECE // (numbers * math.prod(self.positions(size))))
        return (slice(start, min(start + step, images)) for start in range(0, images, step))


class _Windows(Sliced):
    """Images as the right side of a product. Numbers are groups × channels of a group × padded size × images."""

    def __init__(self, g: Geometry, x: Tensor, of_each: bool):
        """x: N × C × size. of_each: whether each image has a scale of its own, or all have one."""
        self.g, self.out = g, g.positions(x.shape[2:])
        # The first axis is as long as the windows reach, in whole strides.
        self.rows = (g.dilation[0] * (g.kernel[0] - 1)) // g.stride[0] + self.out[0]
        ends = [self.rows * g.stride[0] - x.shape[2] - g.padding[0], *g.padding[1:]]
        pads = [0, 0, *(pad for pair in reversed(list(zip(g.padding, ends, strict=True))) for pad in pair)]
        x = exact.flushed(x)
        padded = torch.nn.functional.pad(x.movedim(0, -1), pads).contiguous()
        values = padded.view(g.groups, -1, *padded.shape[1:])
        bounds = x.abs().amax(tuple(range(of_each, x.dim())))  # takes less time than where images are last
        bounds = bounds.view(*[1] * (values.dim() - bounds.dim()), *bounds.shape)
        super().__init__(values, tuple(range(values.dim() - of_each)), bounds)
        self._last: tuple[Tensor, Tensor] | None = None

    @property
    def row(self) -> int:
        """Terms of a row of a kernel, in all channels of a group."""
        return self.values.shape[1] * math.prod(self.g.kernel[1:])

    @property
    def length(self) -> int:
        """Positions along all axes but the first, in all images."""
        return math.prod(self.out[1:]) * self.values.shape[-1]

    def unfolded(self, numbers: Tensor) -> Tensor:
        """Images unfolded along all axes but the first: groups × terms of a row × stride × (rows · positions of a row).

        The last are kept, as a product's sample and the product are of the same numbers.
        """
        if self._last is None or self._last[0] is not numbers:
            self._last = None
            g, steps = self.g, numbers.stride()
            across = [step * dilation for step, dilation in zip(steps[3:-1], g.dilation[1:], strict=True)]
            along = [step * stride for step, stride in zip(steps[3:-1], g.stride[1:], strict=True)]
            shape = (*numbers.shape[:2], *g.kernel[1:], g.stride[0], self.rows, *self.out[1:], numbers.shape[-1])
            view = numbers.as_strided(shape, (*steps[:2], *across, steps[2], steps[2] * g.stride[0], *along, steps[-1]))
            self._last = numbers, view.reshape(g.groups, self.row, g.stride[0], -1)
        return self._last[1]

    def of_row(self, unfolded: Tensor, number: int) -> Tensor:
        """What that row of a kernel meets: groups × terms of a row × (positions · images)."""
        start, phase = divmod(number * self.g.dilation[0], self.g.stride[0])
        return unfolded[:, :, phase, start * self.length : (start + self.out[0]) * self.length]

    def _places(self, numbers: Tensor, shape: tuple[int, ...], steps: Sequence[int]) -> Tensor:
        """Where the entries of an array of this shape lie in `values`, given their numbers and the steps along its axes."""
        places = torch.zeros_like(numbers)
        for size, step in zip(reversed(shape), reversed(steps), strict=True):
            places, numbers = places + numbers % size * step, numbers // size
        return places

    def positions_in(self, numbers: Tensor) -> Tensor:
        """Where the windows of some positions begin in `values`; positions are in the order of columns."""
        steps = self.values.stride()
        along = [step * stride for step, stride in zip(steps[2:-1], self.g.stride, strict=True)]
        return self._places(numbers, (*self.out, self.values.shape[-1]), [*along, steps[-1]])

    def offsets_in(self, numbers: Tensor) -> Tensor:
        """Where in a window some terms lie; terms are ordered by the row of the kernel, then by channel."""
        steps, (first, *others) = self.values.stride(), self.g.kernel
        down, *across = [step * dilation for step, dilation in zip(steps[2:-1], self.g.dilation, strict=True)]
        return self._places(numbers, (first, self.values.shape[1], *others), [down, steps[1], *across])

    def _gathered(self, group: Tensor, first: Tensor, second: Tensor) -> Tensor:
        places = (group * self.values.stride(0) + first)[:, None] + second
        return self.values.reshape(-1)[places]


class _AsColumns(_Windows):
    """A column for each window: the rows of kernels times the windows are a convolution."""

    def __init__(self, g: Geometry, x: Tensor):
        super().__init__(g, x, of_each=True)

    def dot(self, left: Tensor, numbers: Tensor, into: list[Tensor] | None = None, block: int = BLOCK) -> list[Tensor]:
        unfolded, totals = self.unfolded(numbers), list(into or [])
        at, room = -1, 0
        for number, start in itertools.product(range(self.g.kernel[0]), range(0, self.row, block)):
            end = min(start + block, self.row)
            if end - start > room:
                at, room = at + 1, block
            room -= end - start
            terms = slice(number * self.row + start, number * self.row + end)
            here = self.of_row(unfolded, number)[:, start:end]
            if at < len(totals):
                exact.times(left[..., terms], here, totals[at])
            else:
                totals.append(exact.times(left[..., terms], here))
        return totals

    def sample(self, left: Tensor) -> Tensor:
        """Of some terms of the rows in the middle of the kernel, for those at its ends meet the padding; of all columns of it."""
        wanted = max(SAMPLE // 4, min(SAMPLE, left.shape[-1] // 8))
        count = min(self.g.kernel[0], -(-wanted // self.row))
        first, step = (self.g.kernel[0] - count) // 2, _coprime(count * self.row // wanted, math.prod(self.g.kernel[1:]))
        unfolded, total = self.unfolded(self.wide), None
        for number in range(first, first + count):
            rows = left[..., number * self.row : (number + 1) * self.row : step]
            total = exact.times(rows, self.of_row(unfolded, number)[:, ::step].abs(), total)
        assert total is not None
        return total

    def is_zero(self) -> Tensor:
        """Of whole images only."""
        return (self.bounds == 0).flatten().repeat(math.prod(self.out))

    def scaled(self, total: Tensor, rows: Tensor) -> Tensor:
        images = self.values.shape[-1]
        total.view(*total.shape[:-1], -1, images).mul_(rows[..., None] * self.scale.reshape(images))
        return total

    def terms(self, batch: tuple[Tensor, ...], columns: Tensor, shape: Sequence[int]) -> Tensor:
        every = torch.arange(self.g.kernel[0] * self.row, device=columns.device)
        return self._gathered(batch[0], self.positions_in(columns), self.offsets_in(every))


class _AsRows(_Windows):
    """A row for each window: a gradient's rows times the windows are the gradient for the kernels."""

    def __init__(self, g: Geometry, x: Tensor):
        super().__init__(g, x, of_each=False)

    def dot(self, left: Tensor, numbers: Tensor, into: list[Tensor] | None = None, block: int = BLOCK) -> list[Tensor]:
        unfolded, starts = self.unfolded(numbers), range(0, left.shape[-1], block)
        shape = (*left.shape[:-1], self.g.kernel[0] * self.row)
        totals = into or [left.new_zeros(shape) for _ in starts]
        together = max(1, TOGETHER // self.row)
        for first in range(0, self.g.kernel[0], together):
            numbers_of = range(first, min(first + together, self.g.kernel[0]))
            parts = [self.of_row(unfolded, number) for number in numbers_of]
            rows = (torch.cat(parts, 1) if len(parts) > 1 else parts[0]).transpose(1, 2)
            columns = slice(first * self.row, first * self.row + rows.shape[-1])
            for start, total in zip(starts, totals, strict=True):
                here = slice(start, start + block)
                exact.times(left[..., here], rows[:, here], total[..., columns])
        return totals

    def sample(self, left: Tensor) -> Tensor:
        """Of some windows, of all images."""
        step, unfolded = _coprime(left.shape[-1] // QUICK_BLOCK + 1, self.values.shape[-1]), self.unfolded(self.wide)
        rows = [self.of_row(unfolded, number)[..., ::step] for number in range(self.g.kernel[0])]
        return exact.times(left[..., ::step], torch.cat(rows, 1).abs_().transpose(1, 2))

    def is_zero(self) -> Tensor:
        """Of whole channels only: groups × 1 × terms of a window."""
        channels = ~self.values.flatten(2).any(-1)
        row = channels[:, :, None].expand(-1, -1, math.prod(self.g.kernel[1:])).flatten(1)
        return row.repeat(1, self.g.kernel[0])[:, None]

    def terms(self, batch: tuple[Tensor, ...], columns: Tensor, shape: Sequence[int]) -> Tensor:
        every = torch.arange(self.out[0] * self.length, device=columns.device)
        return self._gathered(batch[0], self.offsets_in(columns), self.positions_in(every))


def _coprime(step: int, period: int) -> int:
    """The least step of at least this one, and at least 1, that meets every place of the period."""
    return next(each for each in itertools.count(max(1, step)) if math.gcd(each, period) == 1)


def _kernels(g: Geometry, weight: Tensor) -> Tensor:
    """Kernels as a product's left side: groups × outputs of a group × terms, ordered by row, then by channel."""
    return weight.transpose(1, 2).reshape(g.groups, weight.shape[0] // g.groups, -1)


def forward(g: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution: N × C × size with outputs × (C / groups) × kernel, plus a number for each output."""
    out = g.positions(x.shape[2:])
    rows = exact.sliced(_kernels(g, weight), -1)
    parts = []
    for here in g.chunks(len(x), x.shape[1], weight.shape[0], x.shape[2:]):
        y = exact.rounded(exact.sum_of_products(rows, _AsColumns(g, x[here])))
        y = y.reshape(weight.shape[0], -1)
        y = y if bias is None else exact.settled(y.add_(bias[:, None]))
        parts.append(y.view(weight.shape[0], *out, -1).movedim(-1, 0))
    return torch.cat(parts).contiguous() if parts else x.new_zeros(0, weight.shape[0], *out)


def input_gradient(g: Geometry, gradient: Tensor, weight: Tensor, size: Sequence[int]) -> Tensor:
    """The gradient for the input of `forward`, whose images have this size."""
    if reverse := _reverse(g, gradient.shape[2:], size):
        kernels = weight.flip(tuple(range(2, weight.dim()))).view(g.groups, -1, *weight.shape[1:]).transpose(1, 2)
        return forward(reverse, gradient, kernels.reshape(-1, *kernels.shape[2:]))
    matrix = weight.reshape(g.groups, weight.shape[0] // g.groups, -1).transpose(1, 2)
    rows = exact.sliced(matrix, -1)
    parts = []
    for here in g.pieces(len(gradient), math.prod(weight.shape[1:]) * g.groups, size):
        some = gradient[here]
        values = some.transpose(0, 1).reshape(g.groups, some.shape[1] // g.groups, -1)
        columns = exact.sum_of_products(rows, exact.sliced(values, -2))
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


def weight_gradient(g: Geometry, gradient: Tensor, x: Tensor, shape: Sequence[int]) -> Tensor:
    """The gradient for the weights of `forward`, of this shape."""
    total: Tensor | None = None
    for here in g.chunks(len(x), x.shape[1], gradient.shape[1], x.shape[2:]):
        rows = gradient[here].movedim(0, -1).reshape(g.groups, gradient.shape[1] // g.groups, -1)
        part = exact.sum_of_products(exact.sliced(rows, -1), _AsRows(g, x[here]))
        total = part if total is None else total.add_(part)
    if total is None:
        return x.new_zeros(shape)
    return exact.rounded(total).reshape(shape[0], shape[2], shape[1], *shape[3:]).transpose(1, 2).contiguous()

"""Pooling's sums and gradients with overlapping windows added in a fixed order, in float64."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from caffe.numerics.exact import rounded


def _pair(value: Sequence[int]) -> tuple[int, int]:
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


def _counts(size: Sequence[int], out: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], include_pad: bool) -> Tensor:
    """How many numbers the mean of each window divides by: those inside the padded image, or those inside the image."""
    sides = []
    for n, o, k, s, p in zip(size, out, kernel, stride, padding, strict=True):
        start = torch.arange(o) * s - p
        end = (start + k).clamp(max=n + p)
        sides.append(end - start if include_pad else end.clamp(max=n) - start.clamp(min=0))
    return (sides[0][:, None] * sides[1][None, :]).double()


def _parts(out: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int] = (1, 1)):
    """For each offset in a window, the slices of a padded image that hold that number of every window."""
    for offset in itertools.product(*map(range, kernel)):
        spans = zip(offset, dilation, stride, out, strict=True)
        yield (..., *(slice(o * d, o * d + s * (n - 1) + 1, s) for o, d, s, n in spans))


def _padded(size: Sequence[int], out: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int] = (1, 1)) -> list[int]:
    """The size of an image with padding in which every window lies."""
    axes = zip(size, out, kernel, stride, padding, dilation, strict=True)
    return [max(n + 2 * p, (o - 1) * s + (k - 1) * d + 1) for n, o, k, s, p, d in axes]


def mean(x, kernel_size, stride=(), padding=(0,), ceil_mode=False, count_include_pad=True, divisor_override=None):
    """aten::avg_pool2d."""
    like = torch.empty(x.shape, device="meta")
    out = torch.ops.aten.avg_pool2d(like, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override).shape[2:]
    kernel, padding = _pair(kernel_size), _pair(padding)
    stride, size = _pair(stride or kernel_size), x.shape[2:]
    whole = _padded(size, out, kernel, stride, padding)
    extra = [w - n - p for w, n, p in zip(whole, size, padding, strict=True)]
    source = torch.nn.functional.pad(x.double(), (padding[1], extra[1], padding[0], extra[0]))
    total = torch.zeros(*x.shape[:2], *out, dtype=torch.float64, device=x.device)
    for part in _parts(out, kernel, stride):
        total += source[part]
    counts = _counts(size, out, kernel, stride, padding, count_include_pad) if divisor_override is None else torch.full((), float(divisor_override), dtype=torch.float64)
    return rounded(total / counts.to(x.device))


def mean_backward(gradient, x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override):
    """aten::avg_pool2d_backward."""
    kernel, padding = _pair(kernel_size), _pair(padding)
    stride, size, out = _pair(stride or kernel_size), x.shape[2:], gradient.shape[2:]
    counts = _counts(size, out, kernel, stride, padding, count_include_pad) if divisor_override is None else torch.full((), float(divisor_override), dtype=torch.float64)
    shares = gradient.double() / counts.to(x.device)
    target = torch.zeros(*x.shape[:2], *_padded(size, out, kernel, stride, padding), dtype=torch.float64, device=x.device)
    for part in _parts(out, kernel, stride):
        target[part] += shares
    return rounded(target[..., padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]])


def maximum_backward(gradient, x, kernel_size, stride, padding, dilation, ceil_mode, indices):
    """aten::max_pool2d_with_indices_backward."""
    kernel, padding, dilation = _pair(kernel_size), _pair(padding), _pair(dilation)
    stride, size, out = _pair(stride or kernel_size), x.shape[2:], gradient.shape[2:]
    whole = _padded(size, out, kernel, stride, padding, dilation)
    rows = torch.arange(whole[0], device=x.device) - padding[0]
    columns = torch.arange(whole[1], device=x.device) - padding[1]
    places = rows[:, None] * size[1] + columns[None, :]
    values = gradient.double()
    target = torch.zeros(*x.shape[:2], *whole, dtype=torch.float64, device=x.device)
    for part in _parts(out, kernel, stride, dilation):
        target[part] += torch.where(indices == places[part[1:]], values, 0.0)
    return rounded(target[..., padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]])

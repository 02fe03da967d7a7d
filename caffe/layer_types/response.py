"""LRN: normalisation by the responses of the neighbouring channels, or pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from caffe.engine import machine
from caffe.engine.layer import Layer, Shape, register
from caffe.proto import caffe_pb2

PIECE = 1 << 17
"""Numbers that a processor computes together, so that what is computed in between stays in its cache."""


class _Windows:
    """Sums over windows of channels, for vectors of channels one below the other.

    Some rows are taken at a time, in arrays that are made once: of memory that is touched for the first time, each page takes
    longer than the sums of its numbers.
    """

    def __init__(self, rows: Tensor, size: int):
        count, self._channels = rows.shape
        self._half = size // 2
        self.step = max(1, PIECE // max(1, self._channels)) if rows.device.type == "cpu" else max(1, count)
        length = min(self.step, count)
        dtype = machine.sum_type(rows)
        self._padded = rows.new_zeros(length, self._channels + 2 * self._half, dtype=dtype)
        self._sums = rows.new_empty(length, self._channels, dtype=dtype)

    def terms(self, count: int) -> Tensor:
        """The numbers that the next sums are of, to be written into: count × channels."""
        return self._padded[:count, self._half : self._half + self._channels]

    def sums(self, count: int) -> Tensor:
        """The windows' sums of the terms, in an array that the next call overwrites."""
        half, channels = self._half, self._channels
        padded, sums = self._padded[:count], self._sums[:count].copy_(self.terms(count))
        for shift in range(1, half + 1):
            sums.add_(padded[:, half - shift : half - shift + channels]).add_(padded[:, half + shift : half + shift + channels])
        return sums

    def scale(self, values: Tensor, alpha: float, k: float) -> Tensor:
        """k + alpha · the windows' sums of squares, in the same array."""
        self.terms(len(values)).copy_(values).mul_(values)
        return self.sums(len(values)).mul_(alpha).add_(k)


def _power(base: Tensor, exponent: float) -> Tensor:
    if exponent == -0.75:  # the published nets' beta: two square roots are several times faster than a power
        root = base.rsqrt()
        return root.mul_(root.sqrt())
    return base.pow(exponent)


class _AcrossChannels(torch.autograd.Function):
    """y = x · s^-beta with s = k + alpha / n · (window sum of x²); saves only x for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *constants: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.constants = constants
        return machine.by_kernel("response.lrn", _forward, x, *constants)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return machine.by_kernel("response.lrn_backward", _backward, x, gradient, *ctx.constants), None, None, None, None


def _forward(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    rows = _rows(x)
    windows, y = _Windows(rows, size), torch.empty_like(rows)
    for here in _pieces(rows, windows.step):
        values = rows[here]
        scale = windows.scale(values, alpha / size, k)
        y[here].copy_(_power(scale, -beta).mul_(values))
    return _images(y, x)


def _backward(x: Tensor, gradient: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    rows, gradients = _rows(x), _rows(gradient)
    windows, result = _Windows(rows, size), torch.empty_like(rows)
    for here in _pieces(rows, windows.step):
        values = rows[here]
        scale = windows.scale(values, alpha / size, k)
        direct = _power(scale, -beta).mul_(gradients[here])
        windows.terms(len(values)).copy_(direct).mul_(values).div_(scale)
        through = windows.sums(len(values)).mul_(values)
        result[here].copy_(direct.sub_(through.mul_(2 * alpha * beta / size)))
    return _images(result, x)


def _rows(x: Tensor) -> Tensor:
    """Images, N × C × H × W, as a row of channels for each pixel; without a copy if they are channels-last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _images(rows: Tensor, like: Tensor) -> Tensor:
    count, channels, height, width = like.shape
    return rows.view(count, height, width, channels).permute(0, 3, 1, 2)


def _pieces(rows: Tensor, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, len(rows), step))


@register("LRN")
class LRN(Layer, is_capturable=True, takes_bfloat16=True):
    """Local response normalisation (Krizhevsky et al. 2012): y = x / (k + alpha / n · Σ x²)^beta, shape of x.

    The sum runs over `local_size` channels, or over a square window within the channel, where k is 1.
    """

    keeps_shape = True
    rescales = True

    def setup(self, shape: Shape) -> None:
        p = self.param.lrn_param
        if p.norm_region != caffe_pb2.LRNParameter.ACROSS_CHANNELS:
            self.takes_bfloat16 = False
        if p.local_size % 2 == 0:
            raise self.error(f"local_size {p.local_size}", "it must be odd")
        self.require_maps(shape)

    def forward(self, x: Tensor) -> Tensor:
        p = self.param.lrn_param
        if p.norm_region == caffe_pb2.LRNParameter.ACROSS_CHANNELS:
            return _AcrossChannels.apply(x, p.local_size, p.alpha, p.beta, p.k)
        mean = functional.avg_pool2d(x * x, p.local_size, 1, p.local_size // 2)
        return x * (1 + p.alpha * mean) ** -p.beta

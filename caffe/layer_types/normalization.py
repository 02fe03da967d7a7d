"""Layers that bring values to a common scale: LRN."""

from __future__ import annotations

import torch
from torch.nn import functional

from caffe.layer import Layer, register
from caffe.proto import caffe_pb2


def _window_sum(x: torch.Tensor, size: int) -> torch.Tensor:
    """Sum over `size` neighbouring channels, as many on either side."""
    half = size // 2
    total = x.clone()
    for shift in range(1, min(half, x.shape[1] - 1) + 1):
        total[:, shift:] += x[:, :-shift]
        total[:, :-shift] += x[:, shift:]
    return total


def _power(x: torch.Tensor, exponent: float) -> torch.Tensor:
    if exponent == -0.75:  # the published nets' beta: two square roots are several times faster than a power
        root = x.rsqrt()
        return root * root.sqrt()
    return x.pow(exponent)


class _AcrossChannels(torch.autograd.Function):
    """y = x · s^-beta with s = k + alpha / n · (window sum of x²); keeps x and s only."""

    @staticmethod
    def forward(ctx, x, size, alpha, beta, k):
        scale = _window_sum(x * x, size).mul_(alpha / size).add_(k)
        ctx.save_for_backward(x, scale)
        ctx.constants = size, alpha, beta
        return x * _power(scale, -beta)

    @staticmethod
    def backward(ctx, gradient):
        x, scale = ctx.saved_tensors
        size, alpha, beta = ctx.constants
        direct = gradient * _power(scale, -beta)
        through = _window_sum((direct * x).div_(scale), size)
        return (
            direct.addcmul_(through.mul_(x), torch.ones((), device=x.device), value=-2 * alpha * beta / size),
            None,
            None,
            None,
            None,
        )


@register("LRN")
class LRN(Layer):
    """Local response normalisation (Krizhevsky et al. 2012): y = x / (k + alpha / n · Σ x²)^beta, shape of x.

    The sum runs over `local_size` channels, or over a square window within the channel, where k is 1.
    """

    bottoms = (1, 1)

    def setup(self, shape):
        p = self.param.lrn_param
        if p.local_size % 2 == 0:
            raise self.error(f"local_size {p.local_size}", "it must be odd")
        if len(shape) != 4:
            raise self.error(f"a bottom of shape {shape}", "LRN wants 4 axes (N, C, H, W)")

    def forward(self, x):
        p = self.param.lrn_param
        if p.norm_region == caffe_pb2.LRNParameter.ACROSS_CHANNELS:
            return _AcrossChannels.apply(x, p.local_size, p.alpha, p.beta, p.k)
        mean = functional.avg_pool2d(x * x, p.local_size, 1, p.local_size // 2)
        return x * (1 + p.alpha * mean) ** -p.beta

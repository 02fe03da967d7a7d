"""LRN over channels, forward and backward: each reads and writes its values once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe.kernels.launching import alike, are_countable, blocks, dense, kernel, launch

MOST_CHANNELS = 9
"""Largest window; the gradient takes time by its square."""
BLOCK = 1024


@triton.jit
def _scale(x, at, channel, channels, count, shift, stride, alpha, k, HALF: tl.constexpr):
    """k + alpha · the sum of squares over the window around the channel `shift` further on; k where there is no such channel."""
    total = tl.zeros(at.shape, tl.float32)
    for offset in tl.static_range(-HALF, HALF + 1):
        other = channel + shift + offset
        there = (at < count) & (other >= 0) & (other < channels)
        value = tl.load(x + at + (shift + offset) * stride, there, other=0.0).to(tl.float32)
        total += value * value
    return k + alpha * total


@triton.jit
def _power(scale, beta, IS_USUAL: tl.constexpr):
    """scale^-beta; IS_USUAL says that beta is 0.75."""
    if IS_USUAL:
        root = tl.div_rn(1.0, tl.sqrt_rn(scale))
        result = root * tl.sqrt_rn(root)
    else:
        result = tl.exp2(-beta * tl.log2(scale))
    return result


@triton.jit
def _forward(x, y, count, channels, stride, alpha, beta, k, HALF: tl.constexpr, IS_USUAL: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = (at // stride) % channels
    scale = _scale(x, at, channel, channels, count, 0, stride, alpha, k, HALF)
    value = tl.load(x + at, at < count, other=0.0).to(tl.float32)
    tl.store(y + at, (value * _power(scale, beta, IS_USUAL)).to(y.dtype.element_ty), at < count)


@triton.jit
def _backward(
    x, gradient, result, count, channels, stride, alpha, beta, k, HALF: tl.constexpr, IS_USUAL: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = (at // stride) % channels
    direct = tl.zeros([BLOCK], tl.float32)
    through = tl.zeros([BLOCK], tl.float32)
    for shift in tl.static_range(-HALF, HALF + 1):
        there = (at < count) & (channel + shift >= 0) & (channel + shift < channels)
        scale = _scale(x, at, channel, channels, count, shift, stride, alpha, k, HALF)
        scale = tl.where(there, scale, 1.0)  # k may be 0
        part = tl.load(gradient + at + shift * stride, there, other=0.0).to(tl.float32) * _power(scale, beta, IS_USUAL)
        through += tl.div_rn(part * tl.load(x + at + shift * stride, there, other=0.0).to(tl.float32), scale)
        if shift == 0:
            direct += part
    value = tl.load(x + at, at < count, other=0.0).to(tl.float32)
    tl.store(result + at, (direct - 2 * alpha * beta * value * through).to(result.dtype.element_ty), at < count)


def _stride(x: Tensor) -> int:
    """How far a channel is from the next; x is dense."""
    return x.shape[2:].numel() if x.is_contiguous() else 1


@kernel(
    "(Tensor x, int size, float alpha, float beta, float k) -> Tensor",
    lambda x, size, *_: are_countable(x) and size <= MOST_CHANNELS,
)
def lrn(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """x · (k + alpha / size · the sum of x² over `size` channels)^-beta; (N, C, H, W), float32 or bfloat16."""
    x = dense(x)
    y = torch.empty_like(x)
    constants = {"HALF": size // 2, "IS_USUAL": beta == 0.75, "BLOCK": BLOCK}
    numbers = x.numel(), x.shape[1], _stride(x), alpha / size, beta, k
    launch(_forward, blocks(x.numel(), BLOCK), x, x, y, *numbers, **constants)
    return y


@kernel(
    "(Tensor x, Tensor gradient, int size, float alpha, float beta, float k) -> Tensor",
    lambda x, gradient, size, *_: are_countable(x, gradient) and size <= MOST_CHANNELS,
)
def lrn_backward(x: Tensor, gradient: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """The gradient of `lrn` in x, from that of its result."""
    x = dense(x)
    gradient, result = alike(gradient, x), torch.empty_like(x)
    constants = {"HALF": size // 2, "IS_USUAL": beta == 0.75, "BLOCK": BLOCK}
    numbers = x.numel(), x.shape[1], _stride(x), alpha / size, beta, k
    launch(_backward, blocks(x.numel(), BLOCK), x, x, gradient, result, *numbers, **constants)
    return result

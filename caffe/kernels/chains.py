"""Layers in a row whose values depend on those at the same place alone: a sum and a ReLU, a Scale and a ReLU.

ReLU is in place of the values before it, of which nothing is left: the gradient is computed from its result.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe.kernels.launching import alike, are_countable, blocks, dense, kernel, launch

BLOCK = 2048
PIXELS, CHANNELS = 64, 32
"""Size of the piece of a map that a program of the Scale's gradient has in its registers."""
PIECES = 32
"""How many of them one program sums at most."""


@triton.jit
def _sum_relu(first, second, y, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(first + at, at < count).to(tl.float32) + tl.load(second + at, at < count).to(tl.float32)
    tl.store(y + at, tl.where(total < 0, 0.0, total).to(y.dtype.element_ty), at < count)


@triton.jit
def _relu_backward(y, gradient, result, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    passed = tl.load(gradient + at, at < count).to(tl.float32)
    is_zero = tl.load(y + at, at < count).to(tl.float32) <= 0
    tl.store(result + at, tl.where(is_zero, 0.0, passed).to(result.dtype.element_ty), at < count)


@triton.jit
def _scale_relu(
    x, factors, terms, y, count, channels, stride, HAS_TERMS: tl.constexpr, HAS_RELU: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = (at // stride) % channels
    value = tl.load(x + at, at < count).to(tl.float32) * tl.load(factors + channel)
    if HAS_TERMS:
        value += tl.load(terms + channel)
    if HAS_RELU:
        value = tl.where(value < 0, 0.0, value)
    tl.store(y + at, value.to(y.dtype.element_ty), at < count)


@triton.jit
def _scale_relu_backward(
    x, y, gradient, factors, result, of_factors, of_terms, channels, size, parts, channel_stride, pixel_stride,
    HAS_TERMS: tl.constexpr, HAS_RELU: tl.constexpr, PIECES: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A part of an image's pixels, of which there are `size`, and some channels."""
    wide = tl.cdiv(channels, CHANNELS)
    row = tl.program_id(0) // wide
    image, part = row // parts, row % parts
    channel = tl.program_id(0) % wide * CHANNELS + tl.arange(0, CHANNELS)
    factor = tl.load(factors + channel, channel < channels, other=0.0)
    by_values = tl.zeros([PIXELS, CHANNELS], tl.float32)
    alone = tl.zeros([PIXELS, CHANNELS], tl.float32)
    for piece in range(PIECES):
        pixel = (part * PIECES + piece) * PIXELS + tl.arange(0, PIXELS)
        at = image * (size * channels) + (pixel * pixel_stride)[:, None] + (channel * channel_stride)[None, :]
        there = (pixel < size)[:, None] & (channel < channels)[None, :]
        passed = tl.load(gradient + at, there, other=0.0).to(tl.float32)
        if HAS_RELU:
            passed = tl.where(tl.load(y + at, there, other=0.0).to(tl.float32) <= 0, 0.0, passed)
        tl.store(result + at, (passed * factor[None, :]).to(result.dtype.element_ty), there)
        by_values += passed * tl.load(x + at, there, other=0.0).to(tl.float32)
        if HAS_TERMS:
            alone += passed
    tl.store(of_factors + row * channels + channel, tl.sum(by_values, 0), channel < channels)
    if HAS_TERMS:
        tl.store(of_terms + row * channels + channel, tl.sum(alone, 0), channel < channels)


def _are_of(x: Tensor, *values: Tensor | None) -> bool:
    """Whether values are one for each channel of x."""
    return x.dim() > 1 and all(each is None or each.shape == x.shape[1:2] for each in values)


@kernel("(Tensor first, Tensor second) -> Tensor", are_countable)
def sum_relu(first: Tensor, second: Tensor) -> Tensor:
    """max(first + second, 0), of one shape and type, float32 or bfloat16; NaN stays NaN."""
    first = dense(first)
    second, y = alike(second, first), torch.empty_like(first)
    launch(_sum_relu, blocks(first.numel(), BLOCK), first, first, second, y, first.numel(), BLOCK=BLOCK)
    return y


@kernel("(Tensor y, Tensor gradient) -> Tensor", are_countable)
def relu_backward(y: Tensor, gradient: Tensor) -> Tensor:
    """The gradient where ReLU's result y is not 0."""
    y = dense(y)
    gradient, result = alike(gradient, y), torch.empty_like(y)
    launch(_relu_backward, blocks(y.numel(), BLOCK), y, y, gradient, result, y.numel(), BLOCK=BLOCK)
    return result


def _channel_stride(x: Tensor) -> int:
    """How far a channel is from the next; x is dense, (N, C, …)."""
    return x.shape[2:].numel() if x.is_contiguous() else 1


@kernel(
    "(Tensor x, Tensor factors, Tensor? terms, bool relu) -> Tensor",
    lambda x, factors, terms, relu: are_countable(x) and _are_of(x, factors, terms),
)
def scale(x: Tensor, factors: Tensor, terms: Tensor | None, relu: bool) -> Tensor:
    """factor · x + term for each channel of (N, C, …), and at least 0 with `relu`; factors and terms float32, (C,)."""
    x = dense(x)
    y = torch.empty_like(x)
    given = x, factors.contiguous(), factors if terms is None else terms.contiguous(), y
    constants = {"HAS_TERMS": terms is not None, "HAS_RELU": relu, "BLOCK": BLOCK}
    launch(_scale_relu, blocks(x.numel(), BLOCK), x, *given, x.numel(), x.shape[1], _channel_stride(x), **constants)
    return y


@kernel(
    "(Tensor x, Tensor y, Tensor gradient, Tensor factors, bool terms, bool relu) -> (Tensor, Tensor, Tensor)",
    lambda x, y, gradient, factors, *_: are_countable(x, y, gradient) and _are_of(x, factors),
)
def scale_backward(
    x: Tensor, y: Tensor, gradient: Tensor, factors: Tensor, terms: bool, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `scale` in x, the factors, and the terms if there are any; y is its result."""
    x = dense(x)
    gradient, y, result = alike(gradient, x), alike(y, x), torch.empty_like(x)
    channels, pixels = x.shape[1], x.shape[2:].numel()
    # Where the channels of a pixel are in a row, the pixels of all images are as those of one.
    is_row_major = x.is_contiguous() and pixels > 1
    images, size, pixel_stride = (len(x), pixels, 1) if is_row_major else (1, len(x) * pixels, channels)
    pieces = min(PIECES, triton.next_power_of_2(blocks(size, PIXELS)))
    parts = blocks(size, PIXELS * pieces)
    of_factors = factors.new_zeros(images * parts, channels)
    of_terms = torch.zeros_like(of_factors)
    given = x, y, gradient, factors.contiguous(), result, of_factors, of_terms
    constants = {"HAS_TERMS": terms, "HAS_RELU": relu, "PIECES": pieces, "PIXELS": PIXELS, "CHANNELS": CHANNELS}
    programs = images * parts * blocks(channels, CHANNELS)
    launch(_scale_relu_backward, programs, x, *given, channels, size, parts, _channel_stride(x), pixel_stride, **constants)
    return result, of_factors.sum(0), of_terms.sum(0)

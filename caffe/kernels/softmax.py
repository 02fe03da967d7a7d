"""Softmax and its loss, a kernel forward and one backward: each score is read once, and its probability written once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe.kernels.launching import are_countable, blocks, dense, kernel, launch

MOST_CLASSES = 8192
"""What a program holds in its registers."""
BLOCK = 2048


@triton.jit
def _places(rows, classes, inner, ROWS: tl.constexpr, CLASSES: tl.constexpr):
    """Rows of a program, the positions of their scores, and which of them exist."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    number = tl.arange(0, CLASSES)
    at = ((row // inner) * (classes * inner) + row % inner)[:, None] + number[None, :] * inner
    return row, number, at, (row < rows)[:, None] & (number < classes)[None, :]


@triton.jit
def _forward(
    scores, targets, weights, probabilities, logarithms, rows, classes, inner, smallest,
    HAS_WEIGHTS: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    row, number, at, there = _places(rows, classes, inner, ROWS, CLASSES)
    score = tl.load(scores + at, there, other=0.0).to(tl.float32)
    score = tl.where((number < classes)[None, :], score, -float("inf"))
    exponential = tl.exp(score - tl.max(score, 1, keep_dims=True))
    probability = tl.div_rn(exponential, tl.sum(exponential, 1, keep_dims=True))
    tl.store(probabilities + at, probability.to(probabilities.dtype.element_ty), there)
    target = tl.load(targets + row, row < rows, other=0)
    chosen = tl.sum(tl.where(number[None, :] == target[:, None], probability, 0.0), 1)
    # A probability that is NaN stays NaN.
    logarithm = tl.log(tl.where(chosen < smallest, smallest, chosen))
    if HAS_WEIGHTS:
        logarithm *= tl.load(weights + row, row < rows, other=0.0).to(tl.float32)
    tl.store(logarithms + row, logarithm, row < rows)


@triton.jit
def _backward(
    probabilities, targets, weights, share, result, rows, classes, inner, smoothing, others,
    HAS_WEIGHTS: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    row, number, at, there = _places(rows, classes, inner, ROWS, CLASSES)
    probability = tl.load(probabilities + at, there, other=0.0).to(tl.float32)
    target = tl.load(targets + row, row < rows, other=0)
    factor = tl.load(share)
    difference = probability - others + tl.where(number[None, :] == target[:, None], smoothing - 1.0, 0.0)
    if HAS_WEIGHTS:
        difference *= (tl.load(weights + row, row < rows, other=0.0).to(tl.float32) * factor)[:, None]
    else:
        difference *= factor
    tl.store(result + at, difference.to(result.dtype.element_ty), there)


def _fits(scores: Tensor, along: int) -> bool:
    return scores.dtype is torch.float32 and are_countable(scores) and scores.shape[along] <= MOST_CLASSES


def _laid_out(scores: Tensor, along: int) -> Tensor:
    """Scores as the kernels take them: row-major, or with the classes of each pixel in a row."""
    return dense(scores) if along == 1 else scores.contiguous()


def _sizes(scores: Tensor, along: int) -> tuple[int, int, int]:
    """Number of rows, of classes, and of values between a class and the next."""
    inner = scores.shape[along + 1 :].numel() if scores.is_contiguous() else 1
    classes = scores.shape[along]
    return scores.numel() // max(1, classes), classes, inner


def _tile(classes: int) -> tuple[int, int]:
    """Rows and classes of a program, powers of 2."""
    padded: int = triton.next_power_of_2(classes)
    return max(1, BLOCK // padded), padded


@kernel(
    "(Tensor scores, Tensor target, Tensor? weights, int along, float smallest) -> (Tensor, Tensor)",
    lambda scores, target, weights, along, smallest: _fits(scores, along),
)
def softmax_loss(scores: Tensor, target: Tensor, weights: Tensor | None, along: int, smallest: float) -> tuple[Tensor, Tensor]:
    """log p of each target, times its weight, and p, a softmax along an axis.

    scores    float32
    target    positions on the axis, int64, of scores' shape with that axis 1
    weights   of target's shape; None if all weigh 1
    smallest  least p of which the logarithm is taken
    """
    scores, target = _laid_out(scores, along), target.contiguous()
    weights = weights if weights is None else weights.contiguous()
    probabilities, logarithms = torch.empty_like(scores), scores.new_empty(target.shape)
    rows, classes, inner = _sizes(scores, along)
    of_each, padded = _tile(classes)
    constants = {"HAS_WEIGHTS": weights is not None, "ROWS": of_each, "CLASSES": padded}
    given = scores, target, target if weights is None else weights, probabilities, logarithms
    launch(_forward, blocks(rows, of_each), scores, *given, rows, classes, inner, smallest, **constants)
    return logarithms, probabilities


@kernel(
    "(Tensor probabilities, Tensor target, Tensor? weights, Tensor share, int along, float smoothing, float others) -> Tensor",
    lambda probabilities, target, weights, share, along, *_: _fits(probabilities, along),
)
def softmax_loss_backward(
    probabilities: Tensor, target: Tensor, weights: Tensor | None, share: Tensor, along: int, smoothing: float, others: float
) -> Tensor:
    """(p - others, less 1 - smoothing for the target) · share · the target's weight; share is a number on the GPU."""
    target = target.contiguous()
    weights = weights if weights is None else weights.contiguous()
    result = torch.empty_like(probabilities)
    rows, classes, inner = _sizes(probabilities, along)
    of_each, padded = _tile(classes)
    constants = {"HAS_WEIGHTS": weights is not None, "ROWS": of_each, "CLASSES": padded}
    given = probabilities, target, target if weights is None else weights, share, result
    launch(_backward, blocks(rows, of_each), probabilities, *given, rows, classes, inner, smoothing, others, **constants)
    return result

"""Softmax and its loss, a kernel forward and one backward: each score is read once, and its probability written once."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe.kernels.launching import are_countable, blocks, dense, kernel, launch

MOST_CLASSES = 8192
"""What a program holds in its registers."""
BLOCK = 2048


@triton.jit
def _places(positions, classes, parts, position_stride, class_stride, ROWS: tl.constexpr, CLASSES: tl.constexpr):
    """The rows of a program, the positions of their scores, and which of both exist.

    The rows of a group are `positions`, of which a program has some; those of all groups are numbered.
    """
    group = tl.program_id(0) // parts
    position = tl.program_id(0) % parts * ROWS + tl.arange(0, ROWS)
    number = tl.arange(0, CLASSES)
    at = group * (positions * classes) + (position * position_stride)[:, None] + (number * class_stride)[None, :]
    is_row = position < positions
    return group * positions + position, is_row, number, at, is_row[:, None] & (number < classes)[None, :]


@triton.jit
def _forward(
    scores, targets, weights, probabilities, logarithms, smallest,
    positions, classes, parts, position_stride, class_stride,
    HAS_WEIGHTS: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    row, is_row, number, at, there = _places(positions, classes, parts, position_stride, class_stride, ROWS, CLASSES)
    score = tl.load(scores + at, there, other=0.0).to(tl.float32)
    score = tl.where((number < classes)[None, :], score, -float("inf"))
    exponential = tl.exp(score - tl.max(score, 1, keep_dims=True))
    probability = tl.div_rn(exponential, tl.sum(exponential, 1, keep_dims=True))
    tl.store(probabilities + at, probability.to(probabilities.dtype.element_ty), there)
    target = tl.load(targets + row, is_row, other=0)
    chosen = tl.sum(tl.where(number[None, :] == target[:, None], probability, 0.0), 1)
    # A probability that is NaN stays NaN.
    logarithm = tl.log(tl.where(chosen < smallest, smallest, chosen))
    if HAS_WEIGHTS:
        logarithm *= tl.load(weights + row, is_row, other=0.0).to(tl.float32)
    tl.store(logarithms + row, logarithm, is_row)


@triton.jit
def _backward(
    probabilities, targets, weights, share, result, smoothing, others,
    positions, classes, parts, position_stride, class_stride,
    HAS_WEIGHTS: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    row, is_row, number, at, there = _places(positions, classes, parts, position_stride, class_stride, ROWS, CLASSES)
    probability = tl.load(probabilities + at, there, other=0.0).to(tl.float32)
    target = tl.load(targets + row, is_row, other=0)
    factor = tl.load(share)
    difference = probability - others + tl.where(number[None, :] == target[:, None], smoothing - 1.0, 0.0)
    if HAS_WEIGHTS:
        difference *= (tl.load(weights + row, is_row, other=0.0).to(tl.float32) * factor)[:, None]
    else:
        difference *= factor
    tl.store(result + at, difference.to(result.dtype.element_ty), there)


def _fits(scores: Tensor, along: int) -> bool:
    return scores.dtype is torch.float32 and are_countable(scores) and scores.shape[along] <= MOST_CLASSES


def _laid_out(scores: Tensor, along: int) -> Tensor:
    """Scores as the kernels take them: row-major, or with the classes of each pixel in a row."""
    return dense(scores) if along == 1 else scores.contiguous()


def _sizes(scores: Tensor, along: int) -> tuple[int, int, int, int, int]:
    """Groups of rows, rows of a group, classes, and how far a row of a group is from the next, and a class."""
    classes, inner = scores.shape[along], scores.shape[along + 1 :].numel()
    if inner == 1 or not scores.is_contiguous():  # the classes of each row are in a row
        return 1, scores.numel() // classes, classes, classes, 1
    return scores.shape[:along].numel(), inner, classes, 1, inner


def _start(function: Any, scores: Tensor, along: int, weights: Tensor | None, *given: Any) -> None:
    """Start a kernel for all rows; classes, and as many rows as fill a program with them, are powers of 2."""
    groups, positions, classes, *strides = _sizes(scores, along)
    padded = triton.next_power_of_2(classes)
    rows = max(1, BLOCK // padded)
    parts = blocks(positions, rows)
    constants = {"HAS_WEIGHTS": weights is not None, "ROWS": rows, "CLASSES": padded}
    launch(function, groups * parts, scores, *given, positions, classes, parts, *strides, **constants)


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
    of_rows = target, target if weights is None else weights
    _start(_forward, scores, along, weights, scores, *of_rows, probabilities, logarithms, smallest)
    return logarithms, probabilities


@kernel(
    "(Tensor probabilities, Tensor target, Tensor? weights, Tensor share, int along, float smoothing, float others) -> Tensor",
    lambda probabilities, target, weights, share, along, *_: _fits(probabilities, along),
)
def softmax_loss_backward(
    probabilities: Tensor, target: Tensor, weights: Tensor | None, share: Tensor, along: int, smoothing: float, others: float
) -> Tensor:
    """(p - others, less 1 - smoothing for the target) · share · the target's weight; share is a number on the GPU."""
    probabilities, target = _laid_out(probabilities, along), target.contiguous()
    weights = weights if weights is None else weights.contiguous()
    result = torch.empty_like(probabilities)
    of_rows = target, target if weights is None else weights
    _start(_backward, probabilities, along, weights, probabilities, *of_rows, share, result, smoothing, others)
    return result

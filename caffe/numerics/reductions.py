"""PyTorch's sums, and what is made of sums: softmax, batch normalisation, losses."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from caffe.numerics import elementary
from caffe.numerics.exact import added, rounded, total
from caffe.numerics.registry import RefusedError, constant, in_double, like, ours


@ours("sum")
def _sum(x: Tensor, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    if not x.is_floating_point():
        return x.sum(tuple(dim), keepdim, dtype=dtype) if dim is not None else x.sum(dtype=dtype)
    sums = total(x, tuple(dim) if dim else tuple(range(x.dim())), keepdim) if x.dim() else in_double(x)
    return sums if dtype == torch.float64 else like(sums, x)


@ours("mean")
def _mean(x: Tensor, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    if dtype not in (None, x.dtype):
        raise RefusedError
    axes = tuple(dim) if dim else tuple(range(x.dim()))
    count = math.prod(x.shape[axis] for axis in axes)
    sums = total(x, axes, keepdim) if x.dim() else in_double(x)
    return like(sums / constant(count, sums), x)


@ours("cumsum")
def _cumsum(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    if not x.numel():
        return x.clone()
    if dtype not in (None, x.dtype):
        raise RefusedError
    return like(added(x, (dim,), x.shape[dim], lambda terms: terms.cumsum(dim), twice=True), x)


@ours("linalg_vector_norm")
def _norm(
    x: Tensor, order: float = 2, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    if order != 2:
        raise RefusedError
    wide = in_double(x)
    return like(torch.sqrt(total(wide * wide, tuple(dim) if dim else tuple(range(x.dim())), keepdim)), x)


# ---- softmax


@ours("_softmax")
def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    if not x.dim():
        raise RefusedError
    wide = in_double(x)
    e = elementary.exp(wide - wide.amax(dim, keepdim=True))
    return rounded(e / total(e, dim, keepdim=True))


@ours("_log_softmax")
def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    if not x.dim():
        raise RefusedError
    wide = in_double(x)
    shifted = wide - wide.amax(dim, keepdim=True)
    return rounded(shifted - elementary.log(total(elementary.exp(shifted), dim, keepdim=True)))


@ours("_softmax_backward_data")
def _softmax_backward(gradient: Tensor, y: Tensor, dim: int, input_dtype: torch.dtype) -> Tensor:
    g, y64 = in_double(gradient), in_double(y)
    return rounded(y64 * (g - total(g * y64, dim, keepdim=True)))


@ours("_log_softmax_backward_data")
def _log_softmax_backward(gradient: Tensor, y: Tensor, dim: int, input_dtype: torch.dtype) -> Tensor:
    g = in_double(gradient)
    return rounded(g - elementary.exp(in_double(y)) * total(g, dim, keepdim=True))


# ---- batch normalisation


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    wide: Tensor = in_double(values)
    return wide.view(1, -1, *[1] * (x.dim() - 2))


def _per_channel(x: Tensor) -> tuple[tuple[int, ...], Tensor]:
    """The axes of a channel's values, and their number."""
    count = x.numel() // x.shape[1]
    return (0, *range(2, x.dim())), torch.full((1,), float(count), dtype=torch.float64, device=x.device)


@ours("native_batch_norm")
def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, training: bool,
    momentum: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    axes, count = _per_channel(x)
    wide = in_double(x)
    mean = total(wide, axes) / count if training else in_double(running_mean)
    centred = wide - _by_channel(mean, x)
    variance = total(centred * centred, axes) / count if training else in_double(running_var)
    if training and running_mean is not None:
        for running, value in ((running_mean, mean), (running_var, variance * count / (count - 1).clamp_min(1))):
            running.copy_(rounded(in_double(running) * (1 - momentum) + value * momentum))
    scale = torch.ones_like(variance) / torch.sqrt(variance + eps)
    y = centred * _by_channel(scale, x)
    if weight is not None:
        y = y * _by_channel(weight, x)
    if bias is not None:
        y = y + _by_channel(bias, x)
    saved = (rounded(mean), rounded(scale)) if training else (x.new_empty(0), x.new_empty(0))
    return rounded(y), *saved


@ours("native_batch_norm_backward")
def _batch_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor | None, running_mean: Tensor, running_var: Tensor, save_mean: Tensor,
    save_invstd: Tensor, train: bool, eps: float, output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    axes, count = _per_channel(x)
    mean = in_double(save_mean) if train else in_double(running_mean)
    scale = in_double(save_invstd) if train else torch.ones_like(mean) / torch.sqrt(in_double(running_var) + eps)
    g = in_double(gradient)
    normal = (in_double(x) - _by_channel(mean, x)) * _by_channel(scale, x)
    of_bias, of_weight = total(g, axes), total(g * normal, axes)
    factor = scale if weight is None else scale * in_double(weight)
    if train:
        g = g - _by_channel(of_bias / count, x) - normal * _by_channel(of_weight / count, x)
    of_input = rounded(g * _by_channel(factor, x)) if output_mask[0] else None
    return of_input, rounded(of_weight) if output_mask[1] else None, rounded(of_bias) if output_mask[2] else None


# ---- losses


def _reduced(losses: Tensor, reduction: int) -> Tensor:
    """Losses as PyTorch's numbers of a reduction say: 0 as they are, 1 their mean, 2 their sum; float64."""
    if not reduction:
        return losses
    sums = total(losses, tuple(range(losses.dim()))) if losses.dim() else losses
    return sums / constant(losses.numel(), sums) if reduction == 1 else sums


@ours("smooth_l1_loss")
def _smooth_l1(x: Tensor, target: Tensor, reduction: int = 1, beta: float = 1.0) -> Tensor:
    distance = (in_double(x) - in_double(target)).abs()
    losses = torch.where(distance < beta, distance * distance * 0.5 / constant(beta, x), distance - 0.5 * beta)
    return like(_reduced(losses, reduction), x)


@ours("smooth_l1_loss_backward")
def _smooth_l1_backward(gradient: Tensor, x: Tensor, target: Tensor, reduction: int, beta: float) -> Tensor:
    difference = in_double(x) - in_double(target)
    slope = torch.where(difference.abs() < beta, difference / constant(beta, x), difference.sign())
    g = in_double(gradient) * slope
    return like(g / constant(x.numel(), x) if reduction == 1 else g, x)


# ---- negative log likelihood


def _chosen(x: Tensor, target: Tensor, weight: Tensor | None, ignored: int) -> tuple[int, Tensor, Tensor]:
    """The axis of classes, each target's index on it, and each target's weight, 0 where it is ignored."""
    axis = 1 if x.dim() > 1 else 0
    counts = target != ignored
    index = torch.where(counts, target, 0)
    weights = torch.ones(target.shape, dtype=torch.float64, device=x.device) if weight is None else in_double(weight)[index]
    return axis, index.unsqueeze(axis), torch.where(counts, weights, 0.0)


@ours("nll_loss_forward", "nll_loss2d_forward")
def _nll_loss(x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignored: int) -> tuple[Tensor, Tensor]:
    axis, index, weights = _chosen(x, target, weight, ignored)
    losses = -in_double(x).gather(axis, index).squeeze(axis) * weights
    if not reduction:
        return rounded(losses), x.new_zeros(())
    everywhere = tuple(range(losses.dim()))
    loss, weighed = (total(values, everywhere) if everywhere else values for values in (losses, weights))
    return rounded(loss / weighed if reduction == 1 else loss), rounded(weighed)


@ours("nll_loss_backward", "nll_loss2d_backward")
def _nll_loss_backward(
    gradient: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignored: int, total_weight: Tensor
) -> Tensor:
    axis, index, weights = _chosen(x, target, weight, ignored)
    seeds = -weights * in_double(gradient)
    seeds = seeds / in_double(total_weight) if reduction == 1 else seeds
    return torch.zeros_like(x).scatter(axis, index, rounded(seeds).unsqueeze(axis))

"""Small layers of single forks: GradientScaler, MaskPooling, Division, Norm, DiceCoefLoss …"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from caffe.engine.layer import Layer, Shape, register
from caffe.layer_types.forks.resampling import bilinear
from caffe.layer_types.loss import Loss
from caffe.proto import caffe_pb2


class Annealed(Layer):
    """Base of layers with a setting that changes with `passes`, the number of forward passes; snapshots keep it."""

    passes = 0

    def keep(self, state: caffe_pb2.LayerState) -> None:
        if self.passes:
            state.passes = self.passes

    def resume(self, state: caffe_pb2.LayerState) -> None:
        self.passes = state.passes


# ---- Gradients


class _ScaledGradient(torch.autograd.Function):
    """x; its gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()  # a view could not be followed by a layer in place

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


@register("GradientReversal")
class GradientReversal(Layer):
    """x; its gradient is negated (Ganin and Lempitsky 2015)."""

    keeps_shape = True
    copies_values = True
    is_elementwise = True

    def forward(self, x: Tensor) -> Tensor:
        return _ScaledGradient.apply(x, -1.0)


@register("GradientScaler")
class GradientScaler(Annealed):
    """x; its gradient is multiplied by -c, which goes from lower_bound to upper_bound (Ganin and Lempitsky 2015, ddtm's caffe).

    c = 2 h / (1 + exp(-alpha · p)) - h + lower_bound, h = upper_bound - lower_bound, p = passes in training so far / max_iter, at
    most 1. Passes are the solver's iterations if iter_size is 1; otherwise multiply max_iter by it.
    """

    keeps_shape = True
    copies_values = True
    is_elementwise = True

    def setup(self, shape: Shape) -> None:
        p = self.param.gradient_scaler_param
        if p.lower_bound > p.upper_bound or p.alpha < 0 or p.max_iter < 1:
            raise self.error(
                f"lower_bound {p.lower_bound:g}, upper_bound {p.upper_bound:g}, alpha {p.alpha:g}, max_iter {p.max_iter:g}",
                "bounds must be in order, alpha at least 0 and max_iter at least 1",
            )

    def forward(self, x: Tensor) -> Tensor:
        p = self.param.gradient_scaler_param
        progress = min(1.0, self.passes / p.max_iter)
        self.passes += self.phase == caffe_pb2.TRAIN
        height = p.upper_bound - p.lower_bound
        factor = 2 * height / (1 + math.exp(-p.alpha * progress)) - height + p.lower_bound
        return _ScaledGradient.apply(x, -factor)


# ---- Maps


@register("MaskPooling")
class MaskPooling(Layer):
    """x · mask at each position: (x (N, C, H, W), masks (N, 1, H, W)) → shape of x (MNC, Dai et al. 2016)."""

    bottoms = (2, 2)
    keeps_shape = True

    def setup(self, x: Shape, masks: Shape) -> None:
        self.require_maps(x)
        if masks != (x[0], 1, *x[2:]):
            raise self.error(f"masks of shape {masks} for a bottom of shape {x}", f"they must be {(x[0], 1, *x[2:])}")

    def forward(self, x: Tensor, masks: Tensor) -> Tensor:
        return x * masks


@register("Division")
class Division(Layer):
    """A window of x for each top: x (N, C, H, W) → (N, C, height, width) each (JÂA-Net, Shao et al. 2018).

    xcoord and ycoord: the left and the upper edge of each window.
    """

    tops = (1, None)
    drawn_as = "arrangement"

    def setup(self, shape: Shape) -> None:
        p = self.param.division_param
        self.require_maps(shape)
        self.require_positive("height", "width")
        if not len(p.xcoord) == len(p.ycoord) == len(self.param.top):
            raise self.error(
                f"{len(p.xcoord)} values of xcoord and {len(p.ycoord)} of ycoord",
                f"there must be one for each of {len(self.param.top)} tops",
            )

    def top_shapes(self, shape: Shape) -> list[Shape]:
        p = self.param.division_param
        for left, upper in zip(p.xcoord, p.ycoord, strict=True):
            if upper + p.height > shape[2] or left + p.width > shape[3]:
                raise self.error(
                    f"a window of {p.height}×{p.width} at ({left}, {upper})", f"it must fit into {shape[2]}×{shape[3]}"
                )
        return [(*shape[:2], p.height, p.width)] * len(self.param.top)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        p = self.param.division_param
        places = zip(p.xcoord, p.ycoord, strict=True)
        return tuple(x[:, :, upper : upper + p.height, left : left + p.width] for left, upper in places)


@register("BilinearInterpolation")
class BilinearInterpolation(Layer):
    """Bilinear, corners aligned, to the size of a second bottom: (x (N, C, H, W), (…, H', W')) → (N, C, H', W')."""

    bottoms = (2, 2)
    differentiable_bottoms = (0,)

    def setup(self, shape: Shape, like: Shape) -> None:
        self.require_maps(shape)
        self.require_maps(like)

    def top_shapes(self, shape: Shape, like: Shape) -> list[Shape]:
        return [(*shape[:2], *like[2:])]

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        return bilinear(x, *like.shape[2:])


@register("Norm")
class Norm(Layer):
    """y = x / (√(Σ x²) + 1e-6), summed over the channels at each position (video_triplet, Wang and Gupta 2015); shape of x."""

    keeps_shape = True
    rescales = True

    def setup(self, shape: Shape) -> None:
        if len(shape) < 2:
            raise self.error(f"a bottom of shape {shape}", "Norm needs a channel axis, the second")
        if self.param.HasField("norm_param"):
            raise self.error("norm_param", "Norm has no settings", 'use type: "Normalize"')

    def forward(self, x: Tensor) -> Tensor:
        return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-6)


# ---- Losses


@register("DiceCoefLoss")
class DiceCoefLoss(Loss):
    """1 - the mean over images of (2 Σ a b + smooth) / (Σ a² + Σ b² + smooth): (a, b (N, …)) → scalar (JÂA-Net)."""

    bottoms = (2, 2)

    def setup(self, first: Shape, second: Shape) -> None:
        self.require_same_images(first, second)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        smooth = self.param.dice_coef_loss_param.smooth
        a, b = first.flatten(1), second.flatten(1)
        shares = (2 * (a * b).sum(1) + smooth) / (a.square().sum(1) + b.square().sum(1) + smooth)
        return 1 - shares.mean()


@register("SigmoidCrossEntropyBalanceLoss")
class SigmoidCrossEntropyBalanceLoss(Loss):
    """HED's balanced loss (Xie and Tu 2015): (scores, targets (N, …)) → scalar, the sum for each image, as a mean over images.

    In an image with n targets 0 and p targets 1, the cross entropy of a target 1 is weighted by n / (n + p), and that of a 0 by
    p / (n + p). Other targets are left out. OSVOS's name: HED's own fork has it as SigmoidCrossEntropyLoss, to be renamed.
    """

    bottoms = (2, 2)
    differentiable_bottoms = (0,)

    def setup(self, scores: Shape, targets: Shape) -> None:
        self.require_same_images(scores, targets)

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        x, t = scores.flatten(1), targets.flatten(1)
        positive, negative = ((t == value).to(x.dtype) for value in (1, 0))
        ones, zeros = positive.sum(1, keepdim=True), negative.sum(1, keepdim=True)
        weights = (positive * zeros + negative * ones) / (ones + zeros).clamp_min(1)
        return (weights * functional.softplus(x * (negative - positive))).sum() / len(x)

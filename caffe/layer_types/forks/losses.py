"""Loss layers of forks: SmoothL1Loss, FocalLoss, CenterLoss, TripletLoss."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from caffe.engine.layer import BlobSpec, Layer, Shape, register
from caffe.layer_types.loss import FLT_MIN, Loss, _OfLabels, at_least
from caffe.layer_types.utility import out_of_range


@register("SmoothL1Loss")
class SmoothL1Loss(Loss):
    """Σ outside · f(inside · (x - t)) / N: (x, t[, inside[, outside]]), all of shape (N, …) → scalar (Girshick 2015).

    f(d) = (sigma · d)² / 2 up to |d| = 1 / sigma², and |d| - 1 / (2 sigma²) beyond.
    """

    bottoms = (2, 4)
    differentiable_bottoms = (0, 1)

    def setup(self, *shapes: Shape) -> None:
        self.require_same_count(*shapes)
        if self.param.smooth_l1_loss_param.sigma <= 0:
            raise self.error(f"sigma {self.param.smooth_l1_loss_param.sigma:g}", "it must be larger than 0")

    def forward(self, x: Tensor, target: Tensor, inside: Tensor | None = None, outside: Tensor | None = None) -> Tensor:
        target = target.reshape(x.shape)
        if inside is not None:
            x, target = x * inside.reshape(x.shape), target * inside.reshape(x.shape)
        knee = 1 / (self.param.smooth_l1_loss_param.sigma * self.param.smooth_l1_loss_param.sigma)
        if outside is None:
            return functional.smooth_l1_loss(x, target, reduction="sum", beta=knee) / x.shape[0]
        terms = functional.smooth_l1_loss(x, target, reduction="none", beta=knee)
        return (terms * outside.reshape(x.shape)).sum() / x.shape[0]


def focal_weights(layer: Layer, classes: int) -> Tensor:
    """The weights alpha of focal_loss_param: one for all classes, (1,), or one for each; raises LayerError for another number."""
    p = layer.param.focal_loss_param
    alpha = list(p.alpha) or [0.25]
    if p.HasField("alpha_balance"):
        alpha = list(p.alpha) if p.alpha_balance else [1.0]
    if len(alpha) not in (1, classes) or (p.alpha_balance and len(alpha) != classes):
        raise layer.error(f"{len(alpha)} values of alpha", f"there are {classes} classes")
    return torch.tensor(alpha, device=layer.device)


def focal_terms(logarithms: Tensor, target: Tensor, alpha: Tensor, gamma: float) -> Tensor:
    """-alpha (1 - p)^gamma log p, from the logarithms of the labels' probabilities p, of the shape of the labels `target`."""
    # Above 0, so that the gradient at p = 1 is finite for a gamma below 1.
    missing = 1 + 1e-6 - logarithms.exp()
    terms = missing**gamma * at_least(logarithms, math.log(FLT_MIN))
    return -terms * (alpha[target] if alpha.numel() > 1 else alpha)


@register("FocalLoss")
class FocalLoss(_OfLabels, Loss):
    """-alpha (1 - p)^gamma log p of the label's probability p (Lin et al. 2017): (scores, labels) → scalar[, probabilities].

    p is a softmax along an axis, and the sum is normalised like SoftmaxWithLoss's. alpha: a weight for all classes (0.25 by
    default), or a weight for each class; alpha_balance: false makes it 1.
    """

    tops = (1, 2)
    applies_softmax = True

    def setup(self, scores: Shape, labels: Shape) -> None:
        self.find_classes(scores, labels, self.param.softmax_param.axis)
        self.read_loss_param()
        self.alpha = focal_weights(self, scores[self.along])

    def compare(self, scores: Tensor, target: Tensor, counted: Tensor | None) -> tuple[Tensor, ...]:
        logarithms = torch.log_softmax(scores, self.along)
        terms = focal_terms(logarithms.gather(self.along, target), target, self.alpha, self.param.focal_loss_param.gamma)
        loss = self.normalized_sum(terms, scores.shape[: self.along].numel(), counted)
        return (loss, logarithms.detach().exp())[: len(self.param.top)]


@register("SoftmaxFocalLoss")
class SoftmaxFocalLoss(FocalLoss):
    """FocalLoss under another fork's name."""


class _ToCentres(torch.autograd.Function):
    """Half the mean of |x - c|²; a centre's gradient, Σ (c - x) / (1 + its number of images), ignores the loss weight."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, centres: Tensor, labels: Tensor) -> Tensor:
        difference = features - centres[labels]
        ctx.save_for_backward(difference, labels)
        ctx.classes = len(centres)
        return difference.square().sum() / (2 * len(features))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        difference, labels = ctx.saved_tensors
        towards = difference.new_zeros(ctx.classes, difference.shape[1]).index_add_(0, labels, difference, alpha=-1)
        counts = torch.bincount(labels, minlength=ctx.classes)
        return difference * (gradient / len(difference)), towards / (1 + counts)[:, None], None


@register("CenterLoss")
class CenterLoss(Loss):
    """Half the mean squared distance of features from their class's centre (Wen et al. 2016): (x (N, …), labels (N,)) → scalar.

    Blob: the centres (classes, values of an image), learned by their own update rule. Axes from `axis` on are an image's.
    """

    learns = (BlobSpec("centers"),)
    bottoms = (2, 2)
    differentiable_bottoms = (0,)

    def setup(self, features: Shape, labels: Shape) -> None:
        p = self.param.center_loss_param
        self.require_positive("num_output", expected="it must be the number of classes, at least 1")
        self.first = self.axis(p.axis, len(features))
        if math.prod(labels) != math.prod(features[: self.first]):
            raise self.error(f"labels of shape {labels} for features of shape {features}", "each image must have one label")
        self.add_blob((p.num_output, math.prod(features[self.first :])), p.center_filler)

    def batch_dependence(self) -> str:
        return "moves each centre by the mean over its images in the batch"

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        (centres,) = self.parameters()
        rows = features.reshape(-1, centres.shape[1])
        labels = labels.reshape(-1).long()
        if (label := out_of_range(labels, len(centres))) is not None:
            raise self.error(f"label {label}", f"num_output is {len(centres)}: labels go from 0 to {len(centres) - 1}")
        return _ToCentres.apply(rows, centres, labels)


@register("TripletLoss")
class TripletLoss(Loss):
    """Σ w · max(0, margin + |a - p|² - |a - n|²) / 2N: (a, p, n, all (N, …)[, w (N,)]) → scalar (Schroff et al. 2015).

    a is the anchor, p of its class (positive), n of another (negative); w are the triplets' weights, 1 by default.
    """

    bottoms = (3, 4)
    differentiable_bottoms = (0, 1, 2)

    def setup(self, anchor: Shape, positive: Shape, negative: Shape, weights: Shape | None = None) -> None:
        self.require_same_shape(anchor, positive, negative)
        if weights is not None and math.prod(weights) != anchor[0]:
            raise self.error(f"weights of shape {weights}", f"there must be one for each of {anchor[0]} triplets")

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor, weights: Tensor | None = None) -> Tensor:
        near, far = ((anchor - other).flatten(1).square().sum(1) for other in (positive, negative))
        missing = torch.relu(self.param.triplet_loss_param.margin + near - far)
        if weights is not None:
            missing = missing * weights.reshape(-1)
        return missing.sum() / (2 * anchor.shape[0])

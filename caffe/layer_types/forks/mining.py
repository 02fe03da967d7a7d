"""Online hard example mining of R-FCN (Shrivastava et al. 2016, Dai et al. 2016): BoxAnnotatorOHEM and losses for each region.

As in the layers of the same names of R-FCN's and Intel's forks of Caffe.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from caffe.engine.layer import Layer, Shape, Tops, register
from caffe.layer_types.loss import FLT_MIN, Loss, SoftmaxWithLoss


@register("SoftmaxWithLossOHEM", "softmax_param")
class SoftmaxWithLossOHEM(SoftmaxWithLoss):
    """SoftmaxWithLoss with the loss of each label, 0 if it is ignored, as a third top of the labels' shape.

    (scores, labels) → scalar[, probabilities[, losses]]; gradients come from the first top alone.
    """

    tops = (1, 3)

    def top_shapes(self, *shapes: Shape) -> list[Shape]:
        return [(), shapes[0], shapes[1]][: len(self.param.top)]

    def forward(self, scores: Tensor, labels: Tensor) -> Tops:
        self.labels_shape = labels.shape
        return super().forward(scores, labels)

    def compare(self, scores: Tensor, target: Tensor, counted: Tensor | None) -> tuple[Tensor, ...]:
        tops = super().compare(scores, target, counted)
        if len(self.param.top) < 3:
            return tops
        losses = -tops[1].detach().gather(self.along, target).clamp_min(FLT_MIN).log()
        return *tops, (losses if counted is None else losses * counted).reshape(self.labels_shape)


@register("SmoothL1LossOHEM")
class SmoothL1LossOHEM(Loss):
    """Σ f(weights · (x - t)) / n: (x, t[, weights]), all (N, C, …) → scalar[, the sum over C for each position, (N, 1, H, W)].

    f(d) = d² / 2 up to |d| = 1, and |d| - 1/2 beyond. n as loss_param says: all positions (VALID, the default, and FULL), N
    (BATCH_SIZE), pre_fixed_normalizer (PRE_FIXED) or 1. Gradients come from the first top alone.
    """

    bottoms = (2, 3)
    tops = (1, 2)
    differentiable_bottoms = (0, 1)

    def setup(self, *shapes: Shape) -> None:
        self.require_same_count(*shapes)
        if not 2 <= len(shapes[0]) <= 4:
            raise self.error(f"a bottom of shape {shapes[0]}", "SmoothL1LossOHEM takes (N, C), or (N, C, H, W)")
        self.read_loss_param()

    def top_shapes(self, *shapes: Shape) -> list[Shape]:
        count, _, *extents = shapes[0]
        return [(), (count, 1, *(*extents, 1, 1)[:2])][: len(self.param.top)]

    def forward(self, x: Tensor, target: Tensor, weights: Tensor | None = None) -> tuple[Tensor, ...]:
        difference = x - target.reshape(x.shape)
        if weights is not None:
            difference = difference * weights.reshape(x.shape)
        terms = functional.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none")
        loss = terms.sum() / self.divisor(len(x), len(x) * x.shape[2:].numel(), None)
        shapes = self.top_shapes(tuple(x.shape))[1:]
        return loss, *(terms.detach().sum(1).reshape(shape) for shape in shapes)


@register("BoxAnnotatorOHEM")
class BoxAnnotatorOHEM(Layer):
    """Keep the labels and weights of the regions with the largest losses, at most roi_per_img of each image.

    (regions (R, 5), losses, labels, weights (R, C)) → labels (R, 1, 1, 1), ignore_label where they were not kept, and weights
    (R, C, 1, 1), 0 there. No gradient passes.
    """

    bottoms = (4, 4)
    tops = (2, 2)
    differentiable_bottoms = ()

    def setup(self, *shapes: Shape) -> None:
        self.require_positive("roi_per_img")
        regions, losses, labels, weights = shapes
        count = regions[0]
        if math.prod(regions) != 5 * count:
            raise self.error(f"regions of shape {regions}", "each must have an image index and x1, y1, x2, y2: (R, 5)")
        if math.prod(losses) != count or math.prod(labels) != count or not weights or weights[0] != count:
            found = f"losses, labels and weights of shapes {losses}, {labels} and {weights}"
            raise self.error(found, f"one of each for the {count} regions")

    def top_shapes(self, regions: Shape, losses: Shape, labels: Shape, weights: Shape) -> list[Shape]:
        return [(regions[0], 1, 1, 1), (regions[0], math.prod(weights[1:]), 1, 1)]

    def forward(self, regions: Tensor, losses: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        p = self.param.box_annotator_ohem_param
        images = regions.reshape(-1, 5)[:, 0].long()
        order = torch.argsort(losses.reshape(-1), descending=True, stable=True)
        # The rank of each region among those of its image, largest loss first.
        same = (images[order][:, None] == images[order]).tril(-1).sum(1)
        kept = torch.zeros(len(images), dtype=torch.bool, device=images.device).scatter(0, order, same < p.roi_per_img)
        chosen = torch.where(kept, labels.reshape(-1), float(p.ignore_label))
        return chosen[:, None, None, None], (weights.reshape(len(images), -1) * kept[:, None])[..., None, None]

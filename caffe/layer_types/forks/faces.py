"""Layers of face analysis: CosinAddm, CombinedMargin (ArcFace), LargeMarginInnerProduct (L-Softmax), Combination (JÂA-Net)."""

import math
from typing import Any

import torch
from torch import Tensor

from caffe.engine.layer import Layer, Shape, Tops, register
from caffe.layer_types.forks.margins import MarginProduct
from caffe.layer_types.loss import _OfLabels
from caffe.proto import caffe_pb2

_TINY = 1e-9
_INSIDE = 1 - 1e-6
"""Greatest cosine whose angle has a finite derivative in single precision."""


class _OfCosines(_OfLabels):
    """Base of layers that change the cosine of each label's class: (cosines (N, …), labels (N,)) → shape of the cosines."""

    compares_labels = False
    keeps_shape = True

    def setup(self, cosines: Shape, labels: Shape) -> None:
        self.find_classes((cosines[0], math.prod(cosines[1:])), labels, 1)

    def forward(self, cosines: Tensor, labels: Tensor) -> Tops:
        top = super().forward(cosines.flatten(1), labels)
        assert isinstance(top, Tensor)
        return top.view_as(cosines)


@register("CosinAddm", "cosin_add_m_param")
class CosinAddm(_OfCosines):
    """ArcFace's additive angular margin (Deng et al. 2018): (cosines (N, …), labels (N,)) → shape of the cosines.

    In training cos θ of the label's class becomes cos(θ + m) or, if θ + m exceeds π, cos θ - m sin m; in testing nothing changes.
    Cosines from 1 on are 1, and their gradient passes unchanged. Source: cosin_add_m_layer of xialuxi/arcface-caffe.
    """

    def setup(self, cosines: Shape, labels: Shape) -> None:
        super().setup(cosines, labels)
        if not 0 <= (margin := self.param.cosin_add_m_param.m) <= math.pi:
            raise self.error(f"m {margin:g}", "it must lie between 0 and π")

    def forward(self, cosines: Tensor, labels: Tensor) -> Tops:
        return cosines.view_as(cosines) if self.phase == caffe_pb2.TEST else super().forward(cosines, labels)

    def compare(self, scores: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
        margin = self.param.cosin_add_m_param.m
        own = scores.gather(1, target)
        inside = own.clamp(-_INSIDE, _INSIDE)
        moved = inside * math.cos(margin) - (1 - inside * inside).sqrt() * math.sin(margin)
        moved = torch.where(own >= 1, own + (math.cos(margin) - own).detach(), moved)
        moved = torch.where(own > math.cos(math.pi - margin), moved, own - margin * math.sin(margin))
        return scores.scatter(1, target, moved)


@register("CombinedMargin")
class CombinedMargin(_OfCosines):
    """cos(m1 θ + m2) - m3 in place of cos θ of the label's class: (cosines (N, …), labels (N,)) → shape of the cosines.

    Images of negative labels are not changed. In both phases, as combined_margin_layer.cpp of xialuxi/arcface-caffe.
    """

    def forward(self, cosines: Tensor, labels: Tensor) -> Tops:
        self.labelled = labels.reshape(-1, 1) >= 0
        return super().forward(cosines, labels.clamp_min(0))

    def compare(self, scores: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
        p = self.param.combined_margin_param
        own = scores.gather(1, target)
        moved = torch.cos(p.m1 * torch.acos(own.clamp(-_INSIDE, _INSIDE)) + p.m2) - p.m3
        return scores.scatter(1, target, torch.where(self.labelled, moved, own))


def margin_cosine(cosine: Tensor, multiple: int) -> Tensor:
    """(-1)^k cos(m θ) - 2 k for cos θ, with k the number of multiples of π / m that θ exceeds, m = 1 to 4."""
    turns = torch.zeros_like(cosine)
    for step in range(1, multiple):
        turns += cosine < math.cos(math.pi * step / multiple)
    square = cosine * cosine
    value = {
        1: cosine,
        2: 2 * square - 1,
        3: (4 * square - 3) * cosine,
        4: (8 * square - 8) * square + 1,
    }[multiple]
    return (1 - 2 * (turns % 2)) * value - 2 * turns


@register("LargeMarginInnerProduct", "largemargin_inner_product_param")
class LargeMarginInnerProduct(MarginProduct):
    """L-Softmax (Liu et al. 2016): (x (d_0, …, d_axis-1, K), labels) → (d_0, …, d_axis-1, O)[, λ (1,)].

    Scores are x · w; the label's is (|x| |w| ψ(θ) + λ x · w) / (1 + λ), θ the angle between x and w, ψ as in MarginInnerProduct,
    m = 1 to 4 (`type`). λ = max(lambda_min, base · (1 + gamma · passes)^-power), passes from `iteration` + 1 on. Blob: weights
    (O, K). Source: largemargin_inner_product_layer.cpp of wy1iu/LargeMargin_Softmax_Loss.
    """

    def compare(self, rows: Tensor, target: Tensor, balance: float) -> Tensor:
        kind = self.param.largemargin_inner_product_param.type
        (weight,) = self.parameters()
        scores = rows @ weight.t()
        if kind != caffe_pb2.LargeMarginInnerProductParameter.SINGLE:
            own = scores.gather(1, target)
            lengths = [torch.linalg.vector_norm(vectors, dim=1, keepdim=True) for vectors in (rows, weight[target[:, 0]])]
            product = lengths[0] * lengths[1] + _TINY
            moved = (product * margin_cosine(own / product, kind + 1) + balance * own) / (1 + balance)
            scores = scores.scatter(1, target, moved)
        return scores


class _Placed(torch.autograd.Function):
    """Bottoms placed one over another; each gets the gradient of its whole window."""

    @staticmethod
    def forward(ctx: Any, corners: list[tuple[int, int]], size: tuple[int, int], *bottoms: Tensor) -> Tensor:
        ctx.windows = [
            (slice(upper, upper + x.shape[2]), slice(left, left + x.shape[3]))
            for (left, upper), x in zip(corners, bottoms, strict=True)
        ]
        top = bottoms[0].new_zeros(*bottoms[0].shape[:2], *size)
        for (rows, columns), x in zip(ctx.windows, bottoms, strict=True):
            top[:, :, rows, columns] = x
        return top

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradient[:, :, rows, columns].clone() for rows, columns in ctx.windows)


@register("Combination")
class Combination(Layer):
    """Bottoms (N, C, H_i, W_i) placed in one map, later ones over earlier ones, 0 elsewhere: → (N, C, H, W) (JÂA-Net).

    xcoord and ycoord: the left and the upper edge of each. H and W are where the last bottom ends; as in the fork, a bottom that
    is covered has the gradient of its window nevertheless. Source: combination_layer.cpp of ZhiwenShao/JAANet.
    """

    bottoms = (1, None)

    def setup(self, *shapes: Shape) -> None:
        p = self.param.combination_param
        for shape in shapes:
            self.require_maps(shape)
        if not len(p.xcoord) == len(p.ycoord) == len(shapes):
            found = f"{len(p.xcoord)} values of xcoord and {len(p.ycoord)} of ycoord"
            raise self.error(found, f"there must be one for each of {len(shapes)} bottoms")
        self.corners = list(zip(p.xcoord, p.ycoord, strict=True))

    def top_shapes(self, *shapes: Shape) -> list[Shape]:
        height, width = (corner + extent for corner, extent in zip(self.corners[-1][::-1], shapes[-1][2:], strict=True))
        for (left, upper), shape in zip(self.corners, shapes, strict=True):
            if shape[:2] != shapes[0][:2]:
                raise self.error(f"bottoms of shapes {shapes[0]} and {shape}", "all must have the same images and channels")
            if upper + shape[2] > height or left + shape[3] > width:
                found = f"a bottom of {shape[2]}×{shape[3]} at ({left}, {upper})"
                raise self.error(found, f"the last bottom ends at {height}×{width}; all must fit")
        return [(*shapes[0][:2], height, width)]

    def forward(self, *bottoms: Tensor) -> Tensor:
        ((_, _, height, width),) = self.top_shapes(*[tuple(x.shape) for x in bottoms])
        placed: Tensor = _Placed.apply(self.corners, (height, width), *bottoms)
        return placed

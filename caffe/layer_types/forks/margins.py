"""Margins between classes, for face recognition: LabelSpecificAdd (AM-Softmax), MarginInnerProduct (SphereFace)."""

import math
from typing import Any

import torch
from torch import Tensor

from caffe.engine.layer import WEIGHT, Shape, Tops, register
from caffe.layer_types.forks.small import Annealed
from caffe.layer_types.loss import FLT_MIN, _OfLabels
from caffe.layer_types.utility import out_of_range
from caffe.proto import caffe_pb2


@register("LabelSpecificAdd")
class LabelSpecificAdd(_OfLabels, Annealed):
    """AM-Softmax (Wang et al. 2018): (scores (N, …), labels (N,)) → shape of the scores[, the bias (1,)].

    In training `bias` is added to the score of the label if that is above -bias; in testing nothing is added, and the second top
    is 0. With bias_base, the bias is bias_base + (1 + bias_gamma · passes)^bias_power - 1, within bias_min and bias_max.
    """

    tops = (1, 2)
    compares_labels = False

    def setup(self, scores: Shape, labels: Shape) -> None:
        self.find_classes((scores[0], math.prod(scores[1:])), labels, 1)
        self.passes = self.param.label_specific_add_param.iteration

    def top_shapes(self, scores: Shape, labels: Shape) -> list[Shape]:
        return [scores, (1,)][: len(self.param.top)]

    def bias(self) -> float:
        p = self.param.label_specific_add_param
        if not p.HasField("bias_base"):
            return p.bias
        annealed = p.bias_base + (1 + p.bias_gamma * self.passes) ** p.bias_power - 1
        self.passes += 1
        return min(max(annealed, p.bias_min), p.bias_max)

    def forward(self, scores: Tensor, labels: Tensor) -> Tops:
        if self.phase == caffe_pb2.TEST:
            return (scores.view_as(scores), scores.new_zeros(1))[: len(self.param.top)]
        moved, *bias = super().forward(scores.flatten(1), labels)
        return moved.view_as(scores), *bias

    def compare(self, scores: Tensor, target: Tensor, counted: Tensor | None) -> tuple[Tensor, ...]:
        bias = self.bias()
        added = (scores.detach().gather(1, target) > -bias) * scores.new_tensor(bias)
        return (scores.scatter_add(1, target, added), scores.new_tensor([bias]))[: len(self.param.top)]


class _AngularMargin(torch.autograd.Function):
    """x · w of each class, for the label's class (|x| ψ(θ) + λ x · w) / (1 + λ): see MarginInnerProduct."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, target: Tensor, multiple: int, balance: float) -> Tensor:
        scores = x @ weight.t()
        own = scores.gather(1, target)
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        cosine = own / norm
        # (-1)^k cos(m θ) - 2 k, with k the number of multiples of π / m that θ exceeds; and its derivative by cos θ.
        turns = torch.zeros_like(cosine)
        for step in range(1, multiple):
            turns += cosine < math.cos(math.pi * step / multiple)
        sign = 1 - 2 * (turns % 2)
        value, slope = {
            1: (cosine, torch.ones_like(cosine)),
            2: (2 * cosine**2 - 1, 4 * cosine),
            3: (4 * cosine**3 - 3 * cosine, 12 * cosine**2 - 3),
            4: (8 * cosine**4 - 8 * cosine**2 + 1, 32 * cosine**3 - 16 * cosine),
        }[multiple]
        psi, slope = sign * value - 2 * turns, sign * slope
        ctx.save_for_backward(x, weight, target, slope, (psi - slope * cosine) / norm)
        ctx.multiple, ctx.balance = multiple, balance
        return scores.scatter(1, target, (norm * psi + balance * own) / (1 + balance))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, target, of_weight, of_x = ctx.saved_tensors
        towards = gradient @ weight
        if ctx.multiple > 1:
            length = (of_weight.square() + of_x.square()).sqrt()
            rows = weight[target[:, 0]]
            share = gradient.gather(1, target) / (1 + ctx.balance)
            towards = towards + share * ((of_weight * rows + of_x * x) / length - rows)
        return towards, gradient.t() @ x, None, None, None


class MarginProduct(Annealed):
    """Base of inner products with a margin at the label's class: (x (d_0, …, d_axis-1, K), labels) → scores[, λ (1,)]."""

    learns = (WEIGHT,)
    bottoms = (2, 2)
    tops = (1, 2)
    differentiable_bottoms = (0,)
    drawn_as = "inner product"

    def setup(self, x: Shape, labels: Shape) -> None:
        p = self.settings_of(self.param)
        self.require_positive("num_output")
        self.first = self.axis(p.axis, len(x))
        self.inputs = math.prod(x[self.first :])
        self.add_blob((p.num_output, self.inputs), p.weight_filler)
        self.passes = p.iteration

    def top_shapes(self, x: Shape, labels: Shape) -> list[Shape]:
        if math.prod(x[self.first :]) != self.inputs:
            raise self.error(f"a bottom of shape {x}", f"the weights take {self.inputs} inputs")
        if math.prod(labels) != math.prod(x[: self.first]):
            raise self.error(f"labels of shape {labels} for a bottom of shape {x}", "there must be one for each vector")
        return [(*x[: self.first], self.settings_of(self.param).num_output), (1,)][: len(self.param.top)]

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        p = self.settings_of(self.param)
        rows, target = x.reshape(-1, self.inputs), labels.reshape(-1, 1).long()
        if (label := out_of_range(target, p.num_output)) is not None:
            raise self.error(f"label {label}", f"num_output is {p.num_output}: labels go from 0 to {p.num_output - 1}")
        self.passes += 1
        balance = max(p.base * (1 + p.gamma * self.passes) ** -p.power, p.lambda_min)
        scores = self.compare(rows, target, balance)
        return (scores.reshape(*x.shape[: self.first], p.num_output), x.new_tensor([balance]))[: len(self.param.top)]

    def compare(self, rows: Tensor, target: Tensor, balance: float) -> Tensor:
        """The scores (N, O) of vectors (N, K), with the margin at the labels `target` (N, 1); `balance` is λ."""
        raise NotImplementedError


@register("MarginInnerProduct")
class MarginInnerProduct(MarginProduct):
    """SphereFace's angular margin (Liu et al. 2017): (x (d_0, …, d_axis-1, K), labels) → (d_0, …, d_axis-1, O)[, λ (1,)].

    Scores are x · w; the label's is (|x| ψ(θ) + λ x · w) / (1 + λ), θ the angle between x and w, ψ = (-1)^k cos(m θ) - 2 k for θ
    from k π / m to (k + 1) π / m, m = 1 to 4 (`type`). λ = max(lambda_min, base · (1 + gamma · passes)^-power), passes from
    `iteration` + 1 on. Blob: the weights (O, K), whose rows are scaled to norm 1 before each pass, and stay so where they learn.
    The gradient is the fork's: the weights' is that of x · w, and the two coefficients of ψ's part of x's are divided by the root
    of the sum of their squares.
    """

    def compare(self, rows: Tensor, target: Tensor, balance: float) -> Tensor:
        (blob,) = self.blobs
        weight = blob.tensor / torch.linalg.vector_norm(blob.tensor, dim=1, keepdim=True).clamp_min(FLT_MIN)
        if self.phase == caffe_pb2.TRAIN and blob.leaf.requires_grad:
            blob.tensor = weight
            (weight,) = self.parameters()
        scores: Tensor = _AngularMargin.apply(rows, weight, target, self.param.margin_inner_product_param.type + 1, balance)
        return scores

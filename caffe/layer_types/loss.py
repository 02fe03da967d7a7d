"""What training minimises and what testing reports: SoftmaxWithLoss, EuclideanLoss, Accuracy."""

from __future__ import annotations

import torch

from caffe import glog
from caffe.layer import Layer, register
from caffe.proto import caffe_pb2

LOSS = caffe_pb2.LossParameter
FLT_MIN = torch.finfo(torch.float32).tiny


class _OfLabels(Layer):
    """What layers share that compare scores along an axis with one label for each of the other positions."""

    def label_axis(self, scores: tuple[int, ...], labels: tuple[int, ...], axis: int) -> int:
        """The class axis, after a check that there is one label for each position."""
        along = self.axis(axis, len(scores))
        positions = scores[:along] + scores[along + 1 :]
        if torch.Size(labels).numel() != torch.Size(positions).numel():
            raise self.error(
                f"{torch.Size(labels).numel()} labels (shape {labels}) for scores of shape {scores}",
                f"with classes on axis {along} there are {torch.Size(positions).numel()} positions",
            )
        return along

    def targets(self, scores: torch.Tensor, labels: torch.Tensor, along: int, ignored: int | None) -> torch.Tensor:
        """Labels as positions on the class axis, shape of `scores` with that axis 1; ignored ones are -1."""
        shape = list(scores.shape)
        classes, shape[along] = shape[along], 1
        target = labels.reshape(shape).long()
        if ignored is not None:
            target = torch.where(target == ignored, -1, target)
        if not labels.is_meta:
            low, high = (int(end) for end in target.aminmax())
            if high >= classes or low < (0 if ignored is None else -1):
                raise self.error(
                    f"label {high if high >= classes else low}",
                    f'there are {classes} classes (0 to {classes - 1}) in "{self.param.bottom[0]}"',
                    "Caffe's labels start from 0; the layer that gives the scores needs num_output: number of classes",
                )
        return target


class _SoftmaxLoss(torch.autograd.Function):
    """-log p of the targets, summed; p no smaller than FLT_MIN in the loss, and as it is in the gradient, p - target.

    counted  1 for each target that counts and 0 for each that is ignored; None where all count
    """

    @staticmethod
    def forward(ctx, scores, target, along, counted):
        probability = torch.softmax(scores, along)
        chosen = probability.gather(along, target if counted is None else target.clamp_min(0)).clamp_min_(FLT_MIN).log_()
        loss = -(chosen if counted is None else chosen * counted).sum()
        ctx.save_for_backward(probability, target, counted)
        ctx.along = along
        ctx.mark_non_differentiable(probability)
        return loss, probability

    @staticmethod
    def backward(ctx, gradient, _):
        probability, target, counted = ctx.saved_tensors
        if counted is None:
            share = gradient.expand(target.shape)
            return (probability * gradient).scatter_add_(ctx.along, target, -share), None, None, None
        share = counted * gradient
        return (probability * share).scatter_add_(ctx.along, target.clamp_min(0), -share), None, None, None


@register("SoftmaxWithLoss")
class SoftmaxWithLoss(_OfLabels):
    """Multinomial logistic loss of a softmax over `axis`: (scores, labels) → scalar; the probabilities as a second top.

    Divided as loss_param says: by the labels that are not ignored (VALID, the default), by all, by the batch size, or by 1.
    """

    bottoms = (2, 2)
    tops = (1, 2)
    is_loss = True
    differentiable_bottoms = (0,)

    def setup(self, scores, labels):
        glog.info("layer_factory.hpp:77", f"Creating layer {self.param.name}")  # BVLC Caffe's inner softmax
        self.along = self.label_axis(scores, labels, self.param.softmax_param.axis)
        p = self.param.loss_param
        self.ignored = p.ignore_label if p.HasField("ignore_label") else None
        self.normalization = p.normalization
        if not p.HasField("normalization") and p.HasField("normalize"):
            self.normalization = LOSS.VALID if p.normalize else LOSS.BATCH_SIZE

    def forward(self, scores, labels):
        target = self.targets(scores, labels, self.along, self.ignored)
        counted = None if self.ignored is None else (target >= 0).to(scores.dtype)
        total, probability = _SoftmaxLoss.apply(scores, target, self.along, counted)
        if self.normalization == LOSS.VALID and counted is not None:
            loss = total / counted.sum().clamp_min(1)
        else:
            counts = {LOSS.VALID: target.numel(), LOSS.FULL: target.numel(), LOSS.BATCH_SIZE: scores.shape[: self.along].numel()}
            loss = total / max(1, counts.get(self.normalization, 1))
        return (loss, probability)[: max(1, len(self.param.top))]


@register("EuclideanLoss")
class EuclideanLoss(Layer):
    """Half the mean over the batch of the squared distance between two bottoms of one count: → scalar."""

    bottoms = (2, 2)
    is_loss = True

    def setup(self, first, second):
        if torch.Size(first[1:]).numel() != torch.Size(second[1:]).numel() or first[0] != second[0]:
            raise self.error(f"bottoms of shapes {first} and {second}", "they must have as many values")

    def forward(self, first, second):
        difference = first - second.reshape(first.shape)
        return difference.square().sum() / (2 * first.shape[0])


@register("Accuracy")
class Accuracy(_OfLabels):
    """Share of positions whose label is among the top_k highest scores: (scores, labels) → scalar.

    A second top has the share for each class, 0 for a class without labels. Caffe: a score that equals the label's own counts
    as better than it.
    """

    bottoms = (2, 2)
    tops = (1, 2)
    differentiable_bottoms = ()

    def setup(self, scores, labels):
        p = self.param.accuracy_param
        self.along = self.label_axis(scores, labels, p.axis)
        self.ignored = p.ignore_label if p.HasField("ignore_label") else None
        if not 1 <= p.top_k <= scores[self.along]:
            raise self.error(f"top_k {p.top_k}", f"there are {scores[self.along]} classes")

    def forward(self, scores, labels):
        target = self.targets(scores, labels, self.along, self.ignored)
        own = scores.gather(self.along, target.clamp_min(0))
        # The label's own score is among those that are at least as high.
        correct = ((scores >= own).sum(self.along, keepdim=True) <= self.param.accuracy_param.top_k) & (target >= 0)
        counted = (target >= 0).sum()
        share = correct.sum().to(scores.dtype) / counted
        if len(self.param.top) < 2:
            return share
        classes = scores.shape[self.along]
        flat = torch.where(target >= 0, target, classes).flatten()
        counts = torch.zeros(classes + 1, dtype=scores.dtype, device=scores.device).index_add_(
            0, flat, torch.ones_like(flat, dtype=scores.dtype)
        )
        hits = torch.zeros_like(counts).index_add_(0, flat, correct.flatten().to(scores.dtype))
        return share, (hits / counts.clamp_min(1))[:classes]

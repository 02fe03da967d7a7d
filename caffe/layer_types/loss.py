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

    def forward(self, scores, labels):
        shape = list(scores.shape)
        classes, shape[self.along] = shape[self.along], 1
        target = labels.reshape(shape).long()
        counted = None
        if self.ignored is not None:
            counted = target != self.ignored
            target = target * counted
        if target.is_cuda:  # where an index out of range would end the process
            self._check(target, classes)
        try:
            return self.compare(scores, target, counted)
        except RuntimeError:
            if not target.is_meta:
                self._check(target, classes)
            raise

    def compare(self, scores: torch.Tensor, target: torch.Tensor, counted: torch.Tensor | None):
        """The tops.

        target   the labels as positions on the class axis, shape of `scores` with that axis 1; 0 where they are ignored
        counted  whether each target counts; None where all do
        """
        raise NotImplementedError

    def _check(self, target: torch.Tensor, classes: int) -> None:
        low, high = (int(end) for end in target.aminmax())
        if low < 0 or high >= classes:
            raise self.error(
                f"label {high if high >= classes else low}",
                f'there are {classes} classes (0 to {classes - 1}) in "{self.param.bottom[0]}"',
                "Caffe's labels start from 0; the layer that gives the scores needs num_output: number of classes",
            )


class _SoftmaxLoss(torch.autograd.Function):
    """-log p of the targets, summed and divided by `count`.

    p is no smaller than FLT_MIN in the loss, and as it is in the gradient, (p - target) / count.
    counted  1 for each target that counts and 0 for each that is ignored; None where all count
    """

    @staticmethod
    def forward(ctx, scores, target, along, counted, count):
        probability = torch.softmax(scores, along)
        chosen = probability.gather(along, target).clamp_min_(FLT_MIN).log_()
        loss = (chosen if counted is None else chosen * counted).sum() / -count
        ctx.save_for_backward(probability, target, counted)
        ctx.along, ctx.count = along, count
        ctx.mark_non_differentiable(probability)
        return loss, probability

    @staticmethod
    def backward(ctx, gradient, _):
        probability, target, counted = ctx.saved_tensors
        share = gradient / ctx.count
        difference = probability.scatter(ctx.along, target, -1.0, reduce="add")
        return difference.mul_(share if counted is None else counted * share), None, None, None, None


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

    def compare(self, scores, target, counted):
        if counted is not None:
            counted = counted.to(scores.dtype)
        if self.normalization in (LOSS.VALID, LOSS.FULL):
            count = target.numel()
        else:
            count = scores.shape[: self.along].numel() if self.normalization == LOSS.BATCH_SIZE else 1
        if self.normalization == LOSS.VALID and counted is not None:
            count = counted.sum()
        count = count.clamp_min(1) if isinstance(count, torch.Tensor) else max(1, count)
        loss, probability = _SoftmaxLoss.apply(scores, target, self.along, counted, count)
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

    def compare(self, scores, target, counted):
        own = scores.gather(self.along, target)
        # The label's own score is among those that are at least as high.
        correct = (scores >= own).sum(self.along, keepdim=True) <= self.param.accuracy_param.top_k
        if counted is None:
            counted = torch.ones_like(correct)
        correct = correct & counted
        share = correct.sum().to(scores.dtype) / counted.sum()
        if len(self.param.top) < 2:
            return share
        classes = scores.shape[self.along]
        flat = torch.where(counted, target, classes).flatten()
        counts = torch.zeros(classes + 1, dtype=scores.dtype, device=scores.device).index_add_(
            0, flat, torch.ones_like(flat, dtype=scores.dtype)
        )
        hits = torch.zeros_like(counts).index_add_(0, flat, correct.flatten().to(scores.dtype))
        return share, (hits / counts.clamp_min(1))[:classes]

"""Loss layers and Accuracy: SoftmaxWithLoss, EuclideanLoss, HingeLoss, InfogainLoss …"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from caffe import events
from caffe.engine import machine
from caffe.engine.layer import Layer, Shape, Tops, register
from caffe.formats.stored import read_array
from caffe.layer_types.utility import out_of_range
from caffe.proto import caffe_pb2

LOSS = caffe_pb2.LossParameter
LOG_THRESHOLD = 1e-20
FLT_MIN = torch.finfo(torch.float32).tiny


def at_least(value: Tensor, least: float) -> Tensor:
    """`value` clamped to `least`; its gradient is not, so that of a following logarithm divides by the result."""
    return value + (value.clamp_min(least) - value).detach()


class Loss(Layer):
    """Base of losses: a scalar top; an optional second top has the shape of the first bottom."""

    is_loss = True
    ignored: int | None = None
    """The label that is ignored, if any."""
    normalization: int

    def read_loss_param(self, otherwise: int = LOSS.VALID) -> None:
        """Set `ignored` and `normalization`; the older field `normalize` means VALID if true and BATCH_SIZE if false."""
        p = self.param.loss_param
        self.ignored = p.ignore_label if p.HasField("ignore_label") else None
        self.normalization = p.normalization if p.HasField("normalization") else otherwise
        if p.HasField("normalize") and not p.HasField("normalization"):
            self.normalization = LOSS.VALID if p.normalize else LOSS.BATCH_SIZE

    def divisor(self, images: int, values: int, counted: Tensor | None) -> float | Tensor:
        """The divisor of the summed loss, at least 1; with PRE_FIXED (R-FCN's fork, intel/caffe) pre_fixed_normalizer.

        images, values  numbers of independent images, and of values that have a label
        counted         whether each value counts, i.e. is not ignored, or its weight; None if all count
        """
        if self.normalization == LOSS.VALID and counted is not None:
            return counted.sum().clamp_min(1)
        fixed = self.param.loss_param.pre_fixed_normalizer
        counts: dict[int, float] = {LOSS.VALID: values, LOSS.FULL: values, LOSS.BATCH_SIZE: images, LOSS.PRE_FIXED: fixed}
        return max(1, counts.get(self.normalization, 1))

    def normalized_sum(self, terms: Tensor, images: int, counted: Tensor | None) -> Tensor:
        """The sum of those terms that count, divided as loss_param says."""
        total = terms.sum() if counted is None else (terms * counted).sum()
        return total / self.divisor(images, terms.numel(), counted)

    def require_same_count(self, *shapes: Shape) -> None:
        """Raise LayerError unless all these bottoms have the same number of values."""
        if len({math.prod(shape) for shape in shapes}) > 1:
            raise self.error(f"bottoms of shapes {', '.join(map(str, shapes))}", "all must have the same number of values")

    def require_same_images(self, *shapes: Shape) -> None:
        """Raise LayerError unless all these bottoms have as many values, of as many images."""
        self.require_same_count(*shapes)
        self.require_same_count(*[shape[:1] for shape in shapes])

    def top_shapes(self, *shapes: Shape) -> list[Shape]:
        return [(), shapes[0]][: len(self.param.top)]

    def batch_dependence(self) -> str:
        valid = self.ignored is not None and self.normalization == LOSS.VALID
        return "divides by the number of labels in its batch that are not ignored (normalization: VALID)" if valid else ""


class _OfLabels(Layer):
    """Base of layers that compare the scores along a class axis with one label for each of the other positions."""

    along: int
    classes: int
    ignored: int | None = None

    bottoms = (2, 2)
    differentiable_bottoms: tuple[int, ...] | None = (0,)
    compares_labels = True

    def find_classes(self, scores: Shape, labels: Shape, axis: int) -> None:
        """Set `along`, the class axis as a position from 0; raises LayerError unless there is one label for each position."""
        self.along = self.axis(axis, len(scores))
        positions = math.prod(scores[: self.along] + scores[self.along + 1 :])
        if math.prod(labels) != positions:
            raise self.error(
                f"{math.prod(labels)} labels (shape {labels}) for scores of shape {scores}",
                f"with classes on axis {self.along} there are {positions} positions",
            )

    def forward(self, scores: Tensor, labels: Tensor) -> Tops:
        shape = list(scores.shape)
        classes, shape[self.along] = shape[self.along], 1
        target = labels.reshape(shape).long()
        counted: Tensor | None = None
        if self.ignored is not None:
            counted = target != self.ignored
            target = target * counted
        if target.is_cuda and target.numel() and not torch.compiler.is_exporting():
            # There an index out of range would end the process, and a look at it would wait for the GPU.
            self.defer(torch.stack(target.aminmax()))
            target = target.clamp(0, classes - 1)
            self.classes = classes
        try:
            return self.compare(scores, target, counted)
        except RuntimeError:
            self._check_range(target, classes)
            raise

    def compare(self, scores: Tensor, target: Tensor, counted: Tensor | None) -> Tops:
        """The tops.

        target   the labels as positions on the class axis, shape of `scores` with that axis 1; 0 where they are ignored
        counted  whether each target counts, i.e. is not ignored; None if all count
        """
        raise NotImplementedError

    def check_deferred(self) -> None:
        bounds, self.deferred = [copy.wait() for copy in self.deferred], ()
        for each in bounds:
            self._check_range(each, self.classes)

    def _check_range(self, target: Tensor, classes: int) -> None:
        if (label := out_of_range(target, classes)) is not None:
            raise self.error(
                f"label {label}",
                f'there are {classes} classes (0 to {classes - 1}) in "{self.bottom_names[0]}"',
                "Caffe's labels start from 0; the layer that gives the scores needs num_output: number of classes",
            )


class _SoftmaxLoss(torch.autograd.Function):
    """-log p of the targets, summed and divided by `count`.

    p is clamped to FLT_MIN in the loss, and not in the gradient, (p - target) / count.
    weights  the weight of each target, 0 if it is ignored; None if all weigh 1
    smoothing  how much of a target the other classes share, in the gradient alone
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, target: Tensor, along: int, weights: Tensor | None, count: float | Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        logarithms, probability = machine.by_kernel(
            "softmax.softmax_loss", _log_probabilities, scores, target, weights, along, FLT_MIN
        )
        loss = logarithms.sum() / -count
        ctx.save_for_backward(probability, target, weights)
        ctx.along, ctx.count, ctx.smoothing = along, count, smoothing
        ctx.mark_non_differentiable(probability)
        return loss, probability

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        probability, target, weights = ctx.saved_tensors
        others = ctx.smoothing / max(1, probability.shape[ctx.along :].numel() - 1)
        given = probability, target, weights, gradient / ctx.count, ctx.along, ctx.smoothing, others
        return machine.by_kernel("softmax.softmax_loss_backward", _differences, *given), None, None, None, None, None


def _log_probabilities(
    scores: Tensor, target: Tensor, weights: Tensor | None, along: int, smallest: float
) -> tuple[Tensor, Tensor]:
    """The logarithm of each target's probability, at least that of `smallest`, times its weight; and all probabilities."""
    probability = torch.softmax(scores, along)
    chosen = probability.gather(along, target).clamp_min_(smallest).log_()
    return chosen if weights is None else chosen * weights, probability


def _differences(
    probability: Tensor, target: Tensor, weights: Tensor | None, share: Tensor, along: int, smoothing: float, others: float
) -> Tensor:
    """The gradient in the scores: (p - others, less 1 - smoothing for the target) · share · the target's weight."""
    if smoothing:
        probability = probability - others
    difference = probability.scatter(along, target, smoothing - 1, reduce="add")
    return difference.mul_(share if weights is None else weights * share)


@register("SoftmaxWithLoss", "softmax_param")
class SoftmaxWithLoss(_OfLabels, Loss, is_capturable=True):
    """Multinomial logistic loss of a softmax over `axis`: (scores, labels) → scalar; the probabilities as a second top.

    Normalised as loss_param says: by the labels that are not ignored (VALID, the default), by all, by the batch size, or by 1.
    With weight_by_label_freqs, a label's loss is first multiplied by its class's class_weighting.
    A third bottom (intel/caffe, happynear/caffe-windows) has a weight for each label; VALID divides by their sum.
    label_smoothing s (NVIDIA/caffe) leaves the loss as it is, and makes its gradient p - s / (C - 1), less 1 - s for the label's
    class; C is the number of scores of a record, that of the classes where there is one position.
    """

    bottoms = (2, 3)
    tops = (1, 2)
    applies_softmax = True
    drawn_as = "loss"

    given_weights: Tensor | None = None
    """The third bottom of this pass, in the labels' shape."""

    def setup(self, scores: Shape, labels: Shape, weights: Shape | None = None) -> None:
        events.layer_found(self.param.name)  # BVLC Caffe's inner softmax
        self.find_classes(scores, labels, self.param.softmax_param.axis)
        self.read_loss_param()
        if weights is not None:
            self.require_same_count(labels, weights)
        p = self.param.loss_param
        if not 0 <= p.label_smoothing <= 1:
            raise self.error(f"label_smoothing {p.label_smoothing:g}", "it must lie between 0 and 1")
        self.class_weights = torch.tensor(p.class_weighting, device=self.device) if p.weight_by_label_freqs else None
        if p.weight_by_label_freqs and len(p.class_weighting) != scores[self.along]:
            raise self.error(f"{len(p.class_weighting)} values of class_weighting", f"there are {scores[self.along]} classes")

    def forward(self, scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tops:
        self.given_weights = weights
        return super().forward(scores, labels)

    def compare(self, scores: Tensor, target: Tensor, counted: Tensor | None) -> tuple[Tensor, ...]:
        weights = None if counted is None else counted.to(scores.dtype)
        if self.given_weights is not None:
            given = self.given_weights.detach().reshape(target.shape)
            weights = counted = given if weights is None else weights * given
        count = self.divisor(scores.shape[: self.along].numel(), target.numel(), counted)
        if self.class_weights is not None:
            of_classes = self.class_weights[target]
            weights = of_classes if weights is None else weights * of_classes
        loss, probability = _SoftmaxLoss.apply(scores, target, self.along, weights, count, self.param.loss_param.label_smoothing)
        return (loss, probability)[: len(self.param.top)]


@register("EuclideanLoss")
class EuclideanLoss(Loss, is_capturable=True):
    """Half the mean over the batch of the squared distance between two bottoms of equal count: → scalar."""

    bottoms = (2, 2)
    drawn_as = "loss"

    def setup(self, first: Shape, second: Shape) -> None:
        self.require_same_images(first, second)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        difference = first - second.reshape(first.shape)
        return difference.square().sum() / (2 * first.shape[0])


class _OfImages(_OfLabels, Loss):
    """A loss of scores with one label for each image: (N, …), (N,) → scalar."""

    def setup(self, scores: Shape, labels: Shape) -> None:
        self.find_classes((scores[0], math.prod(scores[1:])), labels, 1)

    def forward(self, scores: Tensor, labels: Tensor) -> Tops:
        return super().forward(scores.flatten(1), labels)


@register("MultinomialLogisticLoss")
class MultinomialLogisticLoss(_OfImages, is_capturable=True):
    """-log of the label's probability, clamped to 1e-20, as a mean over images: (probabilities, labels) → scalar."""

    def compare(self, scores: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
        return -at_least(scores.gather(1, target), LOG_THRESHOLD).log().sum() / scores.shape[0]


@register("InfogainLoss")
class InfogainLoss(_OfLabels, Loss, is_capturable=True):
    """Σ over classes of -H[label, class] log p(class), p a softmax along `axis`: (scores, labels[, H]) → scalar[, probabilities].

    H (classes × classes) is the third bottom, or a binaryproto named by infogain_loss_param.source; the identity makes it a
    SoftmaxWithLoss. Normalised like SoftmaxWithLoss.
    """

    bottoms = (2, 3)
    tops = (1, 2)
    applies_softmax = True
    drawn_as = "loss"
    matrix: Tensor

    def setup(self, scores: Shape, labels: Shape, matrix: Shape | None = None) -> None:
        p = self.param.infogain_loss_param
        self.find_classes(scores, labels, p.axis)
        self.read_loss_param()
        classes = scores[self.along]
        if matrix is None:
            if not p.source:
                raise self.error("two bottoms and no source", do="give infogain_loss_param { source: … }, or H as a third bottom")
            stored = read_array(p.source, "infogain matrix", "write it as a binaryproto of classes × classes values")
            matrix = stored.shape
            self.matrix = torch.from_numpy(stored).to(self.device)
        if math.prod(matrix) != classes * classes:
            raise self.error(f"an infogain matrix of shape {matrix}", f"it must be {classes} × {classes} for {classes} classes")

    def forward(self, scores: Tensor, labels: Tensor, matrix: Tensor | None = None) -> Tops:
        if matrix is not None:
            self.matrix = matrix.detach()
        return super().forward(scores, labels)

    def compare(self, scores: Tensor, target: Tensor, counted: Tensor | None) -> tuple[Tensor, ...]:
        classes = scores.shape[self.along]
        logarithms = at_least(torch.log_softmax(scores, self.along), math.log(LOG_THRESHOLD))
        gains = self.matrix.reshape(classes, classes)[target.squeeze(self.along)].movedim(-1, self.along)
        terms = (gains * logarithms).sum(self.along, keepdim=True)
        loss = -self.normalized_sum(terms, scores.shape[: self.along].numel(), counted)
        return (loss, torch.softmax(scores.detach(), self.along))[: len(self.param.top)]


@register("HingeLoss")
class HingeLoss(_OfImages, is_capturable=True):
    """Mean over images of the hinge losses max(0, 1 - s) of the label's score s and max(0, 1 + s) of the others'.

    (scores, labels) → scalar; norm L2 sums their squares.
    """

    def compare(self, scores: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
        side = torch.ones_like(scores).scatter(1, target, -1.0)
        missed = torch.relu(1 + side * scores)
        if self.param.hinge_loss_param.norm == caffe_pb2.HingeLossParameter.L2:
            missed = missed.square()
        return missed.sum() / scores.shape[0]


@register("SigmoidCrossEntropyLoss")
class SigmoidCrossEntropyLoss(Loss, is_capturable=True):
    """-t log σ(x) - (1 - t) log(1 - σ(x)), summed, for targets t from 0 to 1: (scores, targets) → scalar.

    Divided by the batch size unless loss_param says otherwise; targets equal to ignore_label are left out.
    """

    bottoms = (2, 2)
    differentiable_bottoms = (0,)

    def setup(self, scores: Shape, targets: Shape) -> None:
        self.require_same_count(scores, targets)
        self.read_loss_param(LOSS.BATCH_SIZE)

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        targets = targets.reshape(scores.shape)
        terms = scores.clamp_min(0) - scores * targets + functional.softplus(-scores.abs())
        counted = None if self.ignored is None else targets.trunc() != self.ignored
        return self.normalized_sum(terms, scores.shape[0], counted)


class _Contrast(torch.autograd.Function):
    """Half the mean of d² (similar pairs) or max(0, margin - d)² (others); the gradient divides by d + 1e-4, as in Caffe."""

    @staticmethod
    def forward(ctx: Any, difference: Tensor, alike: Tensor, margin: float) -> Tensor:
        distance = difference.square().sum(1, keepdim=True).sqrt_()
        missing = torch.where(alike, 0.0, (margin - distance).clamp_min_(0))
        ctx.save_for_backward(difference, distance, missing, alike)
        return torch.where(alike, distance, missing).square().sum() / (2 * difference.shape[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        difference, distance, missing, alike = ctx.saved_tensors
        factor = torch.where(alike, 1.0, -missing / (distance + 1e-4))
        return difference * factor * (gradient / difference.shape[0]), None, None


@register("ContrastiveLoss")
class ContrastiveLoss(Loss, is_capturable=True):
    """Contrastive loss of feature pairs (Hadsell et al. 2006): (a (N, C), b (N, C), 1 if similar else 0 (N,)) → scalar.

    legacy_version: max(0, margin - d²) for dissimilar pairs, as in Caffe's first version.
    """

    bottoms = (3, 3)
    differentiable_bottoms = (0, 1)

    def setup(self, first: Shape, second: Shape, alike: Shape) -> None:
        if first != second or any(extent != 1 for extent in first[2:]):
            raise self.error(f"bottoms of shapes {first} and {second}", "both must be (N, C) or (N, C, 1, 1)")
        if math.prod(alike) != first[0]:
            raise self.error(f"similarities of shape {alike}", f"there must be one for each of {first[0]} pairs")

    def forward(self, first: Tensor, second: Tensor, alike: Tensor) -> Tensor:
        p = self.param.contrastive_loss_param
        difference = (first - second).flatten(1)
        alike = alike.reshape(-1, 1) != 0
        if not p.legacy_version:
            return _Contrast.apply(difference, alike, p.margin)
        squares = difference.square().sum(1, keepdim=True)
        return torch.where(alike, squares, (p.margin - squares).clamp_min(0)).sum() / (2 * difference.shape[0])


@register("Accuracy")
class Accuracy(_OfLabels, is_capturable=True):
    """Fraction of positions whose label is among the top_k highest scores: (scores, labels) → scalar.

    A second top has the accuracy of each class, 0 for a class without labels. As in Caffe, a score equal to the label's own ranks
    above it.
    """

    tops = (1, 2)
    differentiable_bottoms = ()
    reads_out = True
    drawn_as = "loss"

    def setup(self, scores: Shape, labels: Shape) -> None:
        p = self.settings_of(self.param)
        self.find_classes(scores, labels, p.axis)
        self.ignored = p.ignore_label if p.HasField("ignore_label") else None
        self.is_capturable = self.is_capturable and len(self.param.top) < 2  # the accuracies of classes are waited for
        if not 1 <= p.top_k <= scores[self.along]:
            raise self.error(f"top_k {p.top_k}", f"there are {scores[self.along]} classes")

    def top_shapes(self, scores: Shape, labels: Shape) -> list[Shape]:
        return [(), (scores[self.along],)][: len(self.param.top)]

    def compare(self, scores: Tensor, target: Tensor, counted: Tensor | None) -> Tops:
        own = scores.gather(self.along, target)
        # The label's own score is among those that are at least as high.
        correct = (scores >= own).sum(self.along, keepdim=True) <= self.settings_of(self.param).top_k
        if counted is None:
            counted = torch.ones_like(correct)
        correct = correct & counted
        share = correct.sum().to(scores.dtype) / counted.sum()
        if len(self.param.top) < 2:
            return share
        hits, counts = (torch.bincount(target[chosen], minlength=scores.shape[self.along]) for chosen in (correct, counted))
        return share, (hits / counts.clamp_min(1)).to(scores.dtype)

"""Connectionist temporal classification: CtcLoss, WarpCTCLoss, CTCGreedyDecoder, LabelsequenceAccuracy, SequenceAccuracy."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from caffe.engine.layer import Layer, Shape, register
from caffe.layer_types.loss import Loss
from caffe.layer_types.utility import out_of_range


def _blank(layer: Layer, classes: int) -> int:
    """The class of a CTC layer that stands for no symbol, 0 by default."""
    messages = (layer.param.ctc_loss_param, layer.param.ctc_decoder_param)
    given = {field.name: value for message in messages for field, value in message.ListFields() if "blank" in field.name}
    if len(given) > 1:
        raise layer.error("both blank_label and blank_index", "they are two names of one setting", "keep one")
    blank = next(iter(given.values()), 0)
    blank = blank + classes if blank < 0 and "blank_index" in given else blank
    if not 0 <= blank < classes:
        raise layer.error(f"blank {blank}", f"there are {classes} classes (0 to {classes - 1})")
    return blank


def _require_scores(layer: Layer, shape: Shape) -> None:
    """Raise LayerError unless a bottom is (T, N, C), possibly with further axes of 1."""
    if len(shape) < 3 or any(extent != 1 for extent in shape[3:]):
        raise layer.error(f"scores of shape {shape}", "they must be (steps, sequences, classes)")


class _MeanOfBatch(torch.autograd.Function):
    """The mean over the batch, with the gradient of the sum: warp-ctc's gradients, which its layers pass on undivided."""

    @staticmethod
    def forward(ctx: Any, costs: Tensor) -> Tensor:
        ctx.count = len(costs)
        return costs.mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.expand(ctx.count)


@register("CtcLoss")
class CtcLoss(Loss):
    """Connectionist temporal classification (Graves et al. 2006): (scores (T, N, C), labels (N, L)) → scalar.

    The mean over sequences of -log p(labels), p from a softmax of the scores; labels equal to the blank are padding and left out.
    The gradient is of the sum over the batch, as in xmfbit's warpctc-caffe. A sequence of more labels than its steps can hold
    adds 0. Only the first time_step steps count, if it is given.
    """

    bottoms = (2, 2)
    differentiable_bottoms = (0,)
    applies_softmax = True
    drawn_as = "loss"

    def setup(self, scores: Shape, labels: Shape, *others: Shape) -> None:
        p = self.param.ctc_loss_param
        _require_scores(self, scores)
        steps, count, classes = scores[:3]
        self.blank = _blank(self, classes)
        if p.alphabet_size not in (0, classes):
            raise self.error(f"alphabet_size {p.alphabet_size}", f"the scores have {classes} classes, the blank among them")
        if p.time_step > steps:
            raise self.error(f"time_step {p.time_step}", f"the scores have {steps} steps")
        self.require_labels(labels, count)

    def require_labels(self, labels: Shape, count: int) -> None:
        """Raise LayerError unless there is a row of labels for each of `count` sequences."""
        if not labels or labels[0] != count:
            raise self.error(f"labels of shape {labels} for {count} sequences", "they must be (sequences, labels)")

    def cost(self, scores: Tensor, steps: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        """The loss from each sequence's number of steps, labels (N, L) and number of labels, both (N,)."""
        classes = scores.shape[2]
        used = torch.arange(labels.shape[1], device=labels.device) < lengths[:, None]
        labels = labels * used
        if (label := out_of_range(labels, classes)) is not None:
            raise self.error(
                f"label {label}",
                f'there are {classes} classes (0 to {classes - 1}) in "{self.bottom_names[0]}"',
                f"pad sequences of labels with the blank, {self.blank}",
            )
        logarithms = torch.log_softmax(scores.flatten(2), 2)
        costs = functional.ctc_loss(logarithms, labels, steps, lengths, self.blank, reduction="none", zero_infinity=True)
        return _MeanOfBatch.apply(costs)

    def forward(self, scores: Tensor, labels: Tensor, *others: Tensor) -> Tensor:
        rows = labels.flatten(1).long()
        is_symbol = rows != self.blank
        rows = rows.gather(1, (~is_symbol).byte().argsort(dim=1, stable=True))
        limit = self.param.ctc_loss_param.time_step or scores.shape[0]
        steps = torch.full(rows.shape[:1], limit, device=rows.device)
        return self.cost(scores, steps, rows, is_symbol.sum(1))


@register("WarpCTCLoss", "ctc_loss_param")
class WarpCTCLoss(CtcLoss):
    """CtcLoss under caffe_ocr's name, or with lengths: (scores, steps (N,), labels a sequence (N,), labels (L, N)) → scalar.

    caffe_ocr's own gradient ignores the loss weight; this one does not.
    """

    bottoms = (2, 4)

    def setup(self, scores: Shape, labels: Shape, *others: Shape) -> None:
        if len(others) == 1:
            raise self.error("3 bottoms", "2 or 4", "give scores and padded labels, or scores, two lengths and labels")
        super().setup(scores, labels, *others)
        lengths = (labels, others[0]) if others else ()
        if any(math.prod(shape) != scores[1] for shape in lengths):
            raise self.error(
                f"lengths of shapes {labels} and {others[0]}", f"there must be one for each of {scores[1]} sequences"
            )

    def require_labels(self, labels: Shape, count: int) -> None:
        if len(self.param.bottom) == 2:
            super().require_labels(labels, count)

    def forward(self, scores: Tensor, labels: Tensor, *others: Tensor) -> Tensor:
        if not others:
            return super().forward(scores, labels)
        lengths, columns = (tensor.long() for tensor in others)
        steps, rows = labels.long().reshape(-1), columns.flatten(1).t()
        for name, values, most in (("steps", steps, scores.shape[0]), ("labels", lengths.reshape(-1), rows.shape[1])):
            if (length := out_of_range(values, most + 1)) is not None:
                raise self.error(f"a sequence of {length} {name}", f"there are {most}")
        return self.cost(scores, steps, rows, lengths.reshape(-1))


def _symbols(classes: Iterable[int], blank: int, merges: bool = True) -> list[int]:
    """The sequence that the best class of each step spells: without blanks, and a class at successive steps being one symbol."""
    spelled, before = [], blank
    for chosen in classes:
        if chosen != blank and not (merges and chosen == before):
            spelled.append(chosen)
        before = chosen
    return spelled


def _edit_distance(first: list[int], second: list[int]) -> int:
    """Least number of symbols to insert, delete or replace that makes one sequence the other (Levenshtein)."""
    row = list(range(len(second) + 1))
    for count, symbol in enumerate(first, 1):
        diagonal, row[0] = row[0], count
        for column, other in enumerate(second, 1):
            diagonal, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, diagonal + (symbol != other))
    return row[-1]


@register("CTCGreedyDecoder", "ctc_decoder_param")
class CTCGreedyDecoder(Layer):
    """Symbols of the best class of each step, repetitions merged and blanks left out: scores (T, N, C) → (N, T, 1, 1), then -1.

    With labels (N, L), which end before a negative one and whose blanks are left out: → (1, 2, 1, 1). The first value is 1 less
    the mean of the edit distances, each divided by the length of the longer sequence; the second is the share of sequences, not
    empty, that are decoded without an error (caffe_ocr).
    """

    bottoms = (1, 2)
    differentiable_bottoms = ()
    reads_out = True

    def setup(self, scores: Shape, *labels: Shape) -> None:
        _require_scores(self, scores)
        self.blank = _blank(self, scores[2])

    def top_shapes(self, scores: Shape, *labels: Shape) -> list[Shape]:
        if labels and labels[0][:1] != scores[1:2]:
            raise self.error(f"labels of shape {labels[0]} for {scores[1]} sequences", "they must be (sequences, labels)")
        return [(1, 2, 1, 1) if labels else (scores[1], scores[0], 1, 1)]

    def forward(self, scores: Tensor, *labels: Tensor) -> Tensor:
        merges = self.param.ctc_decoder_param.ctc_merge_repeated
        best = scores.flatten(2).argmax(2).t().tolist()
        spelled = [_symbols(classes, self.blank, merges) for classes in best]
        if not labels:
            return scores.new_tensor([symbols + [-1] * (scores.shape[0] - len(symbols)) for symbols in spelled])[..., None, None]
        distance, exact = 0.0, 0
        for symbols, row in zip(spelled, labels[0].flatten(1).tolist(), strict=True):
            end = next((index for index, label in enumerate(row) if label < 0), len(row))
            target = [int(label + 0.5) for label in row[:end] if int(label + 0.5) != self.blank]
            errors = _edit_distance(target, symbols)
            distance += errors / max(len(target), len(symbols), 1)
            exact += errors == 0 and bool(target)
        return scores.new_tensor([1 - distance / len(spelled), exact / len(spelled)]).reshape(1, 2, 1, 1)


@register("LabelsequenceAccuracy")
class LabelsequenceAccuracy(Layer):
    """Share of sequences that are decoded without an error: (scores (N, T, C), labels (N, L)) → scalar (xmfbit's warpctc-caffe).

    Decoded like CTCGreedyDecoder's; labels equal to blank_label are padding.
    """

    bottoms = (2, 2)
    differentiable_bottoms = ()
    reads_out = True
    drawn_as = "loss"

    def setup(self, scores: Shape, labels: Shape) -> None:
        self.blank = self.settings_of(self.param).blank_label
        if len(scores) != 3 or labels[:1] != scores[:1]:
            raise self.error(
                f"scores of shape {scores} and labels of shape {labels}",
                "they must be (sequences, steps, classes) and (sequences, labels)",
            )
        if not 0 <= self.blank < scores[2]:
            raise self.error(f"blank_label {self.blank}", f"there are {scores[2]} classes (0 to {scores[2] - 1})")

    def top_shapes(self, scores: Shape, labels: Shape) -> list[Shape]:
        return [()]

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        pairs = zip(scores.argmax(2).tolist(), labels.flatten(1).tolist(), strict=True)
        correct = [_symbols(best, self.blank) == [label for label in row if label != self.blank] for best, row in pairs]
        return scores.new_tensor(sum(correct) / len(correct))


@register("SequenceAccuracy", "Sequence_accuracy_param")
class SequenceAccuracy(LabelsequenceAccuracy):
    """LabelsequenceAccuracy under the name of nets that read digit strings (HDSR-with-RNN), whose own layer is not published."""

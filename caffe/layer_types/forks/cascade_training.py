"""Training of MS-CNN's proposals (Cai et al. 2016, zhaoweicai/mscnn): its DetectionLoss, and DetectionAccuracy."""

import math

import numpy as np
import torch
from torch import Tensor

from caffe.engine import mode
from caffe.engine.layer import Layer, Shape, register
from caffe.layer_types.forks.cascades import normalization
from caffe.layer_types.forks.detection import as_array
from caffe.layer_types.forks.yolo import GivenGradient
from caffe.layer_types.loss import FLT_MIN, Loss
from caffe.transforms.boxes import Floats

_LEAST = 4
"""Fewest negatives that are sampled for each class."""


class _OfFields(Layer):
    """Base of layers that compare predictions (N, classes + 4, H, W) with ImageGtData's labels (N, 6, H, W).

    Each position stands for a field of field_w × field_h pixels around its centre. A label is its class (0: background), the true
    box's centre x, y, width, height in pixels, and the field's greatest overlap with a true box.
    """

    bottoms = (2, 2)

    def setup(self, predictions: Shape, labels: Shape) -> None:
        p = self.settings_of(self.param)
        self.require_positive("field_h", "field_w", "downsample_rate", expected="a number of pixels, at least 1")
        if p.field_whr <= 0 or p.field_xyr <= 0:
            raise self.error(f"field_whr {p.field_whr:g} and field_xyr {p.field_xyr:g}", "both must be larger than 0")
        if p.coord_num != 4 or p.cls_num < 2 or (p.objectness and p.cls_num != 2):
            found = f"cls_num {p.cls_num}, coord_num {p.coord_num} and objectness: {str(p.objectness).lower()}"
            raise self.error(found, "at least 2 classes, with objectness just 2, and 4 coordinates")
        self.mean, self.deviation = normalization(self)
        self.ignored = self.param.loss_param.ignore_label if self.param.loss_param.HasField("ignore_label") else None

    def check_shapes(self, predictions: Shape, labels: Shape) -> None:
        """Raise LayerError unless there is a label for each position."""
        self.require_maps(predictions)
        expected = predictions[0], 6, *predictions[2:]
        if predictions[1] != self.settings_of(self.param).cls_num + 4 or labels != expected:
            found = f"predictions of shape {predictions} and labels of shape {labels}"
            raise self.error(found, "cls_num + 4 channels, and 6 of the labels, with the same height and width")

    def classes(self, labels: Tensor) -> Tensor:
        """The classes (N, H, W) that scores are compared with."""
        given = labels[:, 0].long()
        return given.clamp_max(1) if self.settings_of(self.param).objectness else given

    def centres(self, like: Tensor) -> Tensor:
        """Centres of the fields in pixels, (2, H, W): x, y."""
        rows, columns = (torch.arange(extent, device=like.device, dtype=like.dtype) for extent in like.shape[2:])
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        return (torch.stack((x, y)) + 0.5) * self.settings_of(self.param).downsample_rate

    def field(self, like: Tensor) -> Tensor:
        """Width and height of a field, (2, 1, 1)."""
        p = self.settings_of(self.param)
        return torch.tensor([p.field_w, p.field_h]).to(like)[:, None, None]

    def bounds(self) -> tuple[float, float]:
        """How far a centre may move, in sides of the field, and the logarithm of how far a side may grow or shrink."""
        p = self.settings_of(self.param)
        return 1 / p.field_xyr, math.log(p.field_whr)


def column(values: list[float], like: Tensor) -> Tensor:
    """Four values for each coordinate, (4, 1, 1)."""
    return torch.tensor(values).to(like)[:, None, None]


class FieldDetectionLoss(_OfFields, Loss):
    """MS-CNN's DetectionLoss (Cai et al. 2016): (predictions, labels) → (1, 1, 1, 2), L + lambda · R and lambda · R.

    L is the mean cross entropy of the objects and of sampled background, R the mean over the objects' coordinates of smooth L1
    or, with bb_smooth: false, of half the square of prediction - target; targets are relative to the field, in sides, less
    bbox_mean and divided by bbox_std, and predictions are cut to field_xyr and field_whr, which their gradient ignores.
    Background is where the overlap is below bg_threshold: with sample_mode bootstrap those of the greatest scores of each class,
    bg_multiple for each object of the class in the image and at least 4; with random as many for all objects at random, at least
    4 for each class; with mixture half of both; else all. iou_weighted weights objects by their overlap; pos_neg_weighted gives
    objects together 1 / (1 + bg_multiple) of the weight. Source: detection_loss_layer of zhaoweicai/mscnn.
    """

    type = "DetectionLoss"
    settings_field = "detection_loss_param"
    differentiable_bottoms = (0,)

    def top_shapes(self, predictions: Shape, labels: Shape) -> list[Shape]:
        self.check_shapes(predictions, labels)
        return [(1, 1, 1, 2)]

    def batch_dependence(self) -> str:
        return "samples its background and counts objects in its batch"

    def forward(self, predictions: Tensor, labels: Tensor) -> Tensor:
        p = self.param.detection_loss_param
        x, target = predictions.detach(), self.classes(labels)
        objects = labels[:, 0].long() != 0
        free = ~objects & (labels[:, 5] < p.bg_threshold)
        sampled = torch.from_numpy(self.sampled(as_array(x), target.cpu().numpy(), free.cpu().numpy())).to(x.device)
        weights = self.weights(labels, objects, sampled)
        counted = objects | sampled
        if self.ignored is not None:
            counted, objects = counted & (target != self.ignored), objects & (labels[:, 0].long() != self.ignored)
        classes, loss = self.compare_classes(x[:, : p.cls_num], target * counted, weights * counted)
        coordinates, regression = self.compare_coordinates(x[:, p.cls_num :], labels, objects)
        gradient = torch.cat((classes / counted.sum().clamp_min(1), coordinates * getattr(p, "lambda")), 1)
        loss = loss / counted.sum().clamp_min(1)
        regression = regression * getattr(p, "lambda")
        total: Tensor = GivenGradient.apply(predictions, loss + regression, gradient)
        return torch.stack((total, regression)).reshape(1, 1, 1, 2)

    def sampled(self, x: Floats, target: np.ndarray, free: np.ndarray) -> np.ndarray:
        """Which positions (N, H, W) are sampled as background, by predictions, classes and where there is background."""
        p = self.param.detection_loss_param
        if p.sample_mode not in ("random", "bootstrap", "mixture"):
            return free
        chosen = np.zeros((len(x), free[0].size), bool)
        part = p.bg_multiple * (0.5 if p.sample_mode == "mixture" else 1)
        for row, scores, truth, there in zip(chosen, x, target.reshape(len(x), -1), free.reshape(len(x), -1), strict=True):
            if p.sample_mode != "bootstrap":
                count = max(int((truth != 0).sum() * part), _LEAST * (p.cls_num - 1))
                row[mode.generator.integers(len(row), count)] = True
                row &= there
            if p.sample_mode != "random":
                places = np.flatnonzero(there)[::-1]  # of equal scores, the last place is the first
                for number in range(1, p.cls_num):
                    count = max(_LEAST, int((truth == number).sum() * part))
                    order = np.argsort(-scores[number].ravel()[places], kind="stable")
                    row[places[order[:count]]] = True
        return chosen.reshape(free.shape)

    def weights(self, labels: Tensor, objects: Tensor, sampled: Tensor) -> Tensor:
        """Weight of each position (N, H, W)."""
        p = self.param.detection_loss_param
        weights = torch.where(objects, labels[:, 5], 1.0) if p.iou_weighted else torch.ones_like(labels[:, 5])
        positive, negative = weights[objects].sum(), weights[sampled].sum()
        if p.pos_neg_weighted and positive != 0:
            share, count = 1 / (1 + p.bg_multiple), int(objects.sum() + sampled.sum())
            # A negative sum of 0 is that of no negative, which nothing weights.
            others = (1 - share) * count / torch.where(negative == 0, 1.0, negative)
            weights = weights * torch.where(objects, share * count / positive, others)
        return weights

    @staticmethod
    def compare_classes(scores: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient and the sum of the weighted cross entropies."""
        probabilities = scores.softmax(1)
        own = probabilities.gather(1, target[:, None]).clamp_min(FLT_MIN)[:, 0]
        difference = probabilities.scatter_add(1, target[:, None], torch.full_like(own, -1)[:, None])
        return difference * weights[:, None], -(own.log() * weights).sum()

    def compare_coordinates(self, x: Tensor, labels: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient and the mean over coordinates of objects of the regression's loss."""
        field, centres = self.field(x), self.centres(x)
        mean, deviation = column(self.mean, x), column(self.deviation, x)
        wanted = torch.cat(((labels[:, 1:3] - centres) / field, (labels[:, 3:5].clamp_min(2) / field).log()), 1)
        wanted = (wanted - mean) / deviation
        cut = []
        for values, bound, of in zip(x.split(2, 1), self.bounds(), (slice(0, 2), slice(2, 4)), strict=True):
            # The fork normalises the bounds by the two means' mean and the two deviations' geometric mean.
            centre, spread = sum(self.mean[of]) / 2, math.sqrt(math.prod(self.deviation[of]))
            cut.append(values.clamp((-bound - centre) / spread, (bound - centre) / spread))
        difference = torch.where(objects[:, None], torch.cat(cut, 1) - wanted, 0.0)
        count = (4 * objects.sum()).clamp_min(1)
        if not self.param.detection_loss_param.bb_smooth:
            return difference / count, difference.square().sum() / (2 * count)
        terms = torch.where(difference.abs() < 1, difference.square() / 2, difference.abs() - 0.5)
        return difference.clamp(-1, 1) / count, terms.sum() / count


@register("DetectionAccuracy")
class DetectionAccuracy(_OfFields):
    """How well MS-CNN's fields detect: (predictions, labels) → (1, 1, 1, 2) accuracy, of all and of objects[, mean overlap].

    Accuracy is the share of positions whose class is among the top_k scores; background that overlaps an object by bg_threshold
    is left out. The overlap is that of the predicted and the true boxes of the objects, a top of (1, 1, 1, 1). -1 stands for a
    mean over nothing. Source: detection_accuracy_layer of zhaoweicai/mscnn.
    """

    tops = (1, 2)
    differentiable_bottoms = ()
    reads_out = True

    def setup(self, predictions: Shape, labels: Shape) -> None:
        super().setup(predictions, labels)
        p = self.param.detection_accuracy_param
        if not 1 <= p.top_k <= p.cls_num:
            raise self.error(f"top_k {p.top_k}", f"there are {p.cls_num} classes")

    def top_shapes(self, predictions: Shape, labels: Shape) -> list[Shape]:
        self.check_shapes(predictions, labels)
        shapes: list[Shape] = [(1, 1, 1, 2), (1, 1, 1, 1)]
        return shapes[: len(self.param.top)]

    def forward(self, predictions: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        p = self.param.detection_accuracy_param
        target = self.classes(labels)
        counted = (target != 0) | (labels[:, 5] < p.bg_threshold)
        objects = labels[:, 0].long() != 0
        if self.ignored is not None:
            counted, objects = counted & (target != self.ignored), objects & (labels[:, 0].long() != self.ignored)
        best = predictions[:, : p.cls_num].topk(p.top_k, 1).indices
        right = (best == target[:, None]).any(1)
        of_all, of_objects = (_mean(right[chosen].to(predictions)) for chosen in (counted, counted & (target != 0)))
        overlap = _mean(self.overlaps(predictions[:, p.cls_num :], labels)[objects])
        tops = torch.stack((of_all, of_objects)).reshape(1, 1, 1, 2), overlap.reshape(1, 1, 1, 1)
        return tops[: len(self.param.top)]

    def overlaps(self, x: Tensor, labels: Tensor) -> Tensor:
        """Overlap (N, H, W) of the predicted box of each position with its true box."""
        shift, growth = (x * column(self.deviation, x) + column(self.mean, x)).split(2, 1)
        far, large = self.bounds()
        centre = shift.clamp(-far, far) * self.field(x) + self.centres(x)
        sides = self.field(x) * growth.clamp(-large, large).exp()
        true_centre, true_sides = labels[:, 1:3], labels[:, 3:5]
        inner = torch.minimum(centre + sides / 2, true_centre + true_sides / 2)
        common = (inner - torch.maximum(centre - sides / 2, true_centre - true_sides / 2)).clamp_min(0).prod(1)
        union = sides.prod(1) + true_sides.prod(1) - common
        return torch.where((true_sides > 0).all(1), common / union, 0.0)


def _mean(values: Tensor) -> Tensor:
    return values.mean() if values.numel() else values.new_full((), -1.0)

"""YOLO of one box size for each cell (Redmon et al. 2016): DetectionLoss, EvalDetection, as of yeahkun/caffe-yolo.

For the S · S cells of an image, predictions (C + 5 · B) · S² are class probabilities, confidences of B boxes, and x, y, w, h of
each. True boxes 7 · S² are, for each cell, whether a box is difficult, whether there is one, its class; then x, y, w, h of each
cell, in fractions of the image, x and y of the centre.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from caffe.engine.layer import Layer, LayerClass, Shape, register
from caffe.layer_types.forks.cascade_training import FieldDetectionLoss
from caffe.layer_types.forks.detection import as_array
from caffe.layer_types.forks.yolo import GivenGradient, one_hot
from caffe.layer_types.forks.yolo_boxes import Boxes, overlaps
from caffe.layer_types.loss import Loss
from caffe.layer_types.utility import out_of_range
from caffe.proto import caffe_pb2
from caffe.transforms import boxes


class Cells(NamedTuple):
    """What is predicted for each cell: classes (N, S², C), confidences (N, S², B), x, y, w, h (N, S², B, 4)."""

    classes: Tensor
    confidences: Tensor
    coordinates: Tensor


class TrueCells(NamedTuple):
    """What there is in each cell: whether a box is difficult, whether there is one, its class, all (N, S²), and it (N, S², 4)."""

    difficult: Tensor
    occupied: Tensor
    labels: Tensor
    coordinates: Tensor


class _OfCells(Layer):
    """Base of both."""

    bottoms = (2, 2)

    def setup(self, predictions: Shape, truths: Shape) -> None:
        p = self.settings_of(self.param)
        if min(p.side, p.num_class, p.num_object) < 1:
            raise self.error(f"side {p.side}, num_class {p.num_class} and num_object {p.num_object}", "all must be at least 1")

    def top_shapes(self, *shapes: Shape) -> list[Shape]:
        predictions, truths = shapes
        p = self.settings_of(self.param)
        values = p.side**2 * (p.num_class + 5 * p.num_object)
        if not predictions or not truths or predictions[0] != truths[0]:
            raise self.error(f"bottoms of shapes {predictions} and {truths}", "they must be of the same images")
        for what, shape, count in (("predictions", predictions, values), ("values of true boxes", truths, 7 * p.side**2)):
            if math.prod(shape[1:]) != count:
                cells = f"{p.side} · {p.side} cells of {p.num_object} boxes and {p.num_class} classes"
                raise self.error(f"{math.prod(shape[1:])} {what} for each image", f"{cells} need {count}")
        return [()]

    def predicted(self, x: Tensor) -> Cells:
        p = self.settings_of(self.param)
        parts = x.detach().reshape(len(x), -1, p.side**2).transpose(1, 2).split((p.num_class, p.num_object, 4 * p.num_object), 2)
        return Cells(parts[0], parts[1], parts[2].unflatten(2, (p.num_object, 4)))

    def true(self, x: Tensor) -> TrueCells:
        """The true boxes; raises LayerError if a class is none."""
        p = self.settings_of(self.param)
        cells = p.side**2
        values = x.detach().reshape(len(x), -1)
        difficult, occupied, labels = values[:, : 3 * cells].reshape(-1, 3, cells).unbind(1)
        if (label := out_of_range(labels[occupied != 0].long(), p.num_class)) is not None:
            raise self.error(f"class {label} of a true box", f"there are {p.num_class} classes (0 to {p.num_class - 1})")
        return TrueCells(difficult == 1, occupied != 0, labels.long(), values[:, 3 * cells :].reshape(-1, cells, 4))

    def boxes(self, cells: Cells) -> Boxes:
        """The predicted boxes in fractions of the image, (N, S², B)."""
        p = self.settings_of(self.param)
        centre, sides = cells.coordinates.split(2, -1)
        if p.constriant:
            centre = (self.corners(centre) + centre) / p.side
        return Boxes(centre, sides.square() if p.sqrt else sides)

    def corners(self, like: Tensor) -> Tensor:
        """Column and row of each cell, (S², 1, 2)."""
        numbers = torch.arange(self.settings_of(self.param).side)
        return torch.stack(torch.meshgrid(numbers, numbers, indexing="xy"), -1).reshape(-1, 1, 2).to(like)


@register("DetectionLoss")
class DetectionLoss(_OfCells, Loss):
    """YOLO's loss, with cls_num MS-CNN's: (predictions (N, (C + 5 · B) · S²), true boxes (N, 7 · S²)) → scalar.

    The weighted squared differences of classes, of the confidence from 1 and of the coordinates, of the box of each occupied cell
    that overlaps the true one most, or else is the nearest, are divided by the number of such cells, and those of all other
    confidences from 0 by their number. The gradients are the weighted differences divided by N, and the confidence's is that from
    the overlap. As detection_loss_layer.cpp; where no cell is occupied, the fork's loss is NaN.
    """

    differentiable_bottoms = (0,)

    @classmethod
    def implementation(cls, param: caffe_pb2.LayerParameter, where: str) -> LayerClass:
        return FieldDetectionLoss if param.detection_loss_param.HasField("cls_num") else cls

    def batch_dependence(self) -> str:
        return ""

    def forward(self, x: Tensor, truths: Tensor) -> Tensor:
        p = self.param.detection_loss_param
        cells, true = self.predicted(x), self.true(truths)
        candidates = self.boxes(cells)
        target = Boxes(*true.coordinates[:, :, None].split(2, -1))
        iou = overlaps(candidates, target).nan_to_num(0.0)
        distance = torch.cat((candidates.centre - target.centre, candidates.sides - target.sides), -1).square().sum(-1).sqrt()
        greatest, best = iou.max(2)
        # Farther than 20, the fork takes the first box.
        nearest = torch.where(distance < 20, distance, math.inf).argmin(2)
        best = torch.where(greatest > 0, best, nearest)
        chosen = one_hot(best, cells.confidences).bool() & true.occupied[..., None]
        occupied = true.occupied[..., None]

        classes = one_hot(true.labels, cells.classes)
        of_classes = p.class_scale * torch.where(occupied, cells.classes - classes, 0.0)
        centre, sides = target.centre, target.sides
        if p.constriant:
            centre = centre * p.side - self.corners(x)
        wanted = torch.cat((centre, sides.sqrt() if p.sqrt else sides), -1)
        of_boxes = p.coord_scale * torch.where(chosen[..., None], cells.coordinates - wanted, 0.0)
        of_objects = p.object_scale * (cells.confidences - greatest[..., None])
        of_confidences = torch.where(chosen, of_objects, p.noobject_scale * cells.confidences)

        count = true.occupied.sum()
        loss = torch.where(chosen, p.object_scale * (cells.confidences - 1).square(), 0.0).sum()
        for weight, difference in ((p.class_scale, of_classes), (p.coord_scale, of_boxes)):
            loss = loss + (difference.square().sum() / weight if weight else 0)
        empty = torch.where(chosen, 0.0, p.noobject_scale * cells.confidences.square()).sum()
        loss = loss / count.clamp_min(1) + empty / (chosen.numel() - count).clamp_min(1)
        gradient = torch.cat((of_classes, of_confidences, of_boxes.flatten(2)), 2).transpose(1, 2)
        result: Tensor = GivenGradient.apply(x, loss, gradient.reshape(x.shape) / len(x))
        return result


@register("EvalDetection")
class EvalDetection(_OfCells):
    """Match detections to true boxes: (predictions (N, (C + 5 · B) · S²), true boxes (N, 7 · S²)) → (N, C + 4 · B · S²).

    For each image, the number of true boxes of each class that are not difficult; then of each detection, by class, best first,
    class, score, 1 if it is a true positive, 1 if a false positive; 0 for those that `nms` left out. A true positive overlaps a
    true box of its class by `threshold` or more, the first time; a detection of a difficult box is neither. As
    eval_detection_layer.cpp. No gradient.
    """

    differentiable_bottoms = ()

    def top_shapes(self, *shapes: Shape) -> list[Shape]:
        p = self.param.eval_detection_param
        super().top_shapes(*shapes)
        return [(shapes[0][0], p.num_class + 4 * p.num_object * p.side**2)]

    def forward(self, x: Tensor, truths: Tensor) -> Tensor:
        p = self.param.eval_detection_param
        cells, true = self.predicted(x), self.true(truths)
        chance, labels = cells.classes.max(2, keepdim=True)
        scores = {p.OBJ: cells.confidences, p.PROB: chance.expand_as(cells.confidences)}.get(
            p.score_type, cells.confidences * chance
        )
        found = self.boxes(cells)
        top = np.zeros(self.top_shapes(tuple(x.shape), tuple(truths.shape))[0], np.float32)
        for image in range(len(x)):
            there = true.occupied[image]
            known = as_array(true.coordinates[image, there])
            known_labels, difficult = as_array(true.labels[image, there]), as_array(true.difficult[image, there]) != 0
            counts = np.bincount(known_labels[~difficult].astype(int), minlength=p.num_class)
            own = np.concatenate((as_array(found.centre[image]), as_array(found.sides[image])), -1).reshape(-1, 4)
            label = as_array(labels[image].expand(-1, p.num_object)).ravel()
            rows = self.evaluate(own, label, as_array(scores[image]).ravel(), (known, known_labels, difficult))
            top[image, : p.num_class + rows.size] = np.concatenate((counts, rows.ravel()))
        return torch.from_numpy(top).to(x)

    def evaluate(
        self, own: np.ndarray, labels: np.ndarray, scores: np.ndarray, truths: tuple[np.ndarray, np.ndarray, np.ndarray]
    ) -> np.ndarray:
        """Rows of class, score, true positive, false positive (detections, 4), from boxes by centre and sides."""
        p = self.param.eval_detection_param
        own, known = (
            np.concatenate((each[:, :2] - each[:, 2:] / 2, each[:, :2] + each[:, 2:] / 2), 1) for each in (own, truths[0])
        )
        order = np.argsort(-scores, kind="stable")
        if p.nms >= 0:
            order = order[boxes.suppress(own[order], float(np.nextafter(np.float32(p.nms), np.float32(-1))))]
        order = order[np.argsort(labels[order], kind="stable")]
        rows = np.stack((labels[order], scores[order], np.zeros(len(order)), np.ones(len(order))), 1).astype(np.float32)
        table = np.where(labels[order][:, None] == truths[1], boxes.overlaps(own[order], known), -1)
        seen: set[int] = set()
        for row, overlap in enumerate(table):
            if not len(overlap) or overlap.max() < max(np.float32(p.threshold), 0):
                continue
            nearest = int(overlap.argmax())
            if truths[2][nearest]:
                rows[row, 3] = 0
            elif nearest not in seen:
                rows[row, 2:] = 1, 0
                seen.add(nearest)
        return rows

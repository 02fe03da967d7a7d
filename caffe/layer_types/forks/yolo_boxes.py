"""Boxes of YOLO, by centre and sides, and their overlaps, as of eric612/MobileNet-YOLO (yolov3_layer.cpp, bbox_util.cpp)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from caffe.proto import caffe_pb2

IOU = caffe_pb2.Yolov3Parameter


@dataclass(frozen=True)
class Boxes:
    """Centres and sides of boxes, both (…, 2), horizontal and vertical, in fractions of the image."""

    centre: Tensor
    sides: Tensor

    def at(self, index: Any) -> "Boxes":
        return Boxes(self.centre[index], self.sides[index])


def at_origin(sides: Tensor) -> Boxes:
    """Boxes of these sides (…, 2) around one centre."""
    return Boxes(torch.zeros_like(sides), sides)


def inner(first: Boxes, second: Boxes) -> Tensor:
    """Signed sides of the intersection, (…, 2)."""
    high = torch.minimum(first.centre + first.sides / 2, second.centre + second.sides / 2)
    return high - torch.maximum(first.centre - first.sides / 2, second.centre - second.sides / 2)


def outer(first: Boxes, second: Boxes) -> Tensor:
    """Sides of the smallest box around both, (…, 2)."""
    high = torch.maximum(first.centre + first.sides / 2, second.centre + second.sides / 2)
    return high - torch.minimum(first.centre - first.sides / 2, second.centre - second.sides / 2)


def _shape_difference(first: Boxes, second: Boxes) -> tuple[Tensor, Tensor]:
    """CIoU's v = 4 / π² (atan of the aspect ratios' difference)², and that difference."""
    difference = torch.atan(second.sides[..., 0] / second.sides[..., 1]) - torch.atan(first.sides[..., 0] / first.sides[..., 1])
    return 4 / math.pi**2 * difference.square(), difference


def overlaps(first: Boxes, second: Boxes, kind: int = IOU.MSE) -> Tensor:
    """Intersection over union, or its generalisation GIoU (Rezatofighi et al. 2019), DIoU or CIoU (Zheng et al. 2020).

    As MobileNet-YOLO has it, DIoU's penalty is raised to the power 0.6.
    """
    common = inner(first, second).clamp_min(0).prod(-1)
    union = first.sides.prod(-1) + second.sides.prod(-1) - common
    iou = common / union
    if kind in (IOU.IOU, IOU.MSE):
        return iou
    around = outer(first, second)
    if kind == IOU.GIOU:
        return iou - (around.prod(-1) - union) / around.prod(-1)
    penalty = (first.centre - second.centre).square().sum(-1) / around.square().sum(-1)
    if kind == IOU.DIOU:
        return iou - penalty**0.6
    shape, _ = _shape_difference(first, second)
    return iou - penalty - shape * shape / (1 - iou + shape + 1e-6)


def overlap_gradients(box: Boxes, truth: Boxes, kind: int) -> Tensor:
    """Gradients of `overlaps` with respect to centre and sides of `box`, (G, 4), as MobileNet-YOLO computes them.

    They are not the derivatives: the sides' are twice as large, DIoU's penalty has the other sign where it moves the box around
    both, and CIoU's shape term is not divided by the squared diagonal. The intersection of distant boxes is the product of its
    signed sides.
    """
    low, high = box.centre - box.sides / 2, box.centre + box.sides / 2
    true_low, true_high = truth.centre - truth.sides / 2, truth.centre + truth.sides / 2
    sides, around = inner(box, truth), outer(box, truth)
    common = sides.prod(-1, keepdim=True)
    union = box.sides.prod(-1, keepdim=True) + truth.sides.prod(-1, keepdim=True) - common

    def ends(of: Tensor, low_counts: Tensor, high_counts: Tensor) -> Tensor:
        """Derivatives of the product of the sides `of` with respect to the low and high ends of `box`, (2, G, 2)."""
        across = of.flip(-1)
        return torch.stack((-across * low_counts, across * high_counts))

    of_common = ends(sides, low > true_low, high < true_high)
    of_union = ends(box.sides, torch.ones_like(low), torch.ones_like(low)) - of_common
    gradient = torch.where(union > 0, (union * of_common - common * of_union) / union**2, 0.0)
    apart = (sides <= 0).any(-1, keepdim=True)
    if kind == IOU.GIOU:
        whole = around.prod(-1, keepdim=True)
        of_whole = ends(around, low < true_low, high > true_high)
        gradient = torch.where(apart, 0.0, gradient) + (whole * of_union - union * of_whole) / whole**2
    towards = torch.cat((gradient.sum(0), gradient[1] - gradient[0]), -1)
    if kind not in (IOU.DIOU, IOU.CIOU):
        return towards
    diagonal = around.square().sum(-1, keepdim=True)
    apart_by = truth.centre - box.centre
    distance = apart_by.square().sum(-1, keepdim=True)
    of_centre = 2 * around * ((high > true_high).to(low.dtype) - (low < true_low).to(low.dtype))
    of_sides = around * ((high > true_high).to(low.dtype) + (low < true_low).to(low.dtype))
    penalty = torch.cat((2 * apart_by * diagonal - of_centre * distance, of_sides * distance), -1) / diagonal**2
    if kind == IOU.CIOU:
        shape, difference = _shape_difference(box, truth)
        weight = shape / (1 - (common / union)[:, 0] + shape + 1e-6) * (8 / math.pi**2) * difference
        penalty = penalty + torch.cat(
            (torch.zeros_like(low), weight[:, None] * box.sides.flip(-1) * torch.tensor([1.0, -1.0]).to(box.sides)), -1
        )
    return torch.where(apart, 0.0, towards) + penalty

"""YOLOv2's loss (Redmon and Farhadi 2017), and what YOLOv3's shares with it: RegionLoss, as of eric612/MobileNet-YOLO.

A prediction is x, y, w, h, confidence and class scores. True boxes are rows of class, x, y, width, height in fractions of the
image, x and y of the centre; the first row of zeros ends an image's.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from caffe.engine.layer import Shape, register
from caffe.layer_types.forks.yolo_boxes import IOU, Boxes, at_origin, overlaps
from caffe.layer_types.loss import Loss
from caffe.layer_types.utility import out_of_range


class GivenGradient(torch.autograd.Function):
    """A loss with the gradient that a layer computed beside it, where that is not the loss's derivative."""

    @staticmethod
    def forward(ctx: Any, predictions: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.saved_tensors[0] * gradient, None, None


@dataclass(frozen=True)
class Grid:
    """The predictions of a batch, one for each anchor at each cell of each image, in the order (N, anchors, H, W).

    raw    what the net computed, (predictions, 5 + classes)
    boxes  the predicted boxes
    shape  (N, anchors, H, W)
    """

    raw: Tensor
    boxes: Boxes
    shape: Shape

    @property
    def cells(self) -> int:
        """Number of cells of an image: from the prediction of an anchor to that of the next."""
        return self.shape[2] * self.shape[3]


@dataclass(frozen=True)
class Truths:
    """True boxes of a batch: class (G,), boxes (G,), column and row of their cell (G, 2), prediction of its first anchor (G,)."""

    labels: Tensor
    boxes: Boxes
    cells: Tensor
    places: Tensor

    def at(self, index: Tensor) -> "Truths":
        return Truths(self.labels[index], self.boxes.at(index), self.cells[index], self.places[index])

    def targets(self, shape: Shape, anchors: Tensor) -> Tensor:
        """What the predictions of the boxes are to be, (G, 4): place within the cell, logarithm of the sides by the anchor's.

        anchors  in fractions of the image, (G, 2)
        """
        extents = torch.tensor([shape[3], shape[2]]).to(self.cells)
        return torch.cat((self.boxes.centre * extents - self.cells, (self.boxes.sides / anchors).log()), -1)


def one_hot(labels: Tensor, scores: Tensor) -> Tensor:
    """1 for the class of each label (…), 0 for others, (…, classes), in the dtype of `scores` (…, classes)."""
    return (labels[..., None] == torch.arange(scores.shape[-1], device=labels.device)).to(scores.dtype)


def last_of(places: Tensor, count: int) -> Tensor:
    """Which elements of `places` (G,), numbers below `count`, are the last of their number; (G,)."""
    order = torch.arange(len(places), device=places.device)
    return order == order.new_zeros(count).scatter_reduce(0, places, order, "amax")[places]


class _Yolo(Loss):
    """Base of RegionLoss and Yolov3: predictions (N, anchors · (5 + classes), H, W), true boxes (N, …) → scalar."""

    bottoms = (2, 2)
    differentiable_bottoms = (0,)
    anchors: list[tuple[float, float]]
    """Width and height of all anchors, in units of which `extent` is the image's size."""

    def check_anchors(self, shape: Shape) -> None:
        """Set `anchors`; raises LayerError unless they and the predictions' shape fit."""
        p = self.settings_of(self.param)
        self.require_maps(shape)
        if p.num_class < 1 or p.num < 1:
            raise self.error(f"num_class {p.num_class} and num {p.num}", "both must be at least 1")
        if shape[1] != p.num * (5 + p.num_class):
            found = f"{shape[1]} channels"
            raise self.error(found, f"{p.num} anchors of {p.num_class} classes need {p.num} · (5 + {p.num_class})")
        if len(p.biases) % 2 or min(p.biases, default=1) <= 0:
            raise self.error(f"biases {list(p.biases)}", "width and height of each anchor, larger than 0")
        self.anchors = list(zip(p.biases[::2], p.biases[1::2], strict=True))

    def top_shapes(self, shape: Shape, truths: Shape) -> list[Shape]:
        if not truths or truths[0] != shape[0] or math.prod(truths[1:]) % 5:
            raise self.error(f"true boxes of shape {truths}", f"rows of 5 values for each of the {shape[0]} images")
        return [()]

    def grid(self, x: Tensor, anchors: list[tuple[float, float]], extent: tuple[float, float]) -> Grid:
        """The predictions; centres are relative to their cell after a sigmoid, sides are the anchors' times an exponential.

        extent  width and height of the image, in the anchors' units
        """
        images, _, height, width = x.shape
        count = len(anchors)
        raw = x.detach().reshape(images, count, -1, height, width).permute(0, 1, 3, 4, 2)
        cells = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), -1).to(x)
        centre = (cells + raw[..., :2].sigmoid()) / torch.tensor([width, height]).to(x)
        sides = raw[..., 2:4].exp() * (torch.tensor(anchors).to(x)[:, None, None] / torch.tensor(extent).to(x))
        boxes = Boxes(centre.reshape(-1, 2), sides.reshape(-1, 2))
        return Grid(raw.reshape(-1, raw.shape[-1]), boxes, (images, count, height, width))

    def rows(self, truths: Tensor) -> Tensor:
        """The rows of true boxes, (N, boxes, 5), up to the longest of the batch; (N, 0, 5) without any."""
        rows = truths.detach().reshape(len(truths), -1, 5)
        most = int((rows[..., 1:] != 0).any(-1).sum(1).max()) if rows.numel() else 0
        return rows[:, :most]

    def best_overlaps(self, grid: Grid, rows: Tensor, kind: int) -> Tensor:
        """The greatest overlap of each prediction with a true box of its image, at least 0; (predictions,)."""
        images = grid.shape[0]
        boxes = Boxes(grid.boxes.centre.reshape(images, -1, 1, 2), grid.boxes.sides.reshape(images, -1, 1, 2))
        known = (rows[..., 1] != 0).long().cumprod(1).bool()
        best = torch.zeros_like(grid.raw[:, 0]).view(images, -1)
        if not rows.shape[1]:
            return best.view(-1)
        # Image by image, as the table of all predictions and boxes of a batch may be large.
        for image in range(images):
            table = overlaps(boxes.at(image), Boxes(rows[image, :, 1:3], rows[image, :, 3:5]), kind)
            best[image] = torch.where(known[image], table, 0.0).nan_to_num(0.0).amax(1).clamp_min(0)
        return best.view(-1)

    def truths(self, rows: Tensor, shape: Shape) -> Truths:
        """The true boxes to be learned, and their cells; raises LayerError if a class or a box is none."""
        classes = self.settings_of(self.param).num_class
        images, places = (rows[..., 3] != 0).long().cumprod(1).nonzero(as_tuple=True)
        chosen = rows[images, places]
        labels = chosen[:, 0].long()
        if (label := out_of_range(labels, classes)) is not None:
            raise self.error(f"class {label} of a true box", f"there are {classes} classes (0 to {classes - 1})")
        boxes = Boxes(chosen[:, 1:3], chosen[:, 3:5])
        if not bool(((boxes.centre >= 0) & (boxes.centre < 1) & (boxes.sides > 0)).all()):
            raise self.error(
                "a true box whose centre is outside the image, or without width or height",
                "rows of class, x, y, width, height in fractions of the image",
            )
        _, anchors, height, width = shape
        cells = (boxes.centre * torch.tensor([width, height]).to(boxes.centre)).long()
        return Truths(labels, boxes, cells, (images * anchors * height + cells[:, 1]) * width + cells[:, 0])

    @staticmethod
    def finish(x: Tensor, loss: Tensor, delta: Tensor, shape: Shape) -> Tensor:
        """The loss with its gradients `delta` (predictions, 5 + classes), both divided by the number of images."""
        images, anchors, height, width = shape
        gradient = delta.view(images, anchors, height, width, -1).permute(0, 1, 4, 2, 3).reshape(x.shape)
        result: Tensor = GivenGradient.apply(x, loss / images, gradient / images)
        return result


@register("RegionLoss")
class RegionLoss(_Yolo):
    """YOLOv2's loss: (predictions (N, num · (5 + classes), H, W), true boxes (N, …)) → scalar.

    Differences between predictions and targets are weighted, squared and summed: of the confidence of all predictions that
    overlap no true box by more than `thresh` (noobject_scale); of box, confidence and classes of the anchor that fits a true box
    best in its cell (coord_scale, object_scale, class_scale). Those of a centre and a confidence are multiplied by the
    derivative of the sigmoid, and the differences are the gradients. Both are divided by N. As region_loss_layer.cpp of
    eric612/MobileNet-YOLO; biases are the anchors' widths and heights in cells.
    """

    def setup(self, shape: Shape, truths: Shape) -> None:
        p = self.param.region_loss_param
        if p.softmax_tree:
            raise self.error(f'softmax_tree "{p.softmax_tree}"', "class hierarchies are not supported", "leave it out")
        if p.coords != 4:
            raise self.error(f"coords {p.coords}", "a box has 4")
        self.check_anchors(shape)
        if len(self.anchors) != p.num:
            raise self.error(f"{len(p.biases)} biases", f"{p.num} anchors need {2 * p.num}")

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        p = self.param.region_loss_param
        size = (float(x.shape[3]), float(x.shape[2]))
        grid = self.grid(x, self.anchors, size)
        rows = self.rows(labels)
        truths = self.truths(rows, grid.shape)
        confidence, classes = grid.raw[:, 4].sigmoid(), grid.raw[:, 5:].softmax(1)
        slope = confidence * (1 - confidence)
        delta = torch.zeros_like(grid.raw)
        background = self.best_overlaps(grid, rows, IOU.MSE) <= p.thresh
        delta[:, 4] = torch.where(background, p.noobject_scale * confidence * slope, 0.0)

        anchors = torch.tensor(self.anchors).to(x) / torch.tensor(size).to(x)
        if p.bias_match:
            candidates = anchors.expand(len(truths.labels), -1, -1)
        else:
            every = torch.arange(len(anchors), device=x.device) * grid.cells
            candidates = grid.boxes.sides[truths.places[:, None] + every]
        fits = overlaps(at_origin(candidates), at_origin(truths.boxes.sides[:, None])).nan_to_num(0.0)
        best = fits.argmax(1)
        places = truths.places + best * grid.cells
        # A later true box of the same prediction replaces an earlier one.
        kept = last_of(places, len(grid.raw))
        places, truths, best = places[kept], truths.at(kept), best[kept]

        iou = overlaps(grid.boxes.at(places), truths.boxes)
        weight = torch.full_like(iou, p.coord_scale) * (1 if p.rescore else 2 - truths.boxes.sides.prod(1))
        predicted = torch.cat((grid.raw[places, :2].sigmoid(), grid.raw[places, 2:4]), 1)
        box = weight[:, None] * (predicted - truths.targets(grid.shape, anchors[best]))
        box[:, :2] *= predicted[:, :2] * (1 - predicted[:, :2])
        objectness = p.object_scale * (confidence[places] - (iou if p.rescore else 1)) * slope[places]
        target = one_hot(truths.labels, classes)
        delta[places] = torch.cat((box, objectness[:, None], p.class_scale * (classes[places] - target)), 1)
        return self.finish(x, delta.square().sum(), delta, grid.shape)

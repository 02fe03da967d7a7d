"""Losses of YOLOv2 and YOLOv3 (Redmon and Farhadi 2017, 2018): RegionLoss, Yolov3, as of eric612's MobileNet-YOLO.

A prediction is x, y, w, h, confidence and class scores. True boxes are rows of class, x, y, width, height in fractions of the
image, x and y of the centre; the first row of zeros ends an image's.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from caffe.engine.layer import Shape, register
from caffe.layer_types.forks.yolo_boxes import IOU, Boxes, at_origin, overlap_gradients, overlaps
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
    """Base of both: predictions (N, anchors · (5 + classes), H, W), true boxes (N, …) → scalar; gradients are given beside it."""

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


@register("Yolov3")
class Yolov3(_Yolo):
    """YOLOv3's loss for one of its maps: (predictions (N, num · (5 + classes), H, W), true boxes (N, …)) → scalar.

    Differences between predictions and targets are the gradients; their squares are summed: of the confidence of all
    predictions that overlap no true box by more than `thresh`, and of box (coord_scale · (2 - its area)), confidence and classes
    (class_scale) of the anchor that fits a true box best, and of those that fit it by more than iou_thresh, as far as `mask` has
    them. With another iou_loss than MSE, iou_normalizer times the mean of 1 - overlap is added instead of the boxes', and its
    gradients are at most max_delta. Both are divided by N. As yolov3_layer.cpp of eric612/MobileNet-YOLO; biases are the anchors'
    widths and heights in pixels of the net's input, which has anchors_scale for each cell.
    """

    def setup(self, shape: Shape, truths: Shape) -> None:
        p = self.param.yolov3_param
        self.check_anchors(shape)
        if len(p.mask) != p.num or max(p.mask, default=0) >= len(self.anchors):
            raise self.error(
                f"mask {list(p.mask)} with {len(self.anchors)} anchors", f"{p.num} indices of anchors, as num says, are needed"
            )
        if p.anchors_scale < 1:
            raise self.error("anchors_scale 0", "it must be at least 1 pixel")
        # Where each anchor is in this map, or -1.
        self.positions = [list(p.mask).index(anchor) if anchor in p.mask else -1 for anchor in range(len(self.anchors))]

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        p = self.param.yolov3_param
        kind, size = p.iou_loss, (float(x.shape[3] * p.anchors_scale), float(x.shape[2] * p.anchors_scale))
        grid = self.grid(x, [self.anchors[index] for index in p.mask], size)
        rows = self.rows(labels)
        confidence, classes = grid.raw[:, 4].sigmoid(), grid.raw[:, 5:].sigmoid()
        delta = torch.zeros_like(grid.raw)
        delta[:, 4] = torch.where(self.best_overlaps(grid, rows, kind) <= p.thresh, confidence, 0.0)
        truths, own = self.assigned(
            self.truths(rows, grid.shape), torch.tensor(self.anchors).to(x) / torch.tensor(size).to(x), grid.cells
        )
        box, places = grid.boxes.at(truths.places), truths.places
        delta[places, 4] = (confidence[places] - 1) * (p.object_scale if p.use_logic_gradient else 1)
        self.learn_classes(delta, truths, classes)
        kept = last_of(places, len(delta))
        activated = torch.cat((grid.raw[:, :2].sigmoid(), grid.raw[:, 2:4], confidence[:, None], classes), 1)
        if kind == IOU.MSE:
            weight = p.coord_scale * (2 - truths.boxes.sides.prod(1, keepdim=True))
            difference = weight * (activated[places, :4] - truths.targets(grid.shape, own))
            delta[places[kept], :4] = difference[kept]
            loss = delta.square().sum()
        else:
            towards = self.towards(box, truths.boxes, grid.raw[places, 2:4])
            if p.accumulate:
                columns = torch.arange(4, device=x.device)
                delta = delta.index_put((places[:, None], columns), -towards, accumulate=True)
            else:
                delta[places[kept], :4] = -towards[kept]
            loss = delta[:, 4:].square().sum()
            if len(places):
                overlap = overlaps(box, truths.boxes, IOU.DIOU if kind == IOU.IOU else kind)
                loss = loss + p.iou_normalizer * (1 - overlap).mean()
            # The fork has the centres before the sigmoid here.
            activated[:, :2] = grid.raw[:, :2]
        if p.use_logic_gradient:
            slope = activated * (1 - activated)
            slope[:, 2:4] = 1
            delta = delta * slope
        return self.finish(x, loss, delta, grid.shape)

    def assigned(self, truths: Truths, anchors: Tensor, cells: int) -> tuple[Truths, Tensor]:
        """Each true box for each anchor of this map that learns it, `places` being its predictions; and those anchors (G, 2)."""
        p = self.param.yolov3_param
        positions = torch.tensor(self.positions).to(truths.places)
        every = torch.arange(len(anchors), device=anchors.device)
        fits = overlaps(at_origin(anchors), at_origin(truths.boxes.sides[:, None]), p.iou_loss)
        greatest, best = fits.max(1)
        best = torch.where(greatest > 0, best, -1)
        first = torch.where(best >= 0, positions[best], -1)
        # The fork compares the other anchors' indices with the best one's position in `mask`, if it is there: such an anchor
        # may learn the same box twice, which counts if boxes' gradients are accumulated.
        excluded = torch.where(first >= 0, first, best)
        more = (fits > p.iou_thresh) & (every != excluded[:, None]) & (p.iou_thresh < 1)
        table = torch.cat((first[:, None], torch.where(more, positions, -1)), 1)
        anchor_of = torch.cat((best[:, None], every.expand(len(best), -1)), 1)
        boxes, slots = (table >= 0).nonzero(as_tuple=True)
        chosen = truths.at(boxes)
        places = chosen.places + table[boxes, slots] * cells
        return replace(chosen, places=places), anchors[anchor_of[boxes, slots]]

    def learn_classes(self, delta: Tensor, truths: Truths, classes: Tensor) -> None:
        """Write the classes' differences: all classes for the first true box of a prediction, its class for each further one."""
        p = self.param.yolov3_param
        first = last_of(truths.places.flip(0), len(delta)).flip(0)
        places, labels = truths.places[first], truths.labels[first]
        target = one_hot(labels, classes)
        if p.use_focal_loss:
            chance = classes[places, labels][:, None] + 1e-15
            focus = -0.5 * (1 - chance) * (2 * chance * chance.log() + chance - 1)
            delta[places, 5:] = p.class_scale * (classes[places] - target) * focus
        else:
            smooth = target * (1 - p.label_smooth_eps) + 0.5 * p.label_smooth_eps
            delta[places, 5:] = p.class_scale * (classes[places] - smooth)
        places, labels = truths.places[~first], truths.labels[~first]
        delta[places, 5 + labels] = p.class_scale * (classes[places, labels] - (1 - 0.5 * p.label_smooth_eps))

    def towards(self, box: Boxes, truth: Boxes, growth: Tensor) -> Tensor:
        """The steps that boxes take towards their true boxes, (G, 4); `growth` is the logarithm of sides by anchors, (G, 2)."""
        p = self.param.yolov3_param
        box = Boxes(box.centre, torch.where(box.sides == 0, 1.0, box.sides))
        steps = overlap_gradients(box, truth, p.iou_loss) * torch.cat((torch.ones_like(growth), growth.exp()), 1)
        steps = steps * p.iou_normalizer
        return torch.where(steps.isfinite(), steps, 0.0).clamp(-p.max_delta, p.max_delta)

"""YOLOv3's loss (Redmon and Farhadi 2018): Yolov3, as of eric612/MobileNet-YOLO."""

from dataclasses import replace

import torch
from torch import Tensor

from caffe.engine.layer import Shape, register
from caffe.layer_types.forks.yolo import Truths, _Yolo, last_of, one_hot
from caffe.layer_types.forks.yolo_boxes import IOU, Boxes, at_origin, overlap_gradients, overlaps


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

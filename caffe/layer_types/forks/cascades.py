"""Regions of MS-CNN (Cai et al. 2016) and Cascade R-CNN (2018), as of zhaoweicai/mscnn: BoxOutput, DecodeBBox."""

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from caffe.engine.layer import Layer, Shape, register
from caffe.layer_types.forks.detection import as_array
from caffe.proto import caffe_pb2
from caffe.transforms import boxes
from caffe.transforms.boxes import Boxes


def normalization(layer: Layer) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the four offsets of a box, by bbox_reg_param; raises LayerError unless there are four."""
    p = layer.param.bbox_reg_param
    if not p.bbox_mean or not p.bbox_std:
        return [0.0] * 4, [1.0] * 4
    if len(p.bbox_mean) != 4 or len(p.bbox_std) != 4 or min(p.bbox_std) <= 0:
        raise layer.error(f"bbox_mean {list(p.bbox_mean)} and bbox_std {list(p.bbox_std)}", "four of each, the latter above 0")
    return list(p.bbox_mean), list(p.bbox_std)


def shared(best: Boxes, others: Boxes, kind: str) -> np.ndarray:
    """Overlap of the better box (1, 4) with others (M, 4), (1, M).

    kind  what the intersection is divided by: the union (IOU), the smaller box (IOMU) or the better one (IOFU)
    """
    own, areas = boxes.areas(best), boxes.areas(others)
    common = boxes.intersections(best[0], others)
    whole = {"IOU": own + areas - common, "IOMU": np.minimum(own, areas), "IOFU": np.broadcast_to(own, common.shape)}[kind]
    overlap: np.ndarray = np.divide(common, whole, out=np.zeros_like(common), where=common > 0)
    return overlap[None]


@register("BoxOutput")
class BoxOutput(Layer):
    """Regions proposed at several scales: maps (N, classes + 4, H, W) → regions (R, 5, 1, 1)[, with scores (R, 6, 1, 1)].

    Each position of map j has a box of field_w × field_h pixels around its centre, moved and scaled by its last four channels, as
    far as field_xyr and field_whr allow, and cut at the image's edges. Its score, at least fg_thr, is the best class's above that
    of the background, the first class. A row is image, x1, y1, x2, y2[, score], the best of an image first, after non-maximum
    suppression. Without any, the region is 0, 1, 1, 10, 10, and the row with the score 0. No gradient passes.
    """

    bottoms = (1, None)
    tops = (1, 2)
    differentiable_bottoms = ()

    def setup(self, *shapes: Shape) -> None:
        p = self.param.box_output_param
        for name in ("field_h", "field_w", "downsample_rate"):
            values = list(getattr(p, name))
            if len(values) != len(shapes) or min(values) < 1:
                raise self.error(f"{name} {values}", f"a number of pixels for each of {len(shapes)} bottoms")
        if p.nms_type not in ("IOU", "IOMU", "IOFU"):
            raise self.error(f'nms_type "{p.nms_type}"', "IOU, IOMU or IOFU")
        if p.field_whr <= 0 or p.field_xyr <= 0:
            raise self.error(f"field_whr {p.field_whr:g} and field_xyr {p.field_xyr:g}", "both must be larger than 0")
        self.mean, self.deviation = normalization(self)

    def top_shapes(self, *shapes: Shape) -> list[Shape]:
        for shape in shapes:
            self.require_maps(shape)
            if shape[:2] != shapes[0][:2] or shape[1] < 6:
                raise self.error(f"bottoms of shapes {', '.join(map(str, shapes))}", "all with at least 2 classes and 4 offsets")
        # A placeholder: `forward` knows how many there are.
        return [(1, values, 1, 1) for values in (5, 6)[: len(self.param.top)]]

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        parts = [self.candidates(index, x.detach()) for index, x in enumerate(maps)]
        corners, scores = (as_array(torch.cat(each, 1)) for each in zip(*parts, strict=True))
        rows = np.concatenate([self.chosen(image, corners[image], scores[image]) for image in range(len(scores))])
        if not len(rows):
            rows = np.array([[0, 1, 1, 10, 10, 0]], np.float32)
            tops = rows[:, :5], np.zeros((1, 6), np.float32)
        else:
            tops = rows[:, :5], rows
        return tuple(torch.from_numpy(top[:, :, None, None].copy()).to(maps[0]) for top in tops[: len(self.param.top)])

    def candidates(self, index: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (N, H · W, 4) by x1, y1, x2, y2 in pixels, and scores (N, H · W), of map `index`."""
        p = self.param.box_output_param
        height, width = x.shape[2:]
        step = p.downsample_rate[index]
        field = torch.tensor([p.field_w[index], p.field_h[index]]).to(x)
        cells = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), -1).to(x).flatten(0, 1)
        classes, offsets = x.flatten(2).transpose(1, 2).split((x.shape[1] - 4, 4), 2)
        offsets = offsets * torch.tensor(self.deviation).to(x) + torch.tensor(self.mean).to(x)
        shift = offsets[..., :2].clamp(-1 / p.field_xyr, 1 / p.field_xyr)
        bound = math.log(p.field_whr)
        sides = field * offsets[..., 2:].clamp_min(-bound).clamp_max(bound).exp()
        first = (shift * field + (cells + 0.5) * step - sides / 2).clamp_min(0)
        sides = torch.minimum(sides, torch.tensor([width * step, height * step]).to(x) - first)
        scores = classes[..., 1:].amax(-1) - classes[..., 0]
        fits = (scores >= p.fg_thr) & (sides >= p.min_size).all(-1)
        return torch.cat((first, first + sides), -1), torch.where(fits, scores, -math.inf)

    def chosen(self, image: int, corners: Boxes, scores: np.ndarray) -> np.ndarray:
        """Rows (R, 6) of an image, from all its boxes; a score of -∞ is none."""
        p = self.param.box_output_param
        there = np.flatnonzero(scores > -np.inf)
        # Of equal scores, the fork takes the last box first.
        order = there[::-1][np.argsort(-scores[there[::-1]], kind="stable")][: p.max_nms_num or None]
        order = order[boxes.suppress(corners[order], p.iou_thr, overlap=partial(shared, kind=p.nms_type))][
            : p.max_post_nms_num or None
        ]
        return np.hstack((np.full((len(order), 1), image, np.float32), corners[order], scores[order, None]))


@register("DecodeBBox")
class DecodeBBox(Layer):
    """Regions moved by their predicted offsets: (offsets (R, 8), regions (R, 5)[, true boxes (R, …)]) → (regions, 5, 1, 1).

    The last four offsets, times bbox_std plus bbox_mean, are of centre and logarithm of the sides, in sides. In training, regions
    without width or height are left out, and, by the last value of the third bottom, those that overlap their true box by
    gt_iou_thr or more. No gradient passes.
    """

    bottoms = (2, 3)
    differentiable_bottoms = ()

    def setup(self, offsets: Shape, regions: Shape, *truths: Shape) -> None:
        if truths and self.phase != caffe_pb2.TRAIN:
            raise self.error("three bottoms in testing", "true boxes are known in training only", "give two")
        self.mean, self.deviation = normalization(self)

    def top_shapes(self, offsets: Shape, regions: Shape, *truths: Shape) -> list[Shape]:
        count = regions[0]
        if math.prod(offsets) != 8 * count or math.prod(regions) != 5 * count or not regions[1:]:
            raise self.error(
                f"offsets of shape {offsets} for regions of shape {regions}", "8 offsets and 5 values for each region"
            )
        if truths and (truths[0][0] != count or math.prod(truths[0]) < count):
            raise self.error(f"true boxes of shape {truths[0]}", f"values for each of {count} regions, the last its overlap")
        return [(count, 5, 1, 1)]

    def forward(self, offsets: Tensor, regions: Tensor, *truths: Tensor) -> Tensor:
        rows = regions.reshape(-1, 5)
        moves = offsets.reshape(-1, 8)[:, 4:] * torch.tensor(self.deviation).to(offsets) + torch.tensor(self.mean).to(offsets)
        low, high = rows[:, 1:3], rows[:, 3:]
        sides = high - low + 1
        centre = moves[:, :2] * sides + (low + high) / 2
        sides = sides * moves[:, 2:].exp()
        low = centre - (sides - 1) / 2
        high = low + sides - 1
        decoded = torch.cat((rows[:, :1], low, high), 1)
        if self.phase == caffe_pb2.TRAIN and len(rows):
            kept = ~(low > high).any(1)
            if truths:
                kept &= truths[0].reshape(len(rows), -1)[:, -1] < self.param.decode_bbox_param.gt_iou_thr
            decoded = decoded[kept]
            if not len(decoded):
                raise self.error(f"no region left of {len(rows)}", "at least one has width and height and is not a true box")
        return decoded[:, :, None, None]

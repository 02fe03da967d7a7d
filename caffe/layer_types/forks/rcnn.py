"""Built-in versions of Faster R-CNN's Python layers (Ren et al. 2015): proposals, anchor targets and proposal targets.

As the modules rpn.* of py-faster-rcnn and py-R-FCN compute. Their param_str holds a layer's settings. What those read from
fast_rcnn/config.py has that file's defaults here; a setting of its name in param_str, which the original layers ignore, changes
it: `"{'feat_stride': 16, 'RPN_NMS_THRESH': 0.6}"`.
"""

import math
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from caffe.engine import mode
from caffe.engine.layer import Layer, Shape
from caffe.layer_types import param_str
from caffe.layer_types.forks.detection import as_array
from caffe.layer_types.forks.proposals import Proposal, anchor_grid, closed, rounded_anchors
from caffe.layer_types.param_str import Setting
from caffe.proto import caffe_pb2
from caffe.transforms import boxes
from caffe.transforms.boxes import Boxes, Floats

ANCHORS = {
    "feat_stride": Setting(param_str.COUNT),
    "scales": Setting(param_str.SIZES, (8, 16, 32)),
    "ratios": Setting(param_str.SIZES, (0.5, 1, 2)),
    "base_size": Setting(param_str.COUNT, 16),
}
"""Settings of the layers that place anchors."""


def encode(regions: Boxes, truths: Boxes) -> Boxes:
    """True boxes (N, 4) as offsets from regions (N, 4): of the centre in sides, and the logarithms of the sides' ratios."""
    return boxes.encode(closed(truths), closed(regions), np.ones_like(regions), caffe_pb2.PriorBoxParameter.CENTER_SIZE)


def best_truths(regions: Boxes, truths: Boxes) -> tuple[Floats, np.ndarray, Floats]:
    """Overlaps (N, G) of regions and true boxes, and for each region the true box that overlaps it most, and by how much.

    0 and 0 for all regions if there are no true boxes.
    """
    table = boxes.overlaps(closed(regions), closed(truths))
    if not len(truths):
        return table, np.zeros(len(regions), np.int64), np.zeros(len(regions))
    return table, table.argmax(1), table.max(1)


def sampled(indices: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the indices, drawn without repetition, in their order."""
    if len(indices) <= count:
        return indices
    return indices[np.sort(mode.generator.permutation(len(indices))[:count])]


class ProposalLayer(Proposal):
    """Regions (R, 5) of image index, x1, y1, x2, y2, and on request their scores (R, 1), best first for each image.

    (scores (N, 2 · A, H, W), the second half of objects; offsets (N, 4 · A, H, W); image sizes (N or 1, 3): height, width and
    scale) → as Proposal, but regions that are too small are left out, and the sides of anchors are rounded before they are
    scaled. No gradient passes.
    param_str: feat_stride; scales (8, 16, 32), ratios (0.5, 1, 2), base_size (16); RPN_NMS_THRESH (0.7), RPN_MIN_SIZE (16),
    RPN_PRE_NMS_TOP_N (12000 in TRAIN, 6000 in TEST), RPN_POST_NMS_TOP_N (2000 in TRAIN, 300 in TEST).
    Source: lib/rpn/proposal_layer.py of rbgirshick/py-faster-rcnn, which takes one image.
    """

    type = "Python"
    make_anchors = staticmethod(rounded_anchors)
    keeps_small = False

    def read_settings(self) -> caffe_pb2.ProposalParameter:
        training = self.phase == caffe_pb2.TRAIN
        known = ANCHORS | {
            "RPN_PRE_NMS_TOP_N": Setting(param_str.COUNT, 12000 if training else 6000),
            "RPN_POST_NMS_TOP_N": Setting(param_str.COUNT, 2000 if training else 300),
            "RPN_NMS_THRESH": Setting(param_str.FRACTION, 0.7),
            "RPN_MIN_SIZE": Setting(param_str.WHOLE, 16),
        }
        given = param_str.settings(self, known)
        return caffe_pb2.ProposalParameter(
            feat_stride=given.feat_stride,
            base_size=given.base_size,
            min_size=given.RPN_MIN_SIZE,
            ratio=given.ratios,
            scale=given.scales,
            pre_nms_topn=given.RPN_PRE_NMS_TOP_N,
            post_nms_topn=given.RPN_POST_NMS_TOP_N,
            nms_thresh=given.RPN_NMS_THRESH,
        )

    def setup(self, scores: Shape, offsets: Shape, sizes: Shape) -> None:
        super().setup(scores, offsets, sizes)
        if sizes[-1] != 3:
            raise self.error(f"image sizes of shape {sizes}", "height, width and scale for each image")

    def top_shapes(self, scores: Shape, offsets: Shape, sizes: Shape) -> list[Shape]:
        regions, *best = super().top_shapes(scores, offsets, sizes)
        return [regions, *((*shape, 1) for shape in best)]

    def forward(self, scores: Tensor, offsets: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        regions, *best = super().forward(scores, offsets, sizes)
        return regions, *(each[:, None] for each in best)


class _Targets(Layer):
    """Base of the layers that compare regions of one image with its true boxes."""

    type = "Python"
    differentiable_bottoms: tuple[int, ...] = ()

    def require_boxes(self, shape: Shape, name: str, columns: str) -> None:
        """Raise LayerError unless the bottom has rows of 5 numbers."""
        if len(shape) < 2 or math.prod(shape[1:]) != 5:
            raise self.error(f"{name} of shape {shape}", f"rows of {columns}")

    def require_truths(self, shape: Shape) -> None:
        """Raise LayerError unless the bottom has true boxes."""
        self.require_boxes(shape, "true boxes", "x1, y1, x2, y2 and class: (G, 5)")

    def batch_dependence(self) -> str:
        return "draws regions at random"


def rows_of(x: Tensor) -> Floats:
    """Rows of boxes, (N, 5), in double precision."""
    return as_array(x).reshape(len(x), 5).astype(np.float64)


class AnchorTargetLayer(_Targets):
    """Labels, regression targets and their weights of the anchors of one image, for training a region proposal network.

    (scores (1, …, H, W), only for H and W; true boxes (G, 5): x1, y1, x2, y2, class; image size (1, 3): height, width, scale[,
    data]) → labels (1, 1, A · H, W): 1 object, 0 background, -1 ignored; targets, inside and outside weights (1, 4 · A, H, W).
    An anchor inside the image, to allowed_border pixels, is an object if a true box overlaps it by RPN_POSITIVE_OVERLAP or
    more, or overlaps no other anchor more; else background if none overlaps it by RPN_NEGATIVE_OVERLAP. Of RPN_BATCHSIZE
    labels, at most RPN_FG_FRACTION are objects; they are drawn at random. Inside weights are RPN_BBOX_INSIDE_WEIGHTS for
    objects; outside weights are 1 / n for all n labels, with a RPN_POSITIVE_WEIGHT p from 0 to 1 p / objects and
    (1 - p) / background. No gradient passes.
    param_str: feat_stride; scales (8, 16, 32), ratios (0.5, 1, 2), base_size (16), allowed_border (0); RPN_POSITIVE_OVERLAP
    (0.7), RPN_NEGATIVE_OVERLAP (0.3), RPN_CLOBBER_POSITIVES (False): background wins over objects, RPN_FG_FRACTION (0.5),
    RPN_BATCHSIZE (256), RPN_BBOX_INSIDE_WEIGHTS (1, 1, 1, 1), RPN_POSITIVE_WEIGHT (-1).
    A true box that overlaps no anchor has none; in the original, all that do not overlap it become objects then.
    Source: lib/rpn/anchor_target_layer.py of rbgirshick/py-faster-rcnn.
    """

    bottoms = (3, 4)
    tops = (4, 4)

    def setup(self, scores: Shape, truths: Shape, size: Shape, *_data: Shape) -> None:
        self.settings = p = self.read_settings()
        self.anchors = rounded_anchors(p.base_size, np.array(p.ratios, np.float32), np.array(p.scales, np.float32))
        self.top_shapes(scores, truths, size, *_data)

    def read_settings(self) -> SimpleNamespace:
        """The settings of param_str."""
        known = ANCHORS | {
            "allowed_border": Setting(param_str.WHOLE, 0),
            "RPN_POSITIVE_OVERLAP": Setting(param_str.FRACTION, 0.7),
            "RPN_NEGATIVE_OVERLAP": Setting(param_str.FRACTION, 0.3),
            "RPN_CLOBBER_POSITIVES": Setting(param_str.SWITCH, False),
            "RPN_FG_FRACTION": Setting(param_str.FRACTION, 0.5),
            "RPN_BATCHSIZE": Setting(param_str.COUNT, 256),
            "RPN_BBOX_INSIDE_WEIGHTS": Setting(param_str.FOUR, (1, 1, 1, 1)),
            "RPN_POSITIVE_WEIGHT": Setting(param_str.WEIGHT, -1),
        }
        return param_str.settings(self, known)

    def top_shapes(self, scores: Shape, truths: Shape, size: Shape, *_data: Shape) -> list[Shape]:
        self.require_maps(scores)
        self.require_truths(truths)
        if scores[0] != 1:
            raise self.error(f"scores of shape {scores}", "AnchorTargetLayer takes one image", "set the batch size to 1")
        if math.prod(size) < 3:
            raise self.error(f"an image size of shape {size}", "height, width and scale: (1, 3)")
        count, (height, width) = len(self.anchors), scores[2:]
        return [(1, 1, count * height, width), *[(1, 4 * count, height, width)] * 3]

    def forward(self, scores: Tensor, truths: Tensor, size: Tensor, *_data: Tensor) -> tuple[Tensor, ...]:
        p, (height, width) = self.settings, scores.shape[2:]
        grid = anchor_grid(self.anchors, height, width, p.feat_stride).astype(np.float64)
        rows, columns = as_array(size).ravel()[:2]
        limits = np.array([columns, rows]) + p.allowed_border
        inside = self._inside(grid, limits)
        true = rows_of(truths)[:, :4]
        table, nearest, greatest = best_truths(grid[inside], true)
        labels = np.full(len(grid), -1.0)
        labels[inside] = self._drawn(self._labels(table, greatest), inside)
        targets = np.zeros_like(grid)
        if len(true):
            targets[inside] = encode(grid[inside], true[nearest])
        weights = self._weights(labels)
        by_anchor = (height, width, len(self.anchors))
        tops = [labels.reshape(by_anchor).transpose(2, 0, 1).reshape(1, 1, -1, width)]
        tops += [values.reshape(1, height, width, -1).transpose(0, 3, 1, 2) for values in (targets, *weights)]
        return tuple(torch.from_numpy(np.ascontiguousarray(top, np.float32)).to(scores.device) for top in tops)

    def _inside(self, grid: Boxes, limits: Floats) -> np.ndarray:
        """Numbers of the anchors in the image, to allowed_border pixels."""
        border = self.settings.allowed_border
        return np.flatnonzero((grid[:, :2] >= -border).all(1) & (grid[:, 2:] < limits).all(1))

    def _labels(self, table: Floats, greatest: Floats) -> Floats:
        """The label of each anchor, before some are drawn, from its overlaps with each true box and the greatest of them."""
        p = self.settings
        background = greatest < p.RPN_NEGATIVE_OVERLAP
        labels = np.where(background, 0.0, -1.0)
        labels[((table == table.max(0, initial=0)) & (table > 0)).any(1)] = 1
        labels[greatest >= p.RPN_POSITIVE_OVERLAP] = 1
        if p.RPN_CLOBBER_POSITIVES:
            labels[background] = 0
        return labels

    def _drawn(self, labels: Floats, inside: np.ndarray) -> Floats:
        """The labels of the anchors `inside`, of which those beyond RPN_BATCHSIZE are ignored."""
        p = self.settings
        objects = sampled(np.flatnonzero(labels == 1), int(p.RPN_FG_FRACTION * p.RPN_BATCHSIZE))
        background = sampled(np.flatnonzero(labels == 0), p.RPN_BATCHSIZE - len(objects))
        drawn = np.full(len(labels), -1.0)
        drawn[objects], drawn[background] = 1, 0
        return drawn

    def _weights(self, labels: Floats) -> tuple[Floats, Floats]:
        """Inside and outside weights of the anchors, (N, 4)."""
        p, objects, background = self.settings, labels == 1, labels == 0
        inside = objects[:, None] * np.array(p.RPN_BBOX_INSIDE_WEIGHTS)
        positive = negative = 1 / max(1, (labels >= 0).sum())
        if p.RPN_POSITIVE_WEIGHT >= 0:
            positive = p.RPN_POSITIVE_WEIGHT / max(1, objects.sum())
            negative = (1 - p.RPN_POSITIVE_WEIGHT) / max(1, background.sum())
        outside = objects * positive + background * negative
        return inside, np.repeat(outside[:, None], 4, 1)


class ProposalTargetLayer(_Targets):
    """A sample of the regions of one image with their classes, regression targets and weights, for training R-CNN's head.

    (regions (R, 5): 0, x1, y1, x2, y2; true boxes (G, 5): x1, y1, x2, y2, class from 1) → regions (S, 5), classes (S, 1, 1, 1),
    0 background; targets, inside and outside weights (S, 4 · num_classes), other than 0 in the columns of a region's class.
    True boxes are regions, too. Of BATCH_SIZE regions, at most FG_FRACTION are objects, which a true box overlaps by FG_THRESH
    or more; the others overlap one by BG_THRESH_LO to below BG_THRESH_HI. Both are drawn at random, objects first; with
    BATCH_SIZE -1 (R-FCN's mining of hard examples) all are taken. An image without either takes any below BG_THRESH_HI.
    Inside weights are BBOX_INSIDE_WEIGHTS, outside weights 1 where those are above 0. No gradient passes.
    num_classes 2 is R-FCN's agnostic form: all classes share the columns of class 1.
    param_str: num_classes, with the background; BATCH_SIZE (128), FG_FRACTION (0.25), FG_THRESH (0.5), BG_THRESH_HI (0.5),
    BG_THRESH_LO (0.1), BBOX_INSIDE_WEIGHTS (1, 1, 1, 1), BBOX_NORMALIZE_TARGETS_PRECOMPUTED (False): targets less
    BBOX_NORMALIZE_MEANS (0, 0, 0, 0), divided by BBOX_NORMALIZE_STDS (0.1, 0.1, 0.2, 0.2). The end-to-end configurations of
    both repositories set BG_THRESH_LO 0 and normalise targets.
    Source: lib/rpn/proposal_target_layer.py of rbgirshick/py-faster-rcnn and, for the axes of classes, YuwenXiong/py-R-FCN.
    """

    bottoms = (2, 2)
    tops = (5, 5)

    def setup(self, regions: Shape, truths: Shape, *_size: Shape) -> None:
        self.settings = self.read_settings()
        self.top_shapes(regions, truths)

    def read_settings(self) -> SimpleNamespace:
        """The settings of param_str."""
        known = {
            "num_classes": Setting(param_str.COUNT),
            "BATCH_SIZE": Setting(param_str.COUNT_OR_ALL, 128),
            "FG_FRACTION": Setting(param_str.FRACTION, 0.25),
            "FG_THRESH": Setting(param_str.FRACTION, 0.5),
            "BG_THRESH_HI": Setting(param_str.FRACTION, 0.5),
            "BG_THRESH_LO": Setting(param_str.FRACTION, 0.1),
            "BBOX_INSIDE_WEIGHTS": Setting(param_str.FOUR, (1, 1, 1, 1)),
            "BBOX_NORMALIZE_TARGETS_PRECOMPUTED": Setting(param_str.SWITCH, False),
            "BBOX_NORMALIZE_MEANS": Setting(param_str.FOUR, (0, 0, 0, 0)),
            "BBOX_NORMALIZE_STDS": Setting(param_str.FOUR_POSITIVE, (0.1, 0.1, 0.2, 0.2)),
        }
        return param_str.settings(self, known)

    def top_shapes(self, regions: Shape, truths: Shape, *_size: Shape) -> list[Shape]:
        self.require_boxes(regions, "regions", "0, x1, y1, x2, y2: (R, 5)")
        self.require_truths(truths)
        p = self.settings
        most = regions[0] + truths[0]
        count = most if p.BATCH_SIZE < 0 else min(most, p.BATCH_SIZE)
        return [(count, 5), (count, 1, 1, 1), *[(count, 4 * p.num_classes)] * 3]

    def forward(self, regions: Tensor, truths: Tensor, *_size: Tensor) -> tuple[Tensor, ...]:
        p, found, true = self.settings, rows_of(regions), rows_of(truths)
        if found[:, 0].any():
            do = "set the batch size to 1"
            raise self.error(f"a region of image {found[:, 0].max():g}", "ProposalTargetLayer takes one image, 0", do)
        candidates = np.concatenate([found, np.insert(true[:, :4], 0, 0, 1)])
        _, nearest, greatest = best_truths(candidates[:, 1:], true[:, :4])
        objects, background = self._drawn(greatest)
        self.objects = len(objects)
        self.kept = kept = np.concatenate([objects, background])
        classes, targets = np.zeros(len(kept), np.int64), np.zeros((len(kept), p.num_classes, 4))
        inside = np.zeros_like(targets)
        if len(objects):
            rows = np.arange(len(objects))
            classes[: len(objects)] = true[nearest[objects], 4]
            column = np.minimum(classes[rows], 1) if p.num_classes == 2 else classes[rows]
            if not ((column >= 0) & (column < p.num_classes)).all():
                found_class = f"a true box of class {column.max() if column.min() >= 0 else column.min()}"
                raise self.error(found_class, f"num_classes {p.num_classes} has the classes 0 to {p.num_classes - 1}")
            offsets = encode(candidates[objects, 1:], true[nearest[objects], :4])
            if p.BBOX_NORMALIZE_TARGETS_PRECOMPUTED:
                offsets = (offsets - p.BBOX_NORMALIZE_MEANS) / p.BBOX_NORMALIZE_STDS
            labelled = column > 0
            targets[rows[labelled], column[labelled]] = offsets[labelled]
            inside[rows[labelled], column[labelled]] = p.BBOX_INSIDE_WEIGHTS
        tops = [candidates[kept], classes[:, None, None, None]]
        tops += [values.reshape(len(kept), 4 * p.num_classes) for values in (targets, inside, inside > 0)]
        return tuple(torch.from_numpy(top.astype(np.float32)).to(regions.device) for top in tops)

    def _drawn(self, greatest: Floats) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the objects and of the background, from each region's greatest overlap with a true box."""
        p = self.settings
        total = len(greatest) if p.BATCH_SIZE < 0 else p.BATCH_SIZE
        most = total if p.BATCH_SIZE < 0 else round(p.FG_FRACTION * total)
        objects = sampled(np.flatnonzero(greatest >= p.FG_THRESH), most)
        below = greatest < p.BG_THRESH_HI
        background = np.flatnonzero(below & (greatest >= p.BG_THRESH_LO))
        if not len(objects) and not len(background):
            background = np.flatnonzero(below)
        return objects, sampled(background, total - len(objects))

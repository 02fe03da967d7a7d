"""Built-in versions of the Python layers of SSH (Najibi et al. 2017) and CTPN (Tian et al. 2016).

As SSH.layers.* of mahyarnajibi/SSH and layers.text_proposal_layer of tianzhi0549/CTPN compute. Settings of SSH's configuration
have the defaults of its default_config.yml and may be given in param_str, as in rcnn.py.
"""

import math
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from caffe.engine.layer import Layer, Shape
from caffe.layer_types import param_str
from caffe.layer_types.forks import rcnn
from caffe.layer_types.forks.detection import as_array
from caffe.layer_types.forks.proposals import anchor_grid
from caffe.layer_types.param_str import Setting
from caffe.proto import caffe_pb2
from caffe.transforms.boxes import Boxes, Floats

# ---- SSH


class SSHProposalLayer(rcnn.ProposalLayer):
    """ProposalLayer, which suppresses overlapping regions in training only; without any region, one of (0, 0, 0, 16, 16).

    param_str: as ProposalLayer, and NMS_THRESH (0.3), ANCHOR_N_PRE_NMS (1000), ANCHOR_N_POST_NMS (300) and ANCHOR_MIN_SIZE (4)
    in training, N_DETS_PER_MODULE (1000) and ANCHOR_MIN_SIZE (0) in testing. Source: SSH/layers/proposal_layer.py of
    mahyarnajibi/SSH, and its default_config.yml.
    """

    def read_settings(self) -> caffe_pb2.ProposalParameter:
        training = self.phase == caffe_pb2.TRAIN
        known = rcnn.ANCHORS | {
            "NMS_THRESH": Setting(param_str.FRACTION, 0.3),
            "ANCHOR_N_PRE_NMS": Setting(param_str.COUNT, 1000),
            "ANCHOR_N_POST_NMS": Setting(param_str.COUNT, 300),
            "N_DETS_PER_MODULE": Setting(param_str.COUNT, 1000),
            "ANCHOR_MIN_SIZE": Setting(param_str.WHOLE, 4 if training else 0),
        }
        given = param_str.settings(self, known)
        before, after = given.ANCHOR_N_PRE_NMS, given.ANCHOR_N_POST_NMS
        return caffe_pb2.ProposalParameter(
            feat_stride=given.feat_stride,
            base_size=given.base_size,
            min_size=given.ANCHOR_MIN_SIZE,
            ratio=given.ratios,
            scale=given.scales,
            pre_nms_topn=before if training else given.N_DETS_PER_MODULE,
            post_nms_topn=after if training else given.N_DETS_PER_MODULE,
            nms_thresh=given.NMS_THRESH,
        )

    def chosen(self, candidates: Boxes) -> np.ndarray:
        return super().chosen(candidates) if self.phase == caffe_pb2.TRAIN else np.arange(len(candidates))

    def forward(self, scores: Tensor, offsets: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        regions, *best = super().forward(scores, offsets, sizes)
        if not len(regions):
            regions = regions.new_tensor([[0, 0, 0, 16, 16]])
        return regions, *best


class SSHAnchorTargetLayer(rcnn.AnchorTargetLayer):
    """AnchorTargetLayer, which with a fifth bottom, scores (1, 2 · A, H, W), takes the hardest anchors instead of random ones.

    Hard background has a great score of an object, and hard objects, with HARD_POSITIVE_MINING (True), a small one. Where no
    anchor is inside the image, all are compared. The anchors that overlap a true box most are objects only with
    FORCE_FG_FOR_EACH_GT (False). param_str: feat_stride, scales, ratios, base_size, allowed_border, positive_overlap or
    ANCHOR_POSITIVE_OVERLAP (0.5), ANCHOR_NEGATIVE_OVERLAP (0.3), ANCHOR_FG_FRACTION (0.25), ANCHORS_PER_BATCH (256),
    BBOX_INSIDE_WEIGHTS (1, 1, 1, 1), POSITIVE_WEIGHT (-1). Source: SSH/layers/anchor_target_layer.py of mahyarnajibi/SSH, and its
    default_config.yml.
    """

    bottoms = (4, 5)
    hard: Floats | None = None
    """Scores of all anchors as objects in this pass."""

    def read_settings(self) -> SimpleNamespace:
        known = rcnn.ANCHORS | {
            "allowed_border": Setting(param_str.WHOLE, 0),
            "positive_overlap": Setting(param_str.FRACTION, -1),
            "ANCHOR_POSITIVE_OVERLAP": Setting(param_str.FRACTION, 0.5),
            "ANCHOR_NEGATIVE_OVERLAP": Setting(param_str.FRACTION, 0.3),
            "ANCHOR_FG_FRACTION": Setting(param_str.FRACTION, 0.25),
            "ANCHORS_PER_BATCH": Setting(param_str.COUNT, 256),
            "HARD_POSITIVE_MINING": Setting(param_str.SWITCH, True),
            "FORCE_FG_FOR_EACH_GT": Setting(param_str.SWITCH, False),
            "BBOX_INSIDE_WEIGHTS": Setting(param_str.FOUR, (1, 1, 1, 1)),
            "POSITIVE_WEIGHT": Setting(param_str.WEIGHT, -1),
        }
        p = param_str.settings(self, known)
        p.RPN_POSITIVE_OVERLAP = p.positive_overlap if p.positive_overlap >= 0 else p.ANCHOR_POSITIVE_OVERLAP
        p.RPN_NEGATIVE_OVERLAP, p.RPN_CLOBBER_POSITIVES = p.ANCHOR_NEGATIVE_OVERLAP, False
        p.RPN_FG_FRACTION, p.RPN_BATCHSIZE = p.ANCHOR_FG_FRACTION, p.ANCHORS_PER_BATCH
        p.RPN_BBOX_INSIDE_WEIGHTS, p.RPN_POSITIVE_WEIGHT = p.BBOX_INSIDE_WEIGHTS, p.POSITIVE_WEIGHT
        return p

    def top_shapes(self, scores: Shape, truths: Shape, size: Shape, *data: Shape) -> list[Shape]:
        count = len(self.anchors)
        if len(data) > 1 and data[1] != (1, 2 * count, *scores[2:]):
            raise self.error(f"scores of shape {data[1]}", f"{(1, 2 * count, *scores[2:])} for {count} anchors")
        return super().top_shapes(scores, truths, size)

    def forward(self, scores: Tensor, truths: Tensor, size: Tensor, *data: Tensor) -> tuple[Tensor, ...]:
        given = as_array(data[1])[0, len(self.anchors) :] if len(data) > 1 else None
        self.hard = None if given is None else given.transpose(1, 2, 0).ravel()
        return super().forward(scores, truths, size)

    def _inside(self, grid: Boxes, limits: Floats) -> np.ndarray:
        inside = super()._inside(grid, limits)
        return inside if len(inside) else np.arange(len(grid))

    def _labels(self, table: Floats, greatest: Floats) -> Floats:
        none = table if self.settings.FORCE_FG_FOR_EACH_GT else np.zeros_like(table)
        return super()._labels(none, greatest)

    def _drawn(self, labels: Floats, inside: np.ndarray) -> Floats:
        if self.hard is None:
            return super()._drawn(labels, inside)
        p, scores = self.settings, self.hard[inside]
        objects, most = np.flatnonzero(labels == 1), int(p.RPN_FG_FRACTION * p.RPN_BATCHSIZE)
        if len(objects) > most:
            hard = p.HARD_POSITIVE_MINING
            objects = objects[np.argsort(scores[objects], kind="stable")[:most]] if hard else rcnn.sampled(objects, most)
        background = np.flatnonzero(labels == 0)
        background = background[np.argsort(-scores[background], kind="stable")[: p.RPN_BATCHSIZE - len(objects)]]
        drawn = np.full(len(labels), -1.0)
        drawn[objects], drawn[background] = 1, 0
        return drawn


# ---- CTPN

_HEIGHTS = 11, 16, 23, 33, 48, 68, 97, 139, 198, 283
_WIDTH = 16


class TextProposalLayer(Layer):
    """All anchors of CTPN, moved up or down: (scores (1, 20, H, W), offsets (1, 20, H, W), image size (1, 3)) → boxes, scores.

    Ten anchors of 16 pixels' width and heights from 11 to 283 at steps of feat_stride; an offset is of the centre's y, in
    heights, and the logarithm of the height. Boxes (H · W · 10, 4) are x1, y1, x2, y2, cut at the image's edges; scores (H · W ·
    10, 1) are of the second half of channels. No gradient passes. Source: src/layers/text_proposal_layer.py of tianzhi0549/CTPN,
    whose anchors are whole numbers, cut towards 0.
    """

    type = "Python"
    bottoms = (3, 3)
    tops = (2, 2)
    differentiable_bottoms = ()

    def setup(self, scores: Shape, offsets: Shape, size: Shape) -> None:
        self.stride = param_str.settings(self, {"feat_stride": Setting(param_str.COUNT)}).feat_stride
        half = np.array([(_WIDTH // 2, height // 2) for height in _HEIGHTS])
        self.anchors = np.trunc(np.concatenate((7.5 - half, 7.5 + half), 1)).astype(np.float32)

    def top_shapes(self, scores: Shape, offsets: Shape, size: Shape) -> list[Shape]:
        self.require_maps(scores)
        expected = 1, 2 * len(_HEIGHTS), *scores[2:]
        if scores != expected or offsets != expected or math.prod(size) < 3:
            found = f"scores of shape {scores}, offsets of shape {offsets} and a size of shape {size}"
            raise self.error(found, f"{expected}, as many offsets, and height, width and scale of one image")
        count = len(_HEIGHTS) * math.prod(scores[2:])
        return [(count, 4), (count, 1)]

    def forward(self, scores: Tensor, offsets: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        height, width = scores.shape[2:]
        grid = anchor_grid(self.anchors, height, width, self.stride)
        moves = as_array(offsets)[0].reshape(-1, 2, height, width).transpose(2, 3, 0, 1).reshape(-1, 2)
        sides = grid[:, 3] - grid[:, 1] + 1
        tall = np.exp(moves[:, 1]) * sides
        upper = moves[:, 0] * sides + (grid[:, 1] + grid[:, 3]) / 2 - tall / 2
        rows, columns = as_array(size).ravel()[:2]
        boxes = np.stack((grid[:, 0], upper, grid[:, 2], upper + tall), 1)
        boxes = np.clip(boxes, 0, np.array([columns, rows] * 2, np.float32) - 1)
        values = as_array(scores)[0, len(_HEIGHTS) :].transpose(1, 2, 0).reshape(-1, 1)
        return tuple(torch.from_numpy(np.ascontiguousarray(top, np.float32)).to(scores.device) for top in (boxes, values))

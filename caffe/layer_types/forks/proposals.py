"""Proposal: the regions that a region proposal network finds (Ren et al. 2015), as of the C++ layer of PVANET's fork of Caffe."""

import numpy as np
import torch
from torch import Tensor

from caffe.engine.layer import Layer, Shape, register
from caffe.layer_types.forks.detection import as_array
from caffe.numerics import elementary
from caffe.proto import caffe_pb2
from caffe.transforms import boxes
from caffe.transforms.boxes import Boxes


def anchors(base: int, ratios: np.ndarray, scales: np.ndarray) -> Boxes:
    """Boxes around the centre of a cell of `base` pixels, (ratios · scales, 4), of the area of a cell times each scale squared.

    ratios  height by width
    """
    widths = np.sqrt(np.float32(base * base) / ratios).astype(np.float32)
    sides = np.stack([widths, widths * ratios], 1)[:, None] * scales[:, None] - 1
    return _around_centre(base, np.floor(sides + 0.5))


def rounded_anchors(base: int, ratios: np.ndarray, scales: np.ndarray) -> Boxes:
    """`anchors`, whose sides are rounded before they are scaled, half to even, as by py-faster-rcnn's generate_anchors.py."""
    widths = np.rint(np.sqrt(base * base / ratios.astype(np.float64)))
    sides = np.stack([widths, np.rint(widths * ratios)], 1)[:, None] * scales[:, None] - 1
    return _around_centre(base, sides)


def _around_centre(base: int, sides: np.ndarray) -> Boxes:
    """Boxes around the centre of a cell, (rows, 4), from differences of their corners, (…, 2)."""
    half, centre = sides.reshape(-1, 2) / 2, (base - 1) / 2
    return np.concatenate([centre - half, centre + half], 1).astype(np.float32)


def anchor_grid(anchor: Boxes, height: int, width: int, stride: int) -> Boxes:
    """The anchors (A, 4) at each position of a map, `stride` pixels apart: (height · width · A, 4), by rows, columns, anchors."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32) * stride
    return (np.stack([columns, rows, columns, rows], -1)[:, :, None] + anchor).reshape(-1, 4)


def closed(corners: Boxes) -> Boxes:
    """Boxes whose far edge is that of the last pixel, since both corners belong to a box."""
    return corners + np.array([0, 0, 1, 1], corners.dtype)


@register("Proposal")
class Proposal(Layer):
    """Regions (R, 5) of image index, x1, y1, x2, y2, and on request their scores (R,), best first for each image.

    (scores (N, 2 · A, H, W), the second half of objects; offsets (N, 4 · A, H, W); image sizes (N or 1, 3 or more): height, width
    and the scale, or the scales of height and width) → at most post_nms_topn regions for each image. Each of the A anchors, of
    all ratios and scales at steps of feat_stride, is moved by its offsets, and cut at the image's edges. Of the pre_nms_topn
    best, those that overlap a better one by more than nms_thresh are left out; one smaller than min_size times the scale has
    the score 0. No gradient passes.
    """

    bottoms = (3, 3)
    tops = (1, 2)
    differentiable_bottoms: tuple[int, ...] = ()
    make_anchors = staticmethod(anchors)
    keeps_small = True
    """Whether regions that are too small get the score 0; else they are left out."""
    kept: np.ndarray
    """Numbers of the anchors of the last image's regions."""

    def read_settings(self) -> caffe_pb2.ProposalParameter:
        """The layer's settings, checked."""
        self.require_positive("feat_stride", "base_size", "pre_nms_topn", "post_nms_topn")
        return self.param.proposal_param

    def setup(self, scores: Shape, offsets: Shape, sizes: Shape) -> None:
        self.settings = p = self.read_settings()
        self.require_maps(scores)
        self.require_maps(offsets)
        ratios, scales = (np.array(values, np.float32) for values in (p.ratio, p.scale))
        if not (len(ratios) and len(scales) and (ratios > 0).all() and (scales > 0).all()):
            raise self.error(f"ratios {list(p.ratio)} and scales {list(p.scale)}", "at least one of each, larger than 0")
        self.anchors = self.make_anchors(p.base_size, ratios, scales)
        count = len(self.anchors)
        if (scores[1], offsets[1]) != (2 * count, 4 * count) or scores[2:] != offsets[2:]:
            found = f"scores of shape {scores} and offsets of shape {offsets}"
            raise self.error(found, f"{count} anchors need {2 * count} and {4 * count} channels of the same size")
        if sizes[-1] < 3:
            raise self.error(f"image sizes of shape {sizes}", "height, width and one or two scales for each image")

    def top_shapes(self, scores: Shape, offsets: Shape, sizes: Shape) -> list[Shape]:
        most = scores[0] * self.settings.post_nms_topn
        return [(most, 5), (most,)][: len(self.param.top)]

    def forward(self, scores: Tensor, offsets: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        rows = as_array(sizes.reshape(-1, sizes.shape[-1]))
        found = [
            self.regions(image, as_array(scores[image]), as_array(offsets[image]), rows[min(image, len(rows) - 1)])
            for image in range(len(scores))
        ]
        tops = tuple(torch.from_numpy(np.concatenate(parts)).to(scores.device) for parts in zip(*found, strict=True))
        return tops[: len(self.param.top)]

    def placed_anchors(self, height: int, width: int) -> Boxes:
        """The anchors at each position of a map: (height · width · anchors, 4), by rows, columns, anchors."""
        return anchor_grid(self.anchors, height, width, self.settings.feat_stride)

    def regions(self, image: int, scores: np.ndarray, offsets: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The regions of one image, (R, 5), and their scores."""
        p = self.settings
        count, (height, width) = len(self.anchors), scores.shape[1:]
        corners = self.placed_anchors(height, width)
        moved = self.moved(corners, offsets.reshape(count, 4, height, width).transpose(2, 3, 0, 1).reshape(-1, 4))
        moved = np.clip(moved, 0, np.array([size[1], size[0]] * 2, np.float32) - 1)
        sides = moved[:, 2:] - moved[:, :2] + 1
        least = p.min_size * np.array([size[3] if len(size) > 3 else size[2], size[2]], np.float32)
        large = (sides >= least).all(1)
        score = scores[count:].transpose(1, 2, 0).ravel() * large
        candidates = np.arange(len(score)) if self.keeps_small else np.flatnonzero(large)
        best = candidates[np.argsort(-score[candidates], kind="stable")][: p.pre_nms_topn]
        self.kept = kept = best[self.chosen(moved[best])]
        return np.insert(moved[kept], 0, image, 1).astype(np.float32), score[kept].astype(np.float32)

    def chosen(self, candidates: Boxes) -> np.ndarray:
        """Positions of the regions that are taken from candidates, best first."""
        return boxes.suppress(closed(candidates), self.settings.nms_thresh)[: self.settings.post_nms_topn]

    @staticmethod
    def moved(anchor: Boxes, offsets: np.ndarray) -> Boxes:
        """Anchors with their centres moved by offsets of their sides, and their sides times the exponential of the others."""
        sides = anchor[:, 2:] - anchor[:, :2] + 1
        centres = anchor[:, :2] + sides / 2 + offsets[:, :2] * sides
        half = elementary.exp(torch.from_numpy(offsets[:, 2:].astype(np.float64))).float().numpy() * sides / 2
        return np.concatenate([centres - half, centres + half], 1)

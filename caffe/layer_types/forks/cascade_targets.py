"""Training of MS-CNN's and Cascade R-CNN's classifiers (zhaoweicai/mscnn): ProposalTarget, BboxAccuracy."""

import math

import numpy as np
import torch
from torch import Tensor

from caffe.engine import mode
from caffe.engine.layer import Layer, Shape, register
from caffe.layer_types.forks.cascades import normalization
from caffe.layer_types.forks.detection import as_array
from caffe.transforms import boxes
from caffe.transforms.boxes import Boxes, Floats

_SIDE = 32
"""Least side in pixels of a random background region."""
_EXACT = 0.975
"""Overlap above which a region is taken for a true box, which says nothing about the regression."""
_DRAWS = 100_000


@register("BboxAccuracy")
class BboxAccuracy(Layer):
    """Mean overlap of regions with their true boxes, regressed and before: (offsets, regions, true boxes) → two (1, 1, 1, 1).

    Offsets are (R, 4 C), regions (R, 5) and true boxes (R, 6); the second top may be left out.
    A true box is class, x1, y1, x2, y2 and the region's overlap with it, as ProposalTarget gives it; those of class 0, and those
    whose region is the box itself, are left out. -1 stands for a mean over nothing. Source: bbox_accuracy_layer of
    zhaoweicai/mscnn.
    """

    bottoms = (3, 3)
    tops = (1, 2)
    differentiable_bottoms = ()
    reads_out = True

    def setup(self, offsets: Shape, regions: Shape, truths: Shape) -> None:
        self.mean, self.deviation = normalization(self)

    def top_shapes(self, offsets: Shape, regions: Shape, truths: Shape) -> list[Shape]:
        count = offsets[0]
        if math.prod(offsets) % (4 * count) or math.prod(regions) != 5 * count or math.prod(truths) != 6 * count:
            found = f"offsets of shape {offsets}, regions of shape {regions} and true boxes of shape {truths}"
            raise self.error(found, "4 offsets of each class, 5 values and 6 values for each region")
        return [(1, 1, 1, 1)] * len(self.param.top)

    def forward(self, offsets: Tensor, regions: Tensor, truths: Tensor) -> tuple[Tensor, ...]:
        rows, true = as_array(regions).reshape(-1, 5)[:, 1:], as_array(truths).reshape(-1, 6)
        moves = as_array(offsets).reshape(len(rows), -1, 4)
        chosen = np.flatnonzero((true[:, 0] > 0) & (true[:, 5] <= _EXACT))
        classes = true[chosen, 0].astype(int)
        if len(classes) and classes.max() >= moves.shape[1]:
            raise self.error(f"a true box of class {classes.max()}", f"there are offsets of {moves.shape[1]} classes")
        shift = moves[chosen, classes] * np.array(self.deviation, np.float32) + np.array(self.mean, np.float32)
        before, real = (_halfopen(each) for each in (rows[chosen], true[chosen, 1:5]))
        sides = before[:, 2:] - before[:, :2]
        centre, grown = before[:, :2] + sides / 2 + shift[:, :2] * sides, sides * np.exp(shift[:, 2:])
        after = np.concatenate((centre - grown / 2, centre + grown / 2), 1)
        means = [_overlap(each, real).mean() if len(chosen) else -1 for each in (after, before)]
        return tuple(offsets.new_full((1, 1, 1, 1), float(mean)) for mean in means[: len(self.param.top)])


def _halfopen(corners: Boxes) -> Boxes:
    """Boxes whose last pixel is x2, y2 as boxes that end there."""
    return corners + np.array([0, 0, 1, 1], np.float32)


def _overlap(first: Boxes, second: Boxes) -> Floats:
    """Intersection over union of boxes (M, 4), pair by pair."""
    common = boxes.intersections(first, second)
    union = boxes.areas(first) + boxes.areas(second) - common
    return np.divide(common, union, out=np.zeros_like(common), where=common > 0)


@register("ProposalTarget")
class ProposalTarget(Layer):
    """Regions to train MS-CNN's classifier with: (regions (R, 5), true boxes (M, 7)) → six tops of S rows each, or seven.

    They are regions, labels, targets, inside and outside weights, matched true boxes, and weights of samples. A region is image,
    x1, y1, x2, y2; a true box has its class and whether it is ignored in addition, and is a region, too. Regions that overlap a
    true box by fg_thr are objects, those from bg_thr_lw to bg_thr_hg background. S is batch_size: at most fg_fraction of it
    objects at random, then background at random, else the first other regions, else random boxes that overlap no true box by
    fg_thr; with batch_size -1 all objects and background. Targets (S, 4 · cls_num), or (S, 8) with cls_aware: false, are centre
    and logarithm of the sides, in sides, less bbox_mean and divided by bbox_std, where the class has its four columns and weights
    1. A matched box (S, 6) is class, corners, overlap. Weights of samples give objects together fg_fraction; iou_weighted weights
    them by their overlap. Source: proposal_target_layer of zhaoweicai/mscnn.
    """

    bottoms = (2, 2)
    tops = (6, 7)
    differentiable_bottoms = ()

    def setup(self, regions: Shape, truths: Shape) -> None:
        p = self.param.proposal_target_param
        if p.cls_num < 2 or (p.batch_size != -1 and p.batch_size < 1) or p.fg_thr < p.bg_thr_hg:
            found = f"cls_num {p.cls_num}, batch_size {p.batch_size}, fg_thr {p.fg_thr:g} and bg_thr_hg {p.bg_thr_hg:g}"
            raise self.error(found, "at least 2 classes, a batch_size of -1 or at least 1, and bg_thr_hg up to fg_thr")
        if min(p.img_width, p.img_height) <= _SIDE or p.num_img_per_batch < 1:
            found = f"img_width {p.img_width}, img_height {p.img_height} and num_img_per_batch {p.num_img_per_batch}"
            raise self.error(found, f"images larger than {_SIDE} pixels, and at least one")
        self.mean, self.deviation = normalization(self)

    def batch_dependence(self) -> str:
        return "samples regions of its batch at random"

    def top_shapes(self, regions: Shape, truths: Shape) -> list[Shape]:
        if math.prod(regions[1:]) != 5 or math.prod(truths[1:]) != 7:
            raise self.error(f"regions of shape {regions} and true boxes of shape {truths}", "5 and 7 values for each")
        p = self.param.proposal_target_param
        count = max(1, regions[0]) if p.batch_size == -1 else p.batch_size
        columns = 4 * p.cls_num if self.param.bbox_reg_param.cls_aware else 8
        shapes: list[Shape] = [(count, each, 1, 1) for each in (5, 1, columns, columns, columns, 6, 1)]
        return shapes[: len(self.param.top)]

    def forward(self, regions: Tensor, truths: Tensor) -> tuple[Tensor, ...]:
        true = as_array(truths).reshape(-1, 7)
        rows = np.concatenate((as_array(regions).reshape(-1, 5), true[:, :5]))
        if len(rows) and not 0 <= rows[:, 0].min() <= rows[:, 0].max() < self.param.proposal_target_param.num_img_per_batch:
            found = f"a region of image {rows[:, 0].max():g}"
            raise self.error(found, f"num_img_per_batch is {self.param.proposal_target_param.num_img_per_batch}")
        overlaps = boxes.overlaps(_halfopen(rows[:, 1:]), _halfopen(true[:, 1:5]))
        overlaps = np.where(rows[:, :1] == true[:, 0], overlaps, -1).astype(np.float32)
        matched = overlaps.argmax(1) if len(true) else np.zeros(len(rows), int)
        greatest = overlaps.max(1, initial=0)
        objects, others = self.sampled(greatest, true[matched, 6] != 0 if len(true) else np.zeros(len(rows), bool))
        needed = self.count - len(objects) - len(others)
        rows = np.concatenate((rows[objects], rows[others], self.random_boxes(true, needed)))
        return self.tops_of(rows, true[matched[objects]], greatest[objects], like=regions)

    def sampled(self, greatest: Floats, ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the regions taken as objects and as background, by their overlaps; sets `count`, S."""
        p = self.param.proposal_target_param
        objects = np.flatnonzero((greatest >= p.fg_thr) & ~ignored)
        is_background = (greatest >= p.bg_thr_lw) & (greatest < p.bg_thr_hg)
        others = np.flatnonzero(is_background)
        discarded = np.flatnonzero(~is_background & (greatest < p.fg_thr))
        self.count = max(1, len(objects) + len(others)) if p.batch_size == -1 else p.batch_size
        most = len(objects) if p.batch_size == -1 else math.floor(p.fg_fraction * p.batch_size + 0.5)
        if len(objects) > most:
            objects = objects[mode.generator.permutation(len(objects))[:most]]
        needed = self.count - len(objects)
        if len(others) > needed:
            return objects, others[mode.generator.permutation(len(others))[:needed]]
        return objects, np.concatenate((others, discarded[: needed - len(others)]))

    def random_boxes(self, true: Boxes, count: int) -> Boxes:
        """Random background (count, 5)."""
        p = self.param.proposal_target_param
        found: list[list[float]] = []
        for _ in range(_DRAWS):
            if len(found) == count:
                return np.array(found, np.float32).reshape(-1, 5)
            image = mode.generator.integers(p.num_img_per_batch)
            corner = [mode.generator.integers(extent - _SIDE) for extent in (p.img_width, p.img_height)]
            room = [extent - start for extent, start in zip((p.img_width, p.img_height), corner, strict=True)]
            sides = [max(mode.generator.integers(each), _SIDE) for each in room]
            box = [*corner, *(start + side - 1 for start, side in zip(corner, sides, strict=True))]
            own = true[true[:, 0] == image, 1:5]
            if boxes.overlaps(_halfopen(np.array([box], np.float32)), _halfopen(own)).max(initial=-1) < p.fg_thr:
                found.append([image, *box])
        raise self.error(f"no background in {_DRAWS} random boxes", "boxes that overlap no true box by fg_thr", "raise fg_thr")

    def tops_of(self, rows: Boxes, matched: Boxes, overlaps: Floats, like: Tensor) -> tuple[Tensor, ...]:
        """The tops of regions (S, 5), the first of which have the true boxes `matched`, overlapped so much."""
        p = self.param.proposal_target_param
        count, first = len(rows), len(matched)
        classes = np.zeros(count, np.float32)
        classes[:first] = matched[:, 5]
        aware = self.param.bbox_reg_param.cls_aware
        offsets = self.offsets(rows[:first, 1:], matched[:, 1:5])
        targets, weights = np.zeros((2, count, p.cls_num if aware else 2, 4), np.float32)
        for row, number in enumerate(matched[:, 5].astype(int)):
            if not 0 < number < p.cls_num:
                raise self.error(f"a true box of class {number}", f"cls_num is {p.cls_num}: classes go from 1 to {p.cls_num - 1}")
            place = number if aware else 1
            targets[row, place], weights[row, place] = offsets[row], 1
        boxes_of = np.zeros((count, 6), np.float32)
        boxes_of[:first] = np.concatenate((matched[:, 5:6], matched[:, 1:5], overlaps[:, None]), 1)
        samples = np.ones(count, np.float32)
        if p.iou_weighted:
            samples[:first] = overlaps
        if first and samples[:first].sum():
            samples[:first] *= p.fg_fraction * count / samples[:first].sum()
            samples[first:] *= (1 - p.fg_fraction) * count / max(1, count - first)
        tops = rows, classes, targets, weights, weights, boxes_of, samples
        return tuple(torch.from_numpy(top.reshape(count, -1, 1, 1).copy()).to(like) for top in tops[: len(self.param.top)])

    def offsets(self, regions: Boxes, truths: Boxes) -> Floats:
        """Normalised offsets (M, 4) of true boxes (M, 4) from regions (M, 4)."""
        own, real = _halfopen(regions), _halfopen(truths)
        sides, true_sides = own[:, 2:] - own[:, :2], real[:, 2:] - real[:, :2]
        shift = (real[:, :2] + true_sides / 2 - own[:, :2] - sides / 2) / sides
        offsets = np.concatenate((shift, np.log(true_sides / sides)), 1)
        result: Floats = (offsets - np.array(self.mean, np.float32)) / np.array(self.deviation, np.float32)
        return result

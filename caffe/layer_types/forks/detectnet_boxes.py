"""Built-in versions of DetectNet's Python layers: boxes from coverage and box maps, and their precision and recall.

As the modules caffe.layers.detectnet.clustering and caffe.layers.detectnet.mean_ap of NVIDIA's fork of Caffe. A list of boxes is
(N, 50, 5): x1, y1, x2, y2 and a number for each, rows of zeros after the last.
"""

import numpy as np
import torch
from torch import Tensor

from caffe.engine.layer import Layer, Shape
from caffe.layer_types import param_str
from caffe.layer_types.forks.detection import as_array
from caffe.layer_types.param_str import Setting
from caffe.numerics import elementary
from caffe.transforms import boxes
from caffe.transforms.boxes import Boxes

FARTHEST = 2.0**31
"""Corners are at most so far from the image, in pixels; predictions may be infinite."""
MAX_BOXES = 50
"""Rows for each image in a list of boxes."""
GRID = {name: Setting(param_str.COUNT) for name in ("image_size_x", "image_size_y", "stride")}
CLASSES = {"num_classes": Setting(param_str.COUNT, 1)}
MATCHED = 0.7
"""Intersection over union by which a detection matches a true box."""
TRUE_POSITIVE, FALSE_POSITIVE, MISSED = 1, 2, 3


def listed(rows: list[np.ndarray], width: int, least: int = MAX_BOXES) -> np.ndarray:
    """A list of boxes (N, `least` or more, width) from the rows of each image."""
    result = np.zeros((len(rows), max([least, *map(len, rows)]), width), np.float32)
    for image, own in enumerate(rows):
        result[image, : len(own)] = own
    return result


class _Cluster(Layer):
    """Base of the layers that turn maps into lists of boxes."""

    type = "Python"
    bottoms = (2, 2)
    tops = (1, None)
    differentiable_bottoms = ()
    known = GRID | CLASSES

    def setup(self, coverage: Shape, corners: Shape) -> None:
        self.settings = param_str.numbers(self, self.known)
        self.top_shapes(coverage, corners)

    def top_shapes(self, coverage: Shape, corners: Shape) -> list[Shape]:
        p, count = self.settings, len(self.param.top)
        self.require_maps(coverage)
        self.require_maps(corners)
        if not p.num_classes == coverage[1] == count:
            found = f"coverage of shape {coverage} and {count} tops"
            raise self.error(found, f"num_classes {p.num_classes} needs a channel and a top for each class")
        if corners[:2] != (coverage[0], 4) or corners[2:] != coverage[2:]:
            raise self.error(f"boxes of shape {corners}", f"4 channels of the shape of the coverage {coverage}")
        if min(p.image_size_x, p.image_size_y) < p.stride:
            found = f"an image of {p.image_size_x}×{p.image_size_y} pixels"
            raise self.error(found, f"it must be at least as large as the stride {p.stride}")
        return [(coverage[0], MAX_BOXES, 5)] * count

    def forward(self, coverage: Tensor, corners: Tensor) -> tuple[Tensor, ...]:
        maps, corner_maps = as_array(coverage), as_array(corners)
        tops = []
        for number in range(self.settings.num_classes):
            rows = [self.rows(self.placed(*image))[:MAX_BOXES] for image in zip(maps[:, number], corner_maps, strict=True)]
            tops.append(torch.from_numpy(listed(rows, 5)).to(coverage.device))
        return tuple(tops)

    def placed(self, coverage: np.ndarray, corners: np.ndarray) -> Boxes:
        """Boxes (B, 4) in pixels of the cells that are covered, by rows; their corners are relative to the cell's."""
        p = self.settings
        across, down = p.image_size_x // p.stride, p.image_size_y // p.stride
        y, x = np.nonzero(self.covered(coverage[:down, :across]))
        cell = np.array([p.image_size_x / across, p.image_size_y / down])
        return corners[:, y, x].T + np.stack([x, y, x, y], 1) * np.tile(cell, 2)

    def covered(self, coverage: np.ndarray) -> np.ndarray:
        """Which cells hold an object."""
        raise NotImplementedError

    def rows(self, placed: Boxes) -> np.ndarray:
        """The rows of an image, (R, 5)."""
        raise NotImplementedError


class ClusterGroundtruth(_Cluster):
    """The true boxes of each class: (coverage (N, C, H, W), boxes (N, 4, H, W) relative to their cells) → C lists (N, 50, 5).

    A box of each cell with a coverage above 0, each box once and as a float16 number; the fifth number is 0. At most 50 are
    listed. param_str: image_size_x, image_size_y, stride, num_classes (1), as in "1248,352,16,1". No gradient passes.
    Source: python/caffe/layers/detectnet/clustering.py of NVIDIA/caffe.
    """

    def covered(self, coverage: np.ndarray) -> np.ndarray:
        return coverage > 0

    def rows(self, placed: Boxes) -> np.ndarray:
        once = list(dict.fromkeys(map(tuple, placed)))
        return np.array([(*box, 0) for box in once], np.float16).reshape(-1, 5)


class ClusterDetections(_Cluster):
    """The boxes found of each class: (coverage (N, C, H, W), boxes (N, 4, H, W) relative to their cells) → C lists (N, 50, 5).

    The boxes of cells with a coverage of at least gridbox_cvg_threshold are grouped (`group`); a group's mean box is listed, as
    float16 numbers, with the logarithm of its number of boxes, if its height is at least min_height. Of more than 50, those of
    the largest groups are listed.
    param_str: image_size_x, image_size_y, stride, gridbox_cvg_threshold, gridbox_rect_threshold, gridbox_rect_eps, min_height,
    num_classes (1), as in "1248,352,16,0.6,3,0.02,22,1". No gradient passes.
    Source: python/caffe/layers/detectnet/clustering.py of NVIDIA/caffe.
    """

    known = GRID | {
        "gridbox_cvg_threshold": Setting(param_str.NUMBER),
        "gridbox_rect_threshold": Setting(param_str.WHOLE),
        "gridbox_rect_eps": Setting(param_str.NOT_NEGATIVE),
        "min_height": Setting(param_str.WHOLE),
        **CLASSES,
    }

    def covered(self, coverage: np.ndarray) -> np.ndarray:
        return coverage >= np.float32(self.settings.gridbox_cvg_threshold)

    def rows(self, placed: Boxes) -> np.ndarray:
        p = self.settings
        if not placed.any():
            return np.zeros((0, 5), np.float16)
        finite = np.nan_to_num(placed).clip(-FARTHEST, FARTHEST)
        whole = np.concatenate([finite[:, :2], finite[:, 2:] - finite[:, :2]], 1).astype(np.int64)
        means, counts = group(whole, p.gridbox_rect_threshold, p.gridbox_rect_eps)
        high = means[:, 3] >= p.min_height
        means, counts = means[high], counts[high]
        if len(means) > MAX_BOXES:
            means, counts = (values[np.argsort(-counts, kind="stable")] for values in (means, counts))
        confidence = elementary.log(torch.from_numpy(counts.astype(np.float64))).numpy()
        return np.concatenate([means[:, :2], means[:, :2] + means[:, 2:], confidence[:, None]], 1).astype(np.float16)


def group(rectangles: np.ndarray, threshold: int, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Groups of similar rectangles x, y, width, height (B, 4), integers: their means (G, 4), rounded, and counts (G,).

    Two are similar if none of their edges is further apart than eps times the mean of their smaller width and smaller height;
    similar ones, also through others, are one group, in the order of their first members. Groups of at most `threshold`
    rectangles are left out, and those inside another, extended by eps, that has more than 3 and more rectangles than they, or
    any if they have less than 3. With threshold 0 every rectangle is a group.
    Source: groupRectangles of OpenCV's cascadedetect.cpp.
    """
    if threshold == 0:
        return rectangles, np.ones(len(rectangles), np.int64)
    labels = _labels(rectangles, eps)
    counts = np.bincount(labels)
    sums = np.zeros((len(counts), 4), np.int64)
    np.add.at(sums, labels, rectangles)
    means = np.rint(sums.astype(np.float32) * (np.float32(1) / counts.astype(np.float32))[:, None]).astype(np.int64)
    large = counts > threshold
    means, counts = means[large], counts[large]
    first, last = means[:, :2], means[:, :2] + means[:, 2:]
    margin = np.rint(means[:, 2:] * eps).astype(np.int64)
    inside = (first[:, None] >= first - margin).all(-1) & (last[:, None] <= last + margin).all(-1)
    stronger = (counts > np.maximum(3, counts[:, None])) | (counts[:, None] < 3)
    dropped = (inside & stronger & ~np.eye(len(means), dtype=bool)).any(1)
    return means[~dropped], counts[~dropped]


def _labels(rectangles: np.ndarray, eps: float) -> np.ndarray:
    """The group of each rectangle, numbered in the order of their first members."""
    edges = np.concatenate([rectangles[:, :2], rectangles[:, :2] + rectangles[:, 2:]], 1)
    labels = np.full(len(rectangles), -1)
    for first in range(len(rectangles)):
        if labels[first] >= 0:
            continue
        labels[first] = number = labels.max() + 1
        waiting = [first]
        while waiting:
            this = waiting.pop()
            near = eps * np.minimum(rectangles[this, 2:], rectangles[:, 2:]).sum(1) * 0.5
            joined = np.flatnonzero((labels < 0) & (np.abs(edges - edges[this]) <= near[:, None]).all(1))
            labels[joined] = number
            waiting += joined.tolist()
    return labels


class ScoreDetections(Layer):
    """Which boxes are right: (true boxes (N, 50, 5), detections (N, 50, 5)) → (N, 50 or as many as needed, 5).

    The fifth number of a row is 1 for a detection that overlaps a true box by 0.7 or more (intersection over union), 2 for
    another detection, 3 for a true box without a detection. Each true box, in order, takes the first free detection. Rows of
    zeros are no boxes. No gradient passes.
    Source: python/caffe/layers/detectnet/mean_ap.py of NVIDIA/caffe.
    """

    type = "Python"
    bottoms = (2, 2)
    differentiable_bottoms = ()

    def setup(self, truths: Shape, detections: Shape) -> None:
        self.top_shapes(truths, detections)

    def top_shapes(self, truths: Shape, detections: Shape) -> list[Shape]:
        for shape in (truths, detections):
            if len(shape) != 3 or shape[2] != 5 or shape[0] != truths[0]:
                found = f"lists of boxes of shapes {truths} and {detections}"
                raise self.error(found, "(N, boxes, 5) for the same N images")
        return [(truths[0], MAX_BOXES, 5)]

    def forward(self, truths: Tensor, detections: Tensor) -> Tensor:
        images = zip(as_array(truths)[..., :4], as_array(detections)[..., :4], strict=True)
        rows = [self.scored(true[true.any(1)], found[found.any(1)]) for true, found in images]
        return torch.from_numpy(listed(rows, 5)).to(truths.device)

    @staticmethod
    def scored(truths: Boxes, detections: Boxes) -> np.ndarray:
        """The rows of an image: right detections, wrong ones, missed true boxes."""
        fits = boxes.overlaps(truths, detections) >= np.float32(MATCHED)
        met, right = np.zeros(len(truths), bool), np.zeros(len(detections), bool)
        for truth, row in enumerate(fits):
            free = np.flatnonzero(row & ~right)
            if len(free):
                met[truth] = right[free[0]] = True
        kinds = (detections[right], TRUE_POSITIVE), (detections[~right], FALSE_POSITIVE), (truths[~met], MISSED)
        return np.concatenate([np.insert(part, 4, kind, 1) for part, kind in kinds])


class MeanAveragePrecision(Layer):
    """Precision and recall in percent: (boxes (N, B, 5) as ScoreDetections marks them) → mAP (1,), precision (1,), recall (1,).

    DetectNet's mAP is the product of precision and recall, in percent, of one batch; 0 / 0 is 0. The param_str is not used.
    Source: class mAP of python/caffe/layers/detectnet/mean_ap.py of NVIDIA/caffe.
    """

    type = "Python"
    tops = (3, 3)
    differentiable_bottoms = ()

    def setup(self, marked: Shape) -> None:
        self.top_shapes(marked)

    def top_shapes(self, marked: Shape) -> list[Shape]:
        if len(marked) != 3 or marked[2] != 5:
            raise self.error(f"a bottom of shape {marked}", "marked boxes: (N, boxes, 5)")
        return [(1,)] * 3

    def forward(self, marked: Tensor) -> tuple[Tensor, ...]:
        kinds = as_array(marked)[..., 4]
        right, wrong, missed = (int((kinds == kind).sum()) for kind in (TRUE_POSITIVE, FALSE_POSITIVE, MISSED))
        precision, recall = (100 * right / max(1, right + others) for others in (wrong, missed))
        return tuple(torch.tensor([value], device=marked.device) for value in (precision * recall / 100, precision, recall))

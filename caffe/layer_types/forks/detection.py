"""SSD's layers around a detector (Liu et al. 2016): where boxes are looked for, which are found, and which of them are right."""

from __future__ import annotations

import math

import numpy as np
import torch

from caffe.engine.layer import Layer, register
from caffe.transforms import boxes
from caffe.transforms.detections import ResultFiles, in_pixels, read_sizes


@register("PriorBox")
class PriorBox(Layer):
    """Boxes around each position of a map: (map (N, C, H, W), image (N, C, H', W')) → (1, 2, H · W · boxes · 4).

    First the boxes, as shares of the image, position by position, for each min_size: a square of that size; a square of
    √(min_size · max_size); one of the size of the first for each aspect ratio. Then their variances. No gradient.
    """

    bottoms = (2, 2)
    differentiable_bottoms = ()
    extents: tuple[int, ...] | None = None
    """Those of map and image that `priors` are for."""

    def setup(self, shape, image):
        p = self.param.prior_box_param
        if len(shape) != 4 or len(image) != 4:
            raise self.error(f"bottoms of shapes {shape} and {image}", "both have 4 axes (N, C, H, W)")
        if not p.min_size or min(p.min_size) < 1:
            raise self.error("no min_size" if not p.min_size else f"min_size {min(p.min_size):g}", "it is at least 1 pixel")
        if p.max_size and len(p.max_size) != len(p.min_size):
            raise self.error(f"{len(p.max_size)} values of max_size", f"there are {len(p.min_size)} of min_size")
        for low, high in zip(p.min_size, p.max_size, strict=False):
            if high <= low:
                raise self.error(f"max_size {high:g} for min_size {low:g}", "it is larger")
        if len(p.variance) not in (0, 1, 4) or min(p.variance, default=1) <= 0:
            raise self.error(f"variance {', '.join(f'{value:g}' for value in p.variance)}", "it is one or four numbers above 0")
        if min(p.aspect_ratio, default=1) <= 0:
            raise self.error(f"aspect_ratio {min(p.aspect_ratio):g}", "it is larger than 0")
        self.image = self.pair("img_size", "img_h", "img_w")
        self.step = self.pair("step", "step_h", "step_w")
        self.variance = np.resize(np.array(p.variance or [0.1], np.float32), 4)
        self.sizes = self.boxes()

    def pair(self, both: str, height: str, width: str) -> tuple[float, float] | None:
        """Two extents, given by one field or by two; None where they are not."""
        p = self.param.prior_box_param
        if p.HasField(both) and (p.HasField(height) or p.HasField(width)):
            raise self.error(f"both {both} and {height} or {width}", "one form or the other is wanted")
        if not any(p.HasField(name) for name in (both, height, width)):
            return None
        pair = (getattr(p, both),) * 2 if p.HasField(both) else (getattr(p, height), getattr(p, width))
        if min(pair) <= 0:
            raise self.error(f"{both} {pair}", "both extents are larger than 0")
        return pair

    def boxes(self) -> np.ndarray:
        """Width and height of each box at a position, in pixels, (boxes, 2)."""
        p = self.param.prior_box_param
        ratios: list[float] = [1.0]
        for ratio in p.aspect_ratio:
            if all(abs(ratio - known) >= 1e-6 for known in ratios):
                ratios += [ratio, 1 / ratio] if p.flip else [ratio]
        roots = np.sqrt(np.array([ratio for ratio in ratios if abs(ratio - 1) >= 1e-6], np.float32))
        sizes = []
        for index, size in enumerate(map(int, p.min_size)):  # SSD takes whole pixels
            sizes.append((size, size))
            if p.max_size:
                sizes.append((np.sqrt(size * int(p.max_size[index])),) * 2)
            sizes += [(size * root, size / root) for root in roots]
        return np.array(sizes, np.float32)

    def top_shapes(self, shape, image):
        return [(1, 2, shape[2] * shape[3] * len(self.sizes) * 4)]

    def forward(self, x, image):
        height, width = x.shape[2:]
        if self.extents != (*x.shape[2:], *image.shape[2:]):
            self.extents = (*x.shape[2:], *image.shape[2:])
            self.priors = torch.from_numpy(self.place(height, width, self.image or image.shape[2:])).to(x)
        return self.priors.clone()

    def place(self, height: int, width: int, image: tuple[float, float]) -> np.ndarray:
        """Boxes and variances of a map of these extents in an image of those."""
        p = self.param.prior_box_param
        steps = self.step or (np.float32(image[0]) / np.float32(height), np.float32(image[1]) / np.float32(width))
        down, across = (
            (np.arange(extent, dtype=np.float32) + np.float32(p.offset)) * np.float32(step)
            for extent, step in zip((height, width), steps, strict=True)
        )
        centres = np.stack(np.broadcast_arrays(across, down[:, None]), -1)[:, :, None].astype(float)
        corners = np.concatenate((centres - self.sizes / 2, centres + self.sizes / 2), -1) / np.tile(image[::-1], 2)
        if p.clip:
            corners = corners.clip(0, 1)
        corners = corners.astype(np.float32).reshape(-1, 4)
        return np.stack((corners, np.broadcast_to(self.variance, corners.shape))).reshape(1, 2, -1)


def prior_arrays(layer: Layer, priors: torch.Tensor, code: int) -> tuple[np.ndarray, np.ndarray]:
    """The boxes (P, 4) and variances (P, 4) of a PriorBox's top; an error where a code needs a size that a box does not have."""
    corners, variances = priors.detach().float().cpu().numpy().reshape(2, -1, 4)
    if code != boxes.CODES.CORNER and (corners[:, 2:] <= corners[:, :2]).any():
        raise layer.error("a prior without width or height", do="check the clip and the steps of the PriorBox layers")
    return corners, variances


def check_counts(layer: Layer, offsets, scores, priors, boxes_each: int, classes: int) -> None:
    """That predictions of boxes and of classes are of the same images and priors, by their shapes."""
    if len(priors) < 3 or priors[:2] != (1, 2) or math.prod(priors) % 8:
        raise layer.error(f"priors of shape {priors}", "PriorBox gives (1, 2, priors · 4)")
    count = math.prod(priors) // 8
    if offsets[0] != scores[0]:
        raise layer.error(f"{offsets[0]} images of boxes and {scores[0]} of scores", "they are of the same images")
    for what, values, each in (("boxes", offsets, 4 * boxes_each), ("scores", scores, classes)):
        found = math.prod(values[1:])
        if found != count * each:
            raise layer.error(f"{found} values of {what} for each image", f"{count} priors need {count * each}")


@register("DetectionOutput")
class DetectionOutput(Layer):
    """What is found in the images: (offsets, class probabilities, priors[, image]) → (1, 1, boxes, 7), an image after the other.

    offsets (N, P · 4, or P · classes · 4 where share_location is false), probabilities (N, P · classes), priors (1, 2, P · 4).
    A row is image, class, score, xmin, ymin, xmax, ymax, the box as shares of the image. For each class, boxes are taken by
    their score unless they overlap a better one. Where nothing is found, a row for each image that is -1 but for its number.
    save_output_param: the boxes also go into files, see `caffe.transforms.detections`.
    """

    bottoms = (3, 4)
    differentiable_bottoms = ()

    def setup(self, offsets, scores, priors, image=None):
        p = self.param.detection_output_param
        if p.num_classes < 1:
            raise self.error("num_classes is not given", "it counts the background, too")
        if p.nms_param.nms_threshold < 0 or not 0 < p.nms_param.eta <= 1:
            raise self.error(
                f"nms_threshold {p.nms_param.nms_threshold:g} and eta {p.nms_param.eta:g}",
                "the threshold is not below 0, and eta above 0 and not above 1",
            )
        if p.visualize:
            raise self.error("visualize: true", "boxes are not drawn here", "draw the rows of the top on the images in Python")
        self.threshold = p.confidence_threshold if p.HasField("confidence_threshold") else -np.inf
        self.candidates = p.nms_param.top_k if p.nms_param.HasField("top_k") else -1
        self.files = None
        save = p.save_output_param
        if save.output_directory and save.label_map_file and save.name_size_file:
            labels = [label for label in range(p.num_classes) if label != p.background_label_id]
            self.files = ResultFiles(save, labels, self.where)

    def top_shapes(self, offsets, scores, priors, image=None):
        p = self.param.detection_output_param
        check_counts(self, offsets, scores, priors, 1 if p.share_location else p.num_classes, p.num_classes)
        return [(1, 1, 1, 7)]  # until it is known how many there are

    def forward(self, offsets, scores, priors, image=None):
        p = self.param.detection_output_param
        corners, variances = prior_arrays(self, priors, p.code_type)
        count = scores.shape[0]
        offsets = offsets.detach().float().cpu().numpy().reshape(count, len(corners), -1, 4).swapaxes(1, 2)
        found = boxes.decode(
            offsets, corners, np.ones_like(variances) if p.variance_encoded_in_target else variances, p.code_type
        )
        probabilities = scores.detach().float().cpu().numpy().reshape(count, len(corners), p.num_classes).swapaxes(1, 2)
        rows = [self.of_image(number, found[number], probabilities[number]) for number in range(count)]
        if self.files:
            for own in rows:
                self.files.add(own[:, 1:])
        rows = np.concatenate(rows)
        if not len(rows):
            rows = np.full((count, 7), -1, np.float32)
            rows[:, 0] = np.arange(count)
        return torch.from_numpy(rows[None, None]).to(scores)

    def of_image(self, number: int, found: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """The rows of one image, class after class: from boxes (1 or classes, P, 4) and scores (classes, P)."""
        p = self.param.detection_output_param
        rows = [np.empty((0, 7), np.float32)]
        for label in range(p.num_classes):
            if label == p.background_label_id:
                continue
            places = np.flatnonzero(scores[label] > np.float32(self.threshold))
            places = places[np.argsort(-scores[label, places], kind="stable")]
            places = places[: self.candidates] if self.candidates > -1 else places
            own = found[0 if p.share_location else label, places]
            kept = boxes.suppress(own, p.nms_param.nms_threshold, p.nms_param.eta)
            names = np.tile(np.array([number, label], np.float32), (len(kept), 1))
            rows.append(np.hstack((names, scores[label, places[kept], None], own[kept])))
        rows = np.concatenate(rows)
        if -1 < p.keep_top_k < len(rows):
            best = np.argsort(-rows[:, 2], kind="stable")[: p.keep_top_k]
            rows = rows[best[np.argsort(rows[best, 1], kind="stable")]]
        return rows


@register("DetectionEvaluate")
class DetectionEvaluate(Layer):
    """Which detections are right: (DetectionOutput's rows, true boxes (1, 1, boxes, 8)) → (1, 1, classes + detections, 5).

    For each class but the background a row -1, class, number of true boxes, -1, -1. Then for each detection image, class, score,
    1 if it is right, 1 if it is wrong: a true box is found by the best detection whose overlap with it is the greatest and at
    least overlap_threshold. Without evaluate_difficult_gt, what finds a difficult box is neither. No gradient.
    """

    bottoms = (2, 2)
    differentiable_bottoms = ()

    def setup(self, found, truths):
        p = self.param.detection_evaluate_param
        if p.num_classes < 1:
            raise self.error("num_classes is not given", "it counts the background, too")
        if p.overlap_threshold <= 0:
            raise self.error(f"overlap_threshold {p.overlap_threshold:g}", "it is larger than 0")
        self.sizes = read_sizes(p.name_size_file) if p.name_size_file else []
        self.images = 0

    def classes(self) -> list[int]:
        """All but the background."""
        p = self.param.detection_evaluate_param
        return [label for label in range(p.num_classes) if label != p.background_label_id]

    def top_shapes(self, found, truths):
        if math.prod(found) % 7 or math.prod(truths) % 8:
            raise self.error(f"bottoms of shapes {found} and {truths}", "their rows have 7 and 8 values")
        return [(1, 1, len(self.classes()) + 1, 5)]  # until it is known how many are found

    def forward(self, found, truths):
        p = self.param.detection_evaluate_param
        detections = found.detach().float().cpu().numpy().reshape(-1, 7)
        true_boxes = truths.detach().float().cpu().numpy().reshape(-1, 8)
        true_boxes = true_boxes[true_boxes[:, 0] != -1]
        counted = true_boxes if p.evaluate_difficult_gt else true_boxes[true_boxes[:, 7] == 0]
        rows = [np.array([[-1, label, (counted[:, 1] == label).sum(), -1, -1] for label in self.classes()], np.float32)]
        detections = detections[detections[:, 1] != -1]
        for image in np.unique(detections[:, 0]):
            own, true = detections[detections[:, 0] == image], true_boxes[true_boxes[:, 0] == image]
            if self.sizes:
                _, height, width = self.sizes[self.images]
                self.images = (self.images + 1) % len(self.sizes)
                own, true = own.copy(), true.copy()
                for corners in (own[:, 3:], true[:, 3:7]):
                    corners[:] = in_pixels(corners.astype(np.float64), height, width, p)
            for label in np.unique(own[:, 1]):
                of_class = own[own[:, 1] == label]
                rows.append(self.judged(of_class[np.argsort(-of_class[:, 2], kind="stable")], true[true[:, 1] == label]))
        return torch.from_numpy(np.concatenate(rows)[None, None]).to(found)

    def judged(self, detections: np.ndarray, truths: np.ndarray) -> np.ndarray:
        """Rows of detections of one class in one image, best first."""
        p = self.param.detection_evaluate_param
        rows = np.hstack((detections[:, [0, 1, 2]], np.tile(np.array([0, 1], np.float32), (len(detections), 1))))
        if not len(truths):
            return rows
        # In pixels, the last one belongs to a box.
        last = np.array([0, 0, 1, 1], np.float32) if self.sizes else np.float32(0)
        overlaps = boxes.overlaps(detections[:, 3:] + last, truths[:, 3:7] + last)
        seen = set()
        for row, nearest in enumerate(overlaps.argmax(1)):
            if overlaps[row, nearest] < np.float32(p.overlap_threshold):
                continue
            if truths[nearest, 7] and not p.evaluate_difficult_gt:
                rows[row, 3:] = 0
            elif nearest not in seen:
                rows[row, 3:] = 1, 0
                seen.add(nearest)
        return rows

"""SSD's detection layers (Liu et al. 2016): PriorBox, DetectionOutput, DetectionEvaluate."""

import math

import numpy as np
import torch
from torch import Tensor

from caffe.engine.layer import Layer, Shape, register
from caffe.transforms import boxes
from caffe.transforms.boxes import Boxes
from caffe.transforms.detections import ResultFiles, in_pixels, read_sizes

COUNTS_BACKGROUND = "it must be at least 1, and counts the background"


@register("PriorBox")
class PriorBox(Layer):
    """Prior boxes at each position of a feature map: (map (N, C, H, W), image (N, C, H', W')) → (1, 2, H · W · boxes · 4).

    First the boxes, as fractions of the image, position by position, for each min_size: a square of that size; a square of
    √(min_size · max_size); one of the first's area for each aspect ratio. Or those of `width` and `height`, in pixels
    (OpenVINO's PriorBoxClustered). Then their variances. No gradient. vertical_offsets (TextBoxes, Liao et al. 2017): each box of
    the sizes is followed by the same half a step below; a net read from a prototxt has it where the predictions are for so many.
    """

    bottoms = (2, 2)
    differentiable_bottoms = ()
    extents: tuple[int, ...] | None = None
    """Height and width of the map and of the image that `priors` were computed for."""

    def setup(self, shape: Shape, image: Shape) -> None:
        p = self.param.prior_box_param
        if len(shape) != 4 or len(image) != 4:
            raise self.error(f"bottoms of shapes {shape} and {image}", "both must have 4 axes (N, C, H, W)")
        if p.width or p.height:
            if len(p.width) != len(p.height) or min((*p.width, *p.height)) <= 0:
                raise self.error(f"width {list(p.width)} and height {list(p.height)}", "one of each for a box, larger than 0")
            if p.min_size or p.max_size or p.aspect_ratio:
                raise self.error("width and height, and min_size, max_size or aspect_ratio", "only one form may be given")
        elif not p.min_size or min(p.min_size) < 1:
            raise self.error("no min_size" if not p.min_size else f"min_size {min(p.min_size):g}", "it must be at least 1 pixel")
        if p.max_size and len(p.max_size) != len(p.min_size):
            raise self.error(f"{len(p.max_size)} values of max_size", f"there are {len(p.min_size)} of min_size")
        for low, high in zip(p.min_size, p.max_size, strict=False):
            if high <= low:
                raise self.error(f"max_size {high:g} for min_size {low:g}", "it must be larger")
        if len(p.variance) not in (0, 1, 4) or min(p.variance, default=1) <= 0:
            raise self.error(f"variance {', '.join(f'{value:g}' for value in p.variance)}", "give one or four numbers above 0")
        if min(p.aspect_ratio, default=1) <= 0:
            raise self.error(f"aspect_ratio {min(p.aspect_ratio):g}", "it must be larger than 0")
        self.image = self.pair("img_size", "img_h", "img_w")
        self.step = self.pair("step", "step_h", "step_w")
        self.variance = np.resize(np.array(p.variance or [0.1], np.float32), 4)
        self.sizes = self.boxes()

    def pair(self, both: str, height: str, width: str) -> tuple[float, float] | None:
        """Two extents (height, width), given by one field or by two; None if neither is given."""
        p = self.param.prior_box_param
        if p.HasField(both) and (p.HasField(height) or p.HasField(width)):
            raise self.error(f"both {both} and {height} or {width}", "only one form may be given")
        if not any(p.HasField(name) for name in (both, height, width)):
            return None
        pair = (getattr(p, both),) * 2 if p.HasField(both) else (getattr(p, height), getattr(p, width))
        if min(pair) <= 0:
            raise self.error(f"{both} {pair}", "both must be larger than 0")
        return pair

    def boxes(self) -> np.ndarray:
        """Width and height of each box at a position, in pixels, (boxes, 2)."""
        p = self.param.prior_box_param
        if p.width:
            return np.array([p.width, p.height], np.float32).T
        ratios: list[float] = [1.0]
        for ratio in p.aspect_ratio:
            if all(abs(ratio - known) >= 1e-6 for known in ratios):
                ratios += [ratio, 1 / ratio] if p.flip else [ratio]
        roots = np.sqrt(np.array([ratio for ratio in ratios if abs(ratio - 1) >= 1e-6], np.float32))
        sizes: list[tuple[float, float]] = []
        for index, size in enumerate(map(int, p.min_size)):  # SSD truncates to whole pixels
            sizes.append((size, size))
            if p.max_size:
                sizes.append((np.sqrt(size * int(p.max_size[index])),) * 2)
            sizes += [(size * root, size / root) for root in roots]
        return np.repeat(np.array(sizes, np.float32), 1 + p.vertical_offsets, 0)

    def top_shapes(self, shape: Shape, image: Shape) -> list[Shape]:
        return [(1, 2, shape[2] * shape[3] * len(self.sizes) * 4)]

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        extents = (*x.shape[2:], *image.shape[2:])
        if extents != self.extents:
            self.extents = extents
            self.priors = torch.from_numpy(self.place(extents[:2], self.image or extents[2:])).to(x)
        return self.priors.clone()

    def place(self, extents: Shape, image: tuple[float, ...]) -> np.ndarray:
        """Boxes and variances, (1, 2, H · W · boxes · 4), of a map (height, width) for an image (height, width)."""
        p = self.param.prior_box_param
        steps = np.array(self.step or np.array(image, np.float32) / np.array(extents, np.float32), np.float32)
        down, across = (
            (np.arange(extent, dtype=np.float32) + np.float32(p.offset)) * step
            for extent, step in zip(extents, steps, strict=True)
        )
        centres = np.stack(np.broadcast_arrays(across, down[:, None]), -1)[:, :, None].astype(float)
        if p.vertical_offsets:
            centres = centres + np.array([[0, 0], [0, steps[0] / 2]] * (len(self.sizes) // 2))
        corners = np.concatenate((centres - self.sizes / 2, centres + self.sizes / 2), -1) / np.tile(image[::-1], 2)
        if p.clip:
            corners = corners.clip(0, 1)
        corners = corners.astype(np.float32).reshape(-1, 4)
        return np.stack((corners, np.broadcast_to(self.variance, corners.shape))).reshape(1, 2, -1)


def foreground(classes: int, background: int) -> list[int]:
    """All classes except the background."""
    return [label for label in range(classes) if label != background]


def as_array(values: Tensor) -> np.ndarray:
    """The values, without their gradient, as a float32 array."""
    return values.detach().float().cpu().numpy()


def prior_arrays(layer: Layer, priors: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The boxes (P, 4) and variances (P, 4) of a PriorBox's top; raises LayerError if the code divides by a side that is 0."""
    corners, variances = as_array(priors).reshape(2, -1, 4)
    code = layer.settings_of(layer.param).code_type
    if code != boxes.CODES.CORNER and (corners[:, 2:] <= corners[:, :2]).any():
        raise layer.error("a prior without width or height", do="check the clip and the steps of the PriorBox layers")
    return corners, variances


def check_counts(layer: Layer, offsets: Shape, scores: Shape, priors: Shape) -> None:
    """Raise LayerError unless the shapes of box and class predictions fit the same images and priors."""
    if len(priors) < 3 or priors[:2] != (1, 2) or math.prod(priors) % 8:
        raise layer.error(f"priors of shape {priors}", "PriorBox gives (1, 2, priors · 4)")
    p = layer.settings_of(layer.param)
    count = math.prod(priors) // 8
    if offsets[0] != scores[0]:
        raise layer.error(f"{offsets[0]} images of boxes and {scores[0]} of scores", "they must be of the same images")
    of_boxes = 4 if p.share_location else 4 * p.num_classes
    for what, values, each in (("boxes", offsets, of_boxes), ("scores", scores, p.num_classes)):
        if math.prod(values[1:]) != count * each:
            raise layer.error(f"{math.prod(values[1:])} values of {what} for each image", f"{count} priors need {count * each}")


def check_refinement(layer: Layer, images: int, priors: Shape, objectness: Shape, *refinement: Shape) -> None:
    """Raise LayerError unless RefineDet's probabilities and offsets of an object at each prior fit the images and priors."""
    count = math.prod(priors) // 8
    for what, shape, each in zip(
        ("probabilities of objects", "offsets of priors"), (objectness, *refinement), (2, 4), strict=False
    ):
        if shape[0] != images or math.prod(shape[1:]) != each * count:
            raise layer.error(f"{what} of shape {shape}", f"{images} images with {count} priors need ({images}, {each * count})")
    if refinement and not layer.settings_of(layer.param).share_location:
        raise layer.error("refined priors with share_location: false", "only shared locations are refined")


def refined(corners: Boxes, variances: Boxes, offsets: Tensor, code: int) -> Boxes:
    """The priors of each image, (N, P, 4), moved by RefineDet's offsets (N, P · 4)."""
    return boxes.decode(as_array(offsets).reshape(-1, *corners.shape), corners, variances, code)


@register("DetectionOutput")
class DetectionOutput(Layer):
    """Decode predictions and apply non-maximum suppression: (offsets, probabilities, priors[, image]) → (1, 1, boxes, 7).

    offsets (N, P · 4, or P · classes · 4 where share_location is false), probabilities (N, P · classes), priors (1, 2, P · 4).
    A row is image, class, score, xmin, ymin, xmax, ymax, the box in fractions of the image; sorted by image. For each class,
    boxes are kept in the order of their scores unless they overlap one kept before; with clip (OpenCV's), they are cut at the
    image's edges first. Without any detection, the top has one row for each image: its index, then -1. save_output_param also
    writes detections to files, see `caffe.transforms.detections`.
    RefineDet's (Zhang et al. 2018) fourth bottom (N, P · 2) has the probabilities of background and object at each prior:
    where the latter is below objectness_score, all classes but the first have the score 0. Its fifth, (N, P · 4), has offsets
    that move the priors before the boxes are decoded.
    """

    bottoms = (3, 5)
    differentiable_bottoms = ()

    def setup(self, offsets: Shape, scores: Shape, priors: Shape, *more: Shape) -> None:
        p = self.param.detection_output_param
        self.require_positive("num_classes", expected=COUNTS_BACKGROUND)
        if p.nms_param.nms_threshold < 0 or not 0 < p.nms_param.eta <= 1:
            raise self.error(
                f"nms_threshold {p.nms_param.nms_threshold:g} and eta {p.nms_param.eta:g}",
                "the threshold must be at least 0, and eta above 0 and at most 1",
            )
        if p.visualize:
            raise self.error("visualize: true", "it is not supported", "draw the rows of the top on the images in Python")
        self.threshold = p.confidence_threshold if p.HasField("confidence_threshold") else -np.inf
        self.candidates = p.nms_param.top_k if p.nms_param.HasField("top_k") and p.nms_param.top_k > -1 else None
        self.files: ResultFiles | None = None
        save = p.save_output_param
        if save.output_directory and save.label_map_file and save.name_size_file:
            self.files = ResultFiles(save, foreground(p.num_classes, p.background_label_id), self.where)

    def top_shapes(self, offsets: Shape, scores: Shape, priors: Shape, *more: Shape) -> list[Shape]:
        check_counts(self, offsets, scores, priors)
        # A fourth bottom is RefineDet's, or SSD's image, which only the fork's windows need.
        self.refines = len(more) > 1 or (len(more) == 1 and math.prod(more[0][1:]) == math.prod(priors) // 4)
        if self.refines:
            check_refinement(self, scores[0], priors, *more)
        return [(1, 1, 1, 7)]  # a placeholder: `forward` knows how many there are

    def forward(self, offsets: Tensor, scores: Tensor, priors: Tensor, *more: Tensor) -> Tensor:
        p = self.param.detection_output_param
        corners, variances = prior_arrays(self, priors)
        count = scores.shape[0]
        if p.variance_encoded_in_target:
            variances = np.ones_like(variances)
        encoded = as_array(offsets).reshape(count, len(corners), -1, 4).swapaxes(1, 2)
        probabilities = as_array(scores).reshape(count, len(corners), p.num_classes)
        if self.refines:
            hopeless = as_array(more[0]).reshape(count, -1, 2)[:, :, 1] < np.float32(p.objectness_score)
            first = np.eye(1, p.num_classes, dtype=np.float32)
            probabilities = np.where(hopeless[:, :, None], first, probabilities)
        if len(more) > 1:
            corners = refined(corners, variances, more[1], p.code_type)[:, None]
        decoded = boxes.decode(encoded, corners, variances, p.code_type)
        if p.clip:
            decoded = decoded.clip(0, 1)
        by_image = [self.detect(index, decoded[index], probabilities[index].T) for index in range(count)]
        if self.files:
            for own in by_image:
                self.files.add(own[:, 1:])
        rows = np.concatenate(by_image)
        if not len(rows):
            rows = np.full((count, 7), -1, np.float32)
            rows[:, 0] = np.arange(count)
        return torch.from_numpy(rows[None, None]).to(scores)

    def detect(self, image: int, decoded: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """The rows of an image, class by class, from boxes (1 or classes, P, 4) and scores (classes, P)."""
        p = self.param.detection_output_param
        by_class = [np.empty((0, 7), np.float32)]
        for label in foreground(p.num_classes, p.background_label_id):
            places = np.flatnonzero(scores[label] > np.float32(self.threshold))
            places = places[np.argsort(-scores[label, places], kind="stable")][: self.candidates]
            own = decoded[0 if p.share_location else label, places]
            kept = boxes.suppress(own, p.nms_param.nms_threshold, p.nms_param.eta)
            names = np.tile(np.array([image, label], np.float32), (len(kept), 1))
            by_class.append(np.hstack((names, scores[label, places[kept], None], own[kept])))
        rows = np.concatenate(by_class)
        if -1 < p.keep_top_k < len(rows):
            best = np.argsort(-rows[:, 2], kind="stable")[: p.keep_top_k]
            rows = rows[best[np.argsort(rows[best, 1], kind="stable")]]
        return rows


@register("DetectionEvaluate")
class DetectionEvaluate(Layer):
    """Match detections to ground truth: (DetectionOutput's rows, true boxes (1, 1, boxes, 8)) → (1, 1, classes + detections, 5).

    For each class but the background a row -1, class, number of true boxes, -1, -1. Then for each detection image, class, score,
    1 if it is a true positive, 1 if a false positive. A true positive is the detection of highest score whose greatest overlap is
    with that box and at least overlap_threshold; one of a difficult box is neither without evaluate_difficult_gt. No gradient.
    """

    bottoms = (2, 2)
    differentiable_bottoms = ()

    def setup(self, results: Shape, truths: Shape) -> None:
        p = self.param.detection_evaluate_param
        self.require_positive("num_classes", expected=COUNTS_BACKGROUND)
        if p.overlap_threshold <= 0:
            raise self.error(f"overlap_threshold {p.overlap_threshold:g}", "it must be larger than 0")
        self.classes = foreground(p.num_classes, p.background_label_id)
        self.sizes = read_sizes(p.name_size_file) if p.name_size_file else []
        self.images = 0

    def top_shapes(self, results: Shape, truths: Shape) -> list[Shape]:
        if math.prod(results) % 7 or math.prod(truths) % 8:
            raise self.error(f"bottoms of shapes {results} and {truths}", "their rows must have 7 and 8 values")
        return [(1, 1, len(self.classes) + 1, 5)]  # a placeholder: `forward` knows how many there are

    def forward(self, results: Tensor, truths: Tensor) -> Tensor:
        p = self.param.detection_evaluate_param
        detections, true_boxes = as_array(results).reshape(-1, 7), as_array(truths).reshape(-1, 8)
        true_boxes = true_boxes[true_boxes[:, 0] != -1]
        counted = true_boxes if p.evaluate_difficult_gt else true_boxes[true_boxes[:, 7] == 0]
        rows = [np.array([[-1, label, (counted[:, 1] == label).sum(), -1, -1] for label in self.classes], np.float32)]
        detections = detections[detections[:, 1] != -1]
        for image in np.unique(detections[:, 0]):
            own, true = detections[detections[:, 0] == image], true_boxes[true_boxes[:, 0] == image]
            if self.sizes:
                _, height, width = self.sizes[self.images]
                self.images = (self.images + 1) % len(self.sizes)
                for corners in (own[:, 3:], true[:, 3:7]):
                    corners[:] = in_pixels(corners.astype(np.float64), height, width, p)
            for label in np.unique(own[:, 1]):
                of_class = own[own[:, 1] == label]
                rows.append(self.evaluate(of_class[np.argsort(-of_class[:, 2], kind="stable")], true[true[:, 1] == label]))
        return torch.from_numpy(np.concatenate(rows)[None, None]).to(results)

    def evaluate(self, detections: np.ndarray, truths: np.ndarray) -> np.ndarray:
        """The top's rows for detections of one class in one image, best first."""
        p = self.param.detection_evaluate_param
        rows = np.hstack((detections[:, [0, 1, 2]], np.tile(np.array([0, 1], np.float32), (len(detections), 1))))
        if not len(truths):
            return rows
        # In pixels, a box includes its last row and column.
        last = np.array([0, 0, 1, 1], np.float32) if self.sizes else np.float32(0)
        overlaps = boxes.overlaps(detections[:, 3:] + last, truths[:, 3:7] + last)
        seen: set[int] = set()
        for row, nearest in enumerate(overlaps.argmax(1)):
            if overlaps[row, nearest] < np.float32(p.overlap_threshold):
                continue
            if truths[nearest, 7] and not p.evaluate_difficult_gt:
                rows[row, 3:] = 0
            elif nearest not in seen:
                rows[row, 3:] = 1, 0
                seen.add(nearest)
        return rows

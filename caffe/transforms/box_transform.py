"""SSD's augmentation of images with boxes (Liu et al. 2016): colour distortion, expansion, crops, resizing, mirroring.

An image is height × width × channels, uint8, BGR. Truths are rows of label, instance, xmin, ymin, xmax, ymax, difficult, float32,
the corners in fractions of the image.
"""

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from caffe.errors import Error
from caffe.formats.stored import read_mean
from caffe.numerics.generator import Generator
from caffe.proto import caffe_pb2
from caffe.transforms import boxes
from caffe.transforms.boxes import Boxes
from caffe.transforms.resizing import RESIZE, Resizing
from caffe.transforms.transform import mean_values

OF_OTHER_FORKS = frozenset((*range(20101, 20120), *range(20501, 20504)))
"""Field numbers of DeepLab's, NVIDIA's, yjxiong's and Intel's fields, which know no boxes."""
WHOLE = np.array([0, 0, 1, 1], np.float32)
JITTERED = (0.2, 0.4)
"""Probabilities that a crop of yolo_data_jitter is the whole image, and that it is that or jittered by at most half."""
CORNERS = np.s_[:, 2:6]


class BoxTransformer:
    """Applies a TransformationParameter with SSD's fields, and the samplers or the jitter of an AnnotatedDataParameter.

    jitter  yolo_data_jitter, not used with samplers
    """

    def __init__(
        self,
        param: caffe_pb2.TransformationParameter,
        samplers: Sequence[caffe_pb2.BatchSampler],
        phase: int,
        where: str,
        rng: Generator,
        jitter: float = 0,
    ):
        if param.mean_file and param.mean_value:
            raise Error(where, "both mean_file and mean_value", "only one may be given")
        if param.crop_size and (param.crop_h or param.crop_w):
            raise Error(where, "both crop_size and crop_h or crop_w", "only one form may be given")
        if param.HasField("noise_param"):
            raise Error(where, "noise_param", "SSD's noise is not supported", "leave it out")
        if param.HasField("augmentation_param"):
            raise Error(where, "augmentation_param", "it does not move boxes", "give distort_param, expand_param and samplers")
        if others := [field.name for field, _ in param.ListFields() if field.number in OF_OTHER_FORKS]:
            raise Error(where, f"transform_param has {others[0]}", "AnnotatedData does not apply it", "leave it out")
        policies = [Resizing(policy, where, rng) for policy in param.resize_param]
        if len(policies) > 1 and not math.isclose(total := sum(each.prob for each in param.resize_param), 1, abs_tol=0.01):
            raise Error(where, f"{len(policies)} resize_param of prob {total:g} in all", "their prob must add up to 1")
        for sampler in (each.sampler for each in samplers):
            if not 0 < sampler.min_scale <= sampler.max_scale <= 1:
                raise Error(where, f"scales {sampler.min_scale:g} to {sampler.max_scale:g}", "they must rise within (0, 1]")
            low, high = sampler.min_aspect_ratio, sampler.max_aspect_ratio
            if not 0 < low <= high:
                raise Error(where, f"aspect ratios {low:g} to {high:g}", "they must be above 0 and rise")
        if not 0 <= jitter < 1:
            raise Error(where, f"yolo_data_jitter {jitter:g}", "it must be at least 0 and below 1")
        self.param, self.samplers, self.where, self.rng = param, samplers, where, rng
        self.jitter = 0 if samplers else jitter
        self.policies, self.resizing = policies, policies[0] if policies else None
        self.training = phase == caffe_pb2.TRAIN
        self.mean = read_mean(param.mean_file).transpose(1, 2, 0) if param.mean_file else None
        self.crop = (param.crop_size,) * 2 if param.crop_size else (param.crop_h, param.crop_w)

    def choose_resizing(self, number: float) -> None:
        """Resize from now on as one of several resize_param says: that in whose share of prob a number from 0 to 1 lies."""
        shares = np.cumsum([policy.param.prob for policy in self.policies])
        self.resizing = self.policies[min(int(np.searchsorted(shares, number, "right")), len(shares) - 1)]

    def __call__(self, image: np.ndarray, truths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Transform an image and its truths: channels × height × width, float32, and the remaining truths."""
        p = self.param
        if p.HasField("distort_param"):
            image = self.distort(image)
        if p.HasField("expand_param") and self.rng.random() < p.expand_param.prob and p.expand_param.max_expand_ratio > 1.01:
            image, truths = self.expand(image, truths)
        crops = [crop for sampler in self.samplers for crop in self.sample_crops(sampler, truths[CORNERS])]
        if self.jitter:
            crops = [self.jittered_crop()]
        if crops:
            image, truths = self.crop_to(image, truths, crops[self.rng.integers(len(crops))])
        if p.cvt_bgr2rgb:
            image = image[:, :, ::-1]
        extents = image.shape[:2]
        if self.resizing:
            image = self.resizing(image)
            truths = _with_corners(truths, self.resize_corners(truths[CORNERS], extents))
        image, window, mean = self.crop_window(image)
        truths = self.project(truths, window)
        if p.mirror and self.rng.integers(2):
            # The mean image is mirrored with the image.
            image, mean = image[:, ::-1], None if mean is None else mean[:, ::-1]
            truths = _with_corners(truths, truths[CORNERS][:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [1, 0, 1, 0])
        if self.resizing:
            truths = _with_corners(truths, truths[CORNERS] * self.corner_scale(extents, window))
        values = image.transpose(2, 0, 1).astype(np.float32)
        if mean is not None:
            values -= mean.transpose(2, 0, 1)
        elif p.mean_value:
            values -= mean_values(p, image.shape[2], self.where)[:, None, None]
        if p.scale != 1:
            values *= np.float32(p.scale)
        return values, truths

    # ---- colours

    def distort(self, image: np.ndarray) -> np.ndarray:
        """Change brightness, contrast, saturation and hue, each with its probability; contrast comes second or last."""
        if image.dtype != np.uint8:
            raise Error(self.where, "distort_param for records of floats", "it needs bytes", "leave it out")
        p = self.param.distort_param
        uniform = self.rng.uniform
        changes: list[tuple[float, Callable[[np.ndarray], np.ndarray]]] = [
            (p.brightness_prob, lambda image: np.take(_table(1, uniform(-p.brightness_delta, p.brightness_delta)), image)),
            (p.saturation_prob, lambda image: _in_hsv(image, 1, _table(uniform(p.saturation_lower, p.saturation_upper), 0))),
            (p.hue_prob, lambda image: _in_hsv(image, 0, _table(1, uniform(-p.hue_delta, p.hue_delta)))),
            (p.contrast_prob, lambda image: np.take(_table(uniform(p.contrast_lower, p.contrast_upper), 0), image)),
        ]
        if self.rng.random() > 0.5:
            changes.insert(1, changes.pop())
        for probability, change in changes:
            if self.rng.random() < probability:
                image = change(image)
        if self.rng.random() < p.random_order_prob:
            image = image[:, :, self.rng.permutation(image.shape[2])]
        return image

    # ---- canvas and crops

    def expand(self, image: np.ndarray, truths: Boxes) -> tuple[np.ndarray, Boxes]:
        """Place the image at random on a larger canvas of the mean's colour."""
        ratio = self.rng.uniform(1, self.param.expand_param.max_expand_ratio)
        height, width, channels = image.shape
        tall, wide = int(height * ratio), int(width * ratio)
        top, left = int(self.rng.uniform(0, tall - height)), int(self.rng.uniform(0, wide - width))
        colour = np.zeros(channels)
        if self.mean is not None:
            colour = self.mean.mean((0, 1))
        elif self.param.mean_value:
            colour = mean_values(self.param, channels, self.where)
        canvas = np.empty((tall, wide, channels), image.dtype)
        canvas[:] = np.rint(colour).clip(0, 255)
        canvas[top : top + height, left : left + width] = image
        window = np.array([-left / width, -top / height, (wide - left) / width, (tall - top) / height], np.float32)
        return canvas, self.project(truths, window)

    def sample_crops(self, each: caffe_pb2.BatchSampler, corners: Boxes) -> list[Boxes]:
        """Draw crops that satisfy a sampler's constraint."""
        found: list[Boxes] = []
        for _ in range(each.max_trials if each.use_original_image else 0):
            if each.HasField("max_sample") and len(found) >= each.max_sample:
                break
            sampler = each.sampler
            scale = self.rng.uniform(sampler.min_scale, sampler.max_scale)
            # A crop is no wider or higher than the image.
            ratio = self.rng.uniform(
                max(sampler.min_aspect_ratio, scale * scale), min(sampler.max_aspect_ratio, 1 / (scale * scale))
            )
            width, height = min(1, scale * math.sqrt(ratio)), min(1, scale / math.sqrt(ratio))
            left, top = self.rng.uniform(0, 1 - width), self.rng.uniform(0, 1 - height)
            crop = np.array([left, top, left + width, top + height], np.float32)
            if satisfies(each.sample_constraint, crop, corners):
                found.append(crop)
        return found

    def jittered_crop(self) -> Boxes:
        """Draw a crop as GenerateJitterSamples of eric612/MobileNet-YOLO: of the image's aspect if resizing keeps the aspect."""
        number = self.rng.random()
        if number < JITTERED[0]:
            return WHOLE
        least = 1 - (self.jitter / 2 if number < JITTERED[1] else self.jitter)
        width = self.rng.uniform(least, 1)
        keep = self.resizing is not None and self.resizing.param.resize_mode == RESIZE.FIT_LARGE_SIZE_AND_PAD
        height = width if keep else self.rng.uniform(least, 1)
        left, top = self.rng.uniform(0, 1 - width), self.rng.uniform(0, 1 - height)
        return np.array([left, top, left + width, top + height], np.float32)

    def crop_to(self, image: np.ndarray, truths: Boxes, crop: Boxes) -> tuple[np.ndarray, Boxes]:
        """Crop the image and its truths."""
        crop = crop.clip(0, 1)
        height, width = image.shape[:2]
        left, top = int(crop[0] * width), int(crop[1] * height)
        wide, tall = max(1, int((crop[2] - crop[0]) * width)), max(1, int((crop[3] - crop[1]) * height))
        return image[top : top + tall, left : left + wide], self.project(truths, crop)

    def project(self, truths: Boxes, window: Boxes) -> Boxes:
        """The truths relative to a window, clipped to it, without those that miss it or emit_constraint."""
        corners = truths[CORNERS]
        size = np.tile(window[2:] - window[:2], 2)
        relative = ((corners - np.tile(window[:2], 2)) / size).clip(0, 1)
        stay = boxes.areas(relative) > 0
        if self.param.HasField("emit_constraint"):
            constraint = self.param.emit_constraint
            if constraint.emit_type == caffe_pb2.EmitConstraint.CENTER:
                centres = (corners[:, :2] + corners[:, 2:]) / 2
                stay &= ((centres >= window[:2]) & (centres <= window[2:])).all(1)
            else:
                stay &= boxes.intersections(corners, window) > constraint.emit_overlap * boxes.areas(corners)
        return _with_corners(truths, relative)[stay]

    def crop_window(self, image: np.ndarray) -> tuple[np.ndarray, Boxes, np.ndarray | None]:
        """Crop the image to the net's input size; also returns the window, a box, and the mean image in it."""
        height, width = image.shape[:2]
        if self.mean is not None and self.mean.shape != image.shape:
            raise Error(self.where, f"a mean image of shape {self.mean.shape}", f"the images have {image.shape}")
        tall, wide = self.crop
        if not tall or not wide:
            return image, WHOLE, self.mean
        if tall > height or wide > width:
            raise Error(self.where, f"a crop of {tall}×{wide} on images of {height}×{width}", "the crop must fit into the image")
        top, left = (height - tall) // 2, (width - wide) // 2
        if self.training:
            top, left = self.rng.integers(height - tall + 1), self.rng.integers(width - wide + 1)
        window = np.array([left / width, top / height, (left + wide) / width, (top + tall) / height], np.float32)
        part = np.s_[top : top + tall, left : left + wide]
        return image[part], window, None if self.mean is None else self.mean[part]

    # ---- size

    def resize_corners(self, corners: Boxes, extents: tuple[int, ...]) -> Boxes:
        """Corners after resizing, which change only if the image is padded."""
        assert self.resizing
        p = self.resizing.param
        corners = corners.clip(0, 1)
        if p.resize_mode != RESIZE.FIT_LARGE_SIZE_AND_PAD:
            return corners
        aspect = extents[1] / extents[0]
        share = np.array([min(1, aspect * p.height / p.width), min(1, p.width / aspect / p.height)], np.float32)
        return np.tile((1 - share) / 2, 2) + corners * np.tile(share, 2)

    def corner_scale(self, extents: tuple[int, ...], window: Boxes) -> Boxes:
        """Factors of the corners for FIT_SMALL_SIZE with height_scale and width_scale; else 1."""
        assert self.resizing
        p = self.resizing.param
        if p.resize_mode != RESIZE.FIT_SMALL_SIZE or not (p.height_scale and p.width_scale):
            return np.ones(4, np.float32)
        height, width = self.resizing.size(extents)
        share = window[2:] - window[:2]
        return np.tile(np.array([width * share[0] / p.width_scale, height * share[1] / p.height_scale], np.float32), 2)


def satisfies(constraint: caffe_pb2.SampleConstraint, crop: Boxes, corners: Boxes) -> bool:
    """Whether one of the boxes (G, 4) satisfies all bounds of a constraint on a crop; always true if it has none."""
    if not constraint.ListFields():
        return True
    common, sizes = boxes.intersections(corners, crop), boxes.areas(corners)
    size = boxes.areas(crop)
    shares = {
        "jaccard_overlap": common / np.maximum(size + sizes - common, 1e-12),
        "sample_coverage": common / size,
        "object_coverage": common / np.maximum(sizes, 1e-12),
    }
    good = np.ones(len(corners), bool)
    for name, share in shares.items():
        if constraint.HasField(f"min_{name}"):
            good &= share >= np.float32(getattr(constraint, f"min_{name}"))
        if constraint.HasField(f"max_{name}"):
            good &= share <= np.float32(getattr(constraint, f"max_{name}"))
    return bool(good.any())


def _with_corners(truths: Boxes, corners: Boxes) -> Boxes:
    truths = np.array(truths)
    truths[CORNERS] = corners
    return truths


def _table(factor: float, term: float) -> npt.NDArray[np.uint8]:
    """Lookup table of 256 values: value · factor + term, rounded and clipped."""
    values: npt.NDArray[np.float64] = np.rint(np.arange(256) * factor + term)
    return values.clip(0, 255).astype(np.uint8)


def _in_hsv(image: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    """Map one channel of hue, saturation and value by a table; images without three channels are unchanged."""
    if image.shape[2] != 3:
        return image
    hsv = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2HSV)
    hsv[:, :, channel] = table[hsv[:, :, channel]]
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)

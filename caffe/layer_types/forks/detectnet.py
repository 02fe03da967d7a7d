"""DetectNetTransformation of NVIDIA's fork of Caffe: images and maps of coverage and boxes that DetectNet is trained with."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from caffe.engine import mode
from caffe.engine.layer import Layer, Shape, register
from caffe.formats.stored import read_mean
from caffe.layer_types.forks.detection import as_array
from caffe.numerics import scalars
from caffe.proto import caffe_pb2
from caffe.transforms import boxes
from caffe.transforms.boxes import Boxes
from caffe.transforms.colours import with_hue_and_saturation
from caffe.transforms.cubic import resized_cubic, rotated
from caffe.transforms.transform import mean_values

LABEL_LENGTH, CLASS = 16, 5
"""Numbers of a label, of which the first four are x, y, width and height in pixels; and which of them is the class."""
FOREGROUND, CORNERS, SIDES, NORM, COVERAGE = 0, slice(1, 5), slice(5, 7), 7, 8
"""Channels of the maps; from COVERAGE on one for each class."""
FULL = 255.0
"""The largest value of a pixel."""


class Changes(NamedTuple):
    """Random changes of an image: hue in degrees, saturation as a factor, mirroring, size, rotation in degrees, crop's corner."""

    hue: float
    saturation: float
    flip: bool
    height: int
    width: int
    degrees: float
    left: int
    top: int


def _rounded(value: float) -> int:
    """To the nearest integer, halves away from 0."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


class Rotation:
    """The rotation of an image by degrees, clockwise, onto a canvas that holds all of it.

    height, width  of the canvas
    matrix         (2, 3), from pixels (x, y, 1) of the image to those of the canvas
    """

    def __init__(self, height: int, width: int, degrees: float):
        cosine, sine = scalars.cosine_and_sine(degrees / 360)
        turn = np.array([[cosine, -sine], [sine, cosine]])
        corners = np.array([[x, y] for x in (-width / 2, width / 2) for y in (-height / 2, height / 2)])
        reach = (corners[:, None] * turn).sum(-1)

        def around(centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return np.floor((reach + centre).min(0)), np.ceil((reach + centre).max(0))

        first, last = around(np.array([width // 2, height // 2]))
        self.width, self.height = (int(side) for side in last - first + 1)
        centre = np.array([width / 2, height / 2])
        shift = centre - around(centre)[0] - (turn * centre).sum(-1)
        self.matrix = np.concatenate([turn, shift[:, None]], 1)


@register("DetectNetTransformation", "detectnet_groundtruth_param")
class DetectNetTransformation(Layer):
    """Images of one size and the maps that DetectNet learns: (images (N, 3, H, W), labels (N, 1, rows + 1, 16)) → images
    (N, 3, image_size_y, image_size_x), maps (N, 8 + classes, image_size_y / stride, image_size_x / stride).

    A label's first row begins with the number of boxes, and 16; each row after it is a box: x, y, width, height in pixels, an
    angle, the class, and 10 numbers that change nothing. The maps of a cell: 1 where a box covers it; x1, y1, x2, y2 of the box
    relative to the cell; 1 / width, 1 / height; the cell's area by the covered one (at least 1 without obj_norm); and for each
    class of object_class 1 where its box covers the cell. A later box replaces an earlier one. A box covers the middle of
    itself: its sides times scale_cvg, of at most max_cvg_len pixels (GRIDBOX_MAX), or at least min_cvg_len, but not more than
    the box (GRIDBOX_MIN).
    TEST: images are resized. TRAIN: hue, saturation, mirroring, scale and rotation are changed at random with the probabilities
    of detectnet_augmentation_param, then images are cropped, at a random place or the centre; what is beyond them is 0.
    transform_param: mean_file, which is resized to the images, or mean_value is subtracted; nothing else is read.
    No gradient passes. Source: detectnet_transform_layer.cpp and detectnet_coverage_rectangular.cpp of NVIDIA/caffe, as its CPU
    code computes.
    """

    bottoms = (2, 2)
    tops = (2, 2)
    differentiable_bottoms = ()

    def setup(self, images: Shape, labels: Shape) -> None:
        p, transform = self.param.detectnet_groundtruth_param, self.param.transform_param
        self.require_positive("stride", "image_size_x", "image_size_y")
        if not p.scale_cvg > 0:
            raise self.error(f"scale_cvg {p.scale_cvg:g}", "it must be above 0")
        self.classes = {each.src: each.dst for each in p.object_class} or {1: 0}
        self.mean: np.ndarray | None = None
        if transform.HasField("mean_file"):
            self.mean = read_mean(transform.mean_file)
        elif transform.mean_value:
            self.mean = mean_values(transform, 3, self.where)[:, None, None]
        self.top_shapes(images, labels)
        if self.mean is not None and len(self.mean) != 3:
            raise self.error(f"a mean file of {len(self.mean)} channels", "the images have 3")

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the maps."""
        p = self.param.detectnet_groundtruth_param
        return round(p.image_size_y / p.stride), round(p.image_size_x / p.stride)

    def top_shapes(self, images: Shape, labels: Shape) -> list[Shape]:
        p, count = self.param.detectnet_groundtruth_param, images[0] if images else 0
        self.require_maps(images)
        if images[1] != 3:
            raise self.error(f"images of shape {images}", "DetectNetTransformation takes 3 channels")
        if (
            len(labels) < 2
            or labels[0] != count
            or labels[-1] != LABEL_LENGTH
            or math.prod(labels) != count * labels[-2] * LABEL_LENGTH
        ):
            expected = f"(N, 1, rows, {LABEL_LENGTH}) for the {count} images, a row with the number of boxes and one for each"
            raise self.error(f"labels of shape {labels}", expected)
        channels = COVERAGE + 1 + max(self.classes.values())
        return [(count, 3, p.image_size_y, p.image_size_x), (count, channels, *self.grid)]

    def batch_dependence(self) -> str:
        return "changes images at random" if self.phase == caffe_pb2.TRAIN else ""

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        pairs = zip(as_array(images), as_array(labels).reshape(len(labels), -1, LABEL_LENGTH), strict=True)
        made = [self.transformed(image, self.rows(label)) for image, label in pairs]
        tops = (torch.from_numpy(np.stack(parts).astype(np.float32)).to(images.device) for parts in zip(*made, strict=True))
        first, second = tops
        return first, second

    def rows(self, label: np.ndarray) -> np.ndarray:
        """The boxes of a label, (B, 16)."""
        count, length = label[0, :2]
        if length != LABEL_LENGTH or not 0 <= count < len(label):
            found = f"a label of {count:g} boxes of {length:g} numbers"
            raise self.error(found, f"at most {len(label) - 1} of {LABEL_LENGTH}: its first row begins with both")
        return label[1 : 1 + int(count)].astype(np.float64)

    def transformed(self, image: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """An image and its maps, after changes that are drawn."""
        p, (height, width) = self.param.detectnet_groundtruth_param, image.shape[1:]
        change = self.drawn(height, width)
        first, sides, kinds = rows[:, :2].copy(), rows[:, 2:4], rows[:, CLASS]
        pixels = with_hue_and_saturation(image / np.float32(FULL), change.hue, change.saturation)
        if self.mean is not None:
            mean = self.mean if self.mean.shape[1:] == (1, 1) else resized_cubic(self.mean, height, width)
            pixels = pixels - mean / np.float32(FULL)
        if change.flip:
            pixels = pixels[:, :, ::-1]
            first[:, 0] = width - first[:, 0] - sides[:, 0] - 1
        pixels = resized_cubic(pixels, change.height, change.width)
        scale = np.array([change.width / width, change.height / height])
        first, sides = first * scale, sides * scale
        if change.degrees:
            rotation = Rotation(change.height, change.width, change.degrees)
            pixels = rotated(pixels, rotation.matrix, rotation.height, rotation.width)
            centre = first + sides / 2
            first = (centre[:, None] * rotation.matrix[:, :2]).sum(-1) + rotation.matrix[:, 2] - sides / 2
        first = first - np.array([change.left, change.top])
        cropped = _cropped(pixels, change.top, change.left, p.image_size_y, p.image_size_x)
        return cropped * np.float32(FULL), self.maps(np.concatenate([first, first + sides], 1), kinds)

    def drawn(self, height: int, width: int) -> Changes:
        """The changes of an image; in TEST those that give it the net's size."""
        p, q = self.param.detectnet_groundtruth_param, self.param.detectnet_augmentation_param
        if self.phase != caffe_pb2.TRAIN:
            return Changes(0, 1, False, p.image_size_y, p.image_size_x, 0, 0, 0)
        rng = mode.generator

        def happens(probability: float) -> bool:
            return rng.random() < probability

        hue = rng.uniform(-q.hue_rotation, q.hue_rotation) if happens(q.hue_rotation_prob) else 0.0
        saturation = 1 - rng.random() * q.desaturation_max if happens(q.desaturation_prob) else 1.0
        flip = happens(q.flip_prob)
        scale = rng.uniform(q.scale_min, q.scale_max) if happens(q.scale_prob) else 1.0
        height, width = max(1, _rounded(height * scale)), max(1, _rounded(width * scale))
        degrees = rng.uniform(-q.max_rotate_degree, q.max_rotate_degree) if happens(q.rotation_prob) else 0.0
        canvas = Rotation(height, width, degrees) if degrees else None
        room_y = (canvas.height if canvas else height) - p.image_size_y
        room_x = (canvas.width if canvas else width) - p.image_size_x
        if happens(q.crop_prob):
            left = rng.random() * (room_x + q.shift_x) - q.shift_x // 2
            top = rng.random() * (room_y + q.shift_y) - q.shift_y // 2
        else:
            left, top = room_x / 2, room_y / 2
        return Changes(min(max(hue, -180), 180), saturation, flip, height, width, degrees, _rounded(left), _rounded(top))

    def maps(self, corners: Boxes, kinds: np.ndarray) -> np.ndarray:
        """Maps (8 + classes, height, width) of boxes (B, 4) and their class numbers."""
        p, (height, width) = self.param.detectnet_groundtruth_param, self.grid
        result = np.zeros((COVERAGE + 1 + max(self.classes.values()), height, width), np.float32)
        if p.crop_bboxes:
            corners = np.clip(corners, 0, [p.image_size_x, p.image_size_y] * 2)
        y, x = np.mgrid[:height, :width] * p.stride
        cells = np.stack([x, y, x + p.stride, y + p.stride], -1).astype(np.float64)
        epsilon = np.finfo(np.float32).eps
        for box, kind in zip(corners, kinds, strict=True):
            if int(kind) not in self.classes or boxes.areas(box) < epsilon:
                continue
            part = self.covered(box)
            inside = boxes.intersections(cells, part) > epsilon * p.stride**2
            result[:, inside] = 0
            result[FOREGROUND, inside] = result[COVERAGE + self.classes[int(kind)], inside] = 1
            result[CORNERS, inside] = (box - np.tile(cells[inside][:, :2], 2)).T
            result[SIDES, inside] = 1 / (box[2:] - box[:2])[:, None]
            result[NORM, inside] = max(0 if p.obj_norm else 1, p.stride**2 / boxes.areas(part))
        return result

    def covered(self, box: Boxes) -> Boxes:
        """The part of a box that covers cells."""
        p = self.param.detectnet_groundtruth_param
        sides = box[2:] - box[:2]
        if p.gridbox_type == caffe_pb2.DetectNetGroundTruthParameter.GRIDBOX_MIN:
            shrunk = np.minimum(sides, np.maximum(p.min_cvg_len, sides * p.scale_cvg))
        else:
            shrunk = np.minimum(p.max_cvg_len, sides * p.scale_cvg)
        centre = (box[:2] + box[2:]) / 2
        return np.concatenate([centre - shrunk / 2, centre + shrunk / 2])


def _cropped(image: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """A part of an image (C, H, W), 0 beyond it."""
    result = np.zeros((len(image), height, width), np.float32)
    first_y, first_x = max(0, -top), max(0, -left)
    part = image[:, max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)]
    result[:, first_y : first_y + part.shape[1], first_x : first_x + part.shape[2]] = part
    return result

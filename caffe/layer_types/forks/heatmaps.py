"""Heatmap regression (Pfister et al. 2015): DataHeatmap, EuclideanLossHeatmap."""

import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from caffe import events
from caffe.engine.layer import Shape, register
from caffe.errors import Error
from caffe.layer_types.data import Batch, Prefetching
from caffe.layer_types.files import IMAGE_LIST, numbered_lines, read_image, read_listed
from caffe.layer_types.loss import Loss
from caffe.numerics.generator import Generator

_SIGMA = 1.5
"""Standard deviation of a label's peak, in its pixels."""
_PEAK = 4 / (_SIGMA * math.sqrt(2 * math.pi))
_BACKGROUND = 40
"""Greatest gray value of a segmentation's background."""


class Person(NamedTuple):
    """A line of the list: path of the image, coordinates (x, y) of the joints, in units of multfact pixels, and class."""

    path: str
    joints: np.ndarray
    cluster: int


class Change(NamedTuple):
    """What is drawn for an image: whether it is mirrored, the place of the crop in its room down and across, and an angle."""

    mirrored: bool
    place: tuple[float, float]
    angle: float


@register("DataHeatmap", "heatmap_data_param")
class DataHeatmap(Prefetching):
    """Images and maps of their joints, repeated endlessly: → (N, 3, outsize, outsize), (N, joints, label_height, label_width).

    A line of the list is `image x1,y1,x2,y2,… crop class`; labelinds chooses coordinates by their number. The image, RGB, is
    padded at the right to cropsize if it is narrower, cropped to cropsize × cropsize at the centre and resized to outsize. With
    random_crop it is mirrored at random, which exchanges the joints of pairs, cropped anywhere, and rotated by up to angle_max
    degrees, in both phases. A joint's map is 4 / (σ √2π) · exp(-d² / 2 σ²), σ = 1.5 pixels of the map, d the distance to it.
    With sample_per_cluster, one image of each class comes in turn, from a random first one. Source: data_heatmap.cpp of
    tpfister/caffe-heatmap; means by video (meanfile) are not supported.
    """

    tops = (2, 2)

    @property
    def batch_size(self) -> int:
        return self.param.heatmap_data_param.batchsize

    def setup(self, *shapes: Shape) -> None:
        super().setup()
        p = self.param.heatmap_data_param
        self.require_positive("batchsize", "cropsize", "outsize")
        if p.meanfile or p.crop_meanfile:
            raise self.error("meanfile", "means of videos are not supported", "leave it out, or subtract them from the images")
        if p.label_height != p.label_width:
            raise self.error(f"labels of {p.label_height}×{p.label_width}", "the fork's are square", "give equal extents")
        if p.multfact < 1:
            raise self.error("multfact 0", "it must be at least 1")
        events.image_list_opened(p.source)
        self.people = self.read_list()
        events.images_listed(len(self.people))
        clusters: dict[int, list[Person]] = {}
        for person in self.people:
            clusters.setdefault(person.cluster, []).append(person)
        self.clusters = [clusters[cluster] for cluster in sorted(clusters)]
        self.seed = self.rng.seed()
        self.example(self.people[0], Change(False, (0.5, 0.5), 0.0))

    def top_shapes(self) -> list[Shape]:
        p = self.param.heatmap_data_param
        joints = len(self.people[0].joints)
        return [(p.batchsize, 3, p.outsize, p.outsize), (p.batchsize, joints, p.label_height, p.label_width)]

    def batch_dependence(self) -> str:
        p = self.param.heatmap_data_param
        return "crops, mirrors or rotates images at random" if p.random_crop else ""

    def read_list(self) -> list[Person]:
        """The lines of the list."""
        p = self.param.heatmap_data_param
        people = []
        for number, line in numbered_lines(p.source, IMAGE_LIST, self.where):
            where, expected = f"{p.source}:{number}", 'a line must be "image x1,y1,x2,y2,… crop class"'
            try:
                path, labels, _, cluster = line.split()
                values = np.array(labels.split(","), np.float32)
                chosen = [int(index) - 1 for index in p.labelinds.split(",")] if p.labelinds else list(range(len(values)))
                joints = values[sorted(chosen)].reshape(-1, 2)
                people.append(Person(p.root_img_dir + path, joints, int(cluster)))
            except (ValueError, IndexError):
                raise Error(where, f'"{line}"', expected, "labelinds, too, has to choose pairs" if p.labelinds else "") from None
            if len(joints) != len(people[0].joints):
                raise Error(where, f"{len(joints)} joints", f"the first line has {len(people[0].joints)}")
            if p.random_crop and p.flip_joint_labels and (len(joints) - p.dont_flip_first) % 2:
                do = f"set dont_flip_first: {str(not p.dont_flip_first).lower()}, or flip_joint_labels: false"
                raise Error(where, f"{len(joints)} joints", "a mirrored image exchanges them two by two", do)
        return people

    def order(self, position: int) -> Iterator[Person]:
        """This solver's images from `position` on, endlessly."""
        solvers, rank = self.share()
        numbers = itertools.count(position * solvers + rank, solvers)
        if not self.param.heatmap_data_param.sample_per_cluster:
            return (self.people[number % len(self.people)] for number in numbers)
        assert self.seed is not None
        generator, clusters = Generator(self.seed), self.clusters
        firsts = [generator.integers(len(cluster)) for cluster in clusters]
        turns = (divmod(number, len(clusters)) for number in numbers)
        return (clusters[which][(firsts[which] + turn) % len(clusters[which])] for turn, which in turns)

    def draw(self) -> Change:
        """Draw what changes an image; without random_crop, its centre."""
        p = self.param.heatmap_data_param
        if not p.random_crop:
            return Change(False, (0.5, 0.5), 0.0)
        mirrored, places = bool(self.rng.integers(2)), (self.rng.random(), self.rng.random())
        return Change(mirrored, places, self.rng.uniform(-p.angle_max, p.angle_max))

    def pixels(self, person: Person) -> np.ndarray:
        """The image, height × width × 3, RGB, float32, at least as wide as the crop."""
        p = self.param.heatmap_data_param
        pixels = read_listed(p.source, p.root_img_dir, person.path, True)
        image = pixels.transpose(1, 2, 0)[:, :, ::-1].astype(np.float32)
        if p.segmentation:
            path = Path(p.root_img_dir) / "segs" / person.path.removeprefix(p.root_img_dir)
            regions = read_image(str(path), False)[0]
            if regions.shape != image.shape[:2]:
                raise Error(str(path), "a segmentation of {}×{}".format(*regions.shape), "the image has another size")
            image[regions <= _BACKGROUND] = 0
        if len(image) < p.cropsize:
            raise Error(person.path, f"{len(image)} rows", f"cropsize is {p.cropsize}", "resize the images, or crop less")
        return np.pad(image, ((0, 0), (0, max(0, p.cropsize - image.shape[1])), (0, 0)))

    def example(self, person: Person, change: Change) -> tuple[np.ndarray, np.ndarray]:
        """The image, 3 × outsize × outsize, and the maps of its joints."""
        p = self.param.heatmap_data_param
        image, joints = self.pixels(person), person.joints * np.float32(p.multfact)
        side, extents = p.cropsize, image.shape[:2]
        if change.mirrored:
            image, joints = image[:, ::-1], joints * (-1, 1) + (extents[1], 0)
            if p.flip_joint_labels:
                first = int(p.dont_flip_first)
                joints[first:] = joints[first:].reshape(-1, 2, 2)[:, ::-1].reshape(-1, 2)
        room = [extent - side for extent in extents]
        centre = [free // 2 for free in room]
        drawn = [int(place * (free + 1)) for place, free in zip(change.place, room, strict=True)]
        top, left = drawn if p.random_crop else centre
        image, joints = np.ascontiguousarray(image[top : top + side, left : left + side]), joints - (left, top)
        if change.angle:
            matrix = cv2.getRotationMatrix2D((side // 2, side // 2), change.angle, 1)
            image = cv2.warpAffine(image, matrix, (side, side))
            joints = joints @ matrix[:, :2].T + matrix[:, 2]
        image = cv2.resize(image, (p.outsize, p.outsize)) * np.float32(p.scale)
        return image.transpose(2, 0, 1), self.maps(joints * (p.label_height / side))

    def maps(self, joints: np.ndarray) -> np.ndarray:
        """The maps of joints (x, y) in pixels of the maps."""
        p = self.param.heatmap_data_param
        across = np.arange(p.label_width) - joints[:, 0, None]
        down = np.arange(p.label_height) - joints[:, 1, None]
        squares = down[:, :, None] ** 2 + across[:, None, :] ** 2
        return np.asarray(_PEAK * np.exp(-squares / (2 * _SIGMA**2)), np.float32)

    def read(self, position: int) -> Iterator[Batch]:
        people = self.order(position)
        with ThreadPoolExecutor(2) as pool:
            while True:
                batch = list(itertools.islice(people, self.batch_size))
                changes = [self.draw() for _ in batch]
                images, maps = zip(*pool.map(self.example, batch, changes), strict=True)
                yield np.stack(images), np.stack(maps)


class _HeatmapDistance(torch.autograd.Function):
    """The mean of (a - b)²; the gradient of a is a - b, whatever follows."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        difference = a - b
        ctx.save_for_backward(difference)
        return difference.square().mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return difference, None


@register("EuclideanLossHeatmap")
class EuclideanLossHeatmap(Loss):
    """The mean of (predicted - true)² over all values: (predicted, true (N, C, H, W)[, images to show]) → scalar.

    As in the fork, the gradient of the prediction is predicted - true, neither divided nor multiplied by loss_weight: learning
    rates of its nets are small for that. Source: euclidean_loss_heatmap_layer.cpp of tpfister/caffe-heatmap.
    """

    bottoms = (2, 3)
    differentiable_bottoms = (0,)

    def setup(self, predicted: Shape, true: Shape, *shown: Shape) -> None:
        self.require_maps(predicted)
        self.require_same_shape(predicted, true)

    def forward(self, predicted: Tensor, true: Tensor, *shown: Tensor) -> Tensor:
        return _HeatmapDistance.apply(predicted, true)

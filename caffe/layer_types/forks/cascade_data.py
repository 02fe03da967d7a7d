"""MS-CNN's source of images and labels at several scales (Cai et al. 2016): ImageGtData of zhaoweicai/mscnn."""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

from caffe import events
from caffe.engine.layer import Shape, register
from caffe.errors import Error
from caffe.layer_types.data import Batch, Prefetching
from caffe.layer_types.files import numbered_lines, read_listed
from caffe.layer_types.order import positions
from caffe.transforms import boxes
from caffe.transforms.boxes import Boxes, Floats
from caffe.transforms.transform import Transformer, mean_values

_OCTAVE = 2
"""Scales of an octave that a true box is brought to."""
_FAR = 1.5
"""Enlargement from which an image is cut first, to 1.2 times what is shown."""
_NOISE = 10
_COVERED = 0.4
"""Part of a field that regions of no interest must cover for it not to count."""
_UNMATCHED = 0.2
"""Overlap from which a true box without a field over fg_threshold gets the field of its centre."""


class Scene(NamedTuple):
    """An image (height × width × channels), its true boxes and its regions of no interest (K, 4): x1, y1, x2, y2.

    A true box, of (M, 6), has its label and whether it is ignored in addition.
    """

    image: np.ndarray
    truths: Floats
    ignored: Boxes

    def moved(self, image: np.ndarray, scale: tuple[float, float] = (1, 1), shift: tuple[float, float] = (0, 0)) -> "Scene":
        """The scene with another image, where x becomes scale · x + shift."""
        factors, offsets = np.tile(scale, 2), np.tile(shift, 2)
        truths = self.truths.copy()
        truths[:, :4] = truths[:, :4] * factors + offsets
        return Scene(image, truths, self.ignored * factors + offsets)

    def mirrored(self) -> "Scene":
        width = self.image.shape[1]
        scene = self.moved(cv2.flip(self.image, 1), (-1, 1), (width, 0))
        for values in (scene.truths, scene.ignored):
            values[:, [0, 2]] = values[:, [2, 0]]
        return scene

    def resized(self, width: int, height: int) -> "Scene":
        old = self.image.shape
        return self.moved(cv2.resize(self.image, (width, height)), (width / old[1], height / old[0]))


def nearest(value: float) -> int:
    """The nearest whole number, halves away from 0."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


@register("ImageGtData")
class ImageGtData(Prefetching):
    """Images with true boxes: → (N, C, H, W), labels (N, 6, H / r, W / r) for each downsample_rate r[, true boxes (M, 7, 1, 1)].

    A list's entry is `# number`, the path, channels, height, width, the number of true boxes, `label ignore x1 y1 x2 y2` for
    each, the number of regions of no interest, and `x1 y1 x2 y2` for each. An image is mirrored at random, resized, in half of
    all cases with do_multiple_scale brought to a scale at which one of its boxes has one of the sides from min_scale to
    max_scale, half an octave apart, and cropped around that box, up to 10 pixels off. A label is class, x, y of the centre,
    width, height, overlap with the best true box, of the field of field_w × field_h pixels around the position; its class is 0 up
    to fg_threshold and for boxes that are ignored: by the list, or smaller than min_gt_width or min_gt_height, or with their
    centre outside. A box without a field has that at its centre. Fields in regions of no interest, or outside the image, have
    overlap 1. With output_gt_boxes, rows of image, x1, y1, x2, y2, class, ignored. Of transform_param mirror and mean_value
    apply. Source: image_gt_data_layer.
    """

    tops = (2, None)
    reads = "records"

    def setup(self, *shapes: Shape) -> None:
        super().setup()
        p, transform = self.param.image_gt_data_param, self.param.transform_param
        self.require_positive("batch_size", "fg_img_multiple")
        given = [field.name for field, _ in transform.ListFields() if field.name not in ("mirror", "mean_value")]
        if given:
            raise self.error(f"transform_param has {' and '.join(given)}", "only mirror and mean_value apply", "leave it out")
        self.fields = list(zip(p.downsample_rate, p.field_w, p.field_h, strict=False))
        counts = {len(p.downsample_rate), len(p.field_w), len(p.field_h), len(self.param.top) - 1 - p.output_gt_boxes}
        if len(counts) > 1 or not self.fields or min(map(min, self.fields)) < 1:
            found = f"{len(p.downsample_rate)} downsample_rate, {len(p.field_w)} field_w and {len(p.field_h)} field_h"
            raise self.error(f"{found} for {len(self.param.top)} tops", "one of each for each top of labels")
        if p.coord_num != 4 or bool(p.resize_width) != bool(p.resize_height):
            found = f"coord_num {p.coord_num}, resize_width {p.resize_width} and resize_height {p.resize_height}"
            raise self.error(found, "4 coordinates, and both extents or none")
        if p.do_multiple_scale and not 1 <= p.min_scale <= p.max_scale:
            raise self.error(f"min_scale {p.min_scale} and max_scale {p.max_scale}", "pixels, in order")
        self.list = self.parse(p.source)
        self.transformer = Transformer(transform, self.phase, self.where, self.rng)
        self.seed = self.rng.seed() if p.shuffle else None
        self.image = read_listed(p.source, p.root_folder, p.root_folder + self.list[0][0], True)
        height, width = self.image.shape[1:] if not p.resize_width else (p.resize_height, p.resize_width)
        self.extents = p.crop_height or height, p.crop_width or width
        if self.extents[0] > height or self.extents[1] > width:
            raise self.error("a crop of {}×{}".format(*self.extents), f"it must fit into {height}×{width}")
        self.mean = mean_values(transform, 3, self.where) if transform.mean_value else np.zeros(3, np.float32)

    def parse(self, path: str) -> list[tuple[str, Floats, Boxes]]:
        """Path, true boxes (M, 6) and regions of no interest (K, 4) of each image of the list."""
        words = [
            (number, word)
            for number, line in numbered_lines(path, "list of images with boxes", self.where)
            for word in line.split()
        ]
        place = 0

        def take(count: int) -> list[str]:
            nonlocal place
            taken = [word for _, word in words[place : place + count]]
            place += count
            if len(taken) < count:
                raise ValueError("it ends in an image")
            return taken

        entries: list[tuple[str, Floats, Boxes]] = []
        try:
            while place < len(words):
                sign, _, image, *_ = take(6)
                if sign != "#":
                    raise ValueError("an image begins with # and its number")
                rows = np.array(take(6 * int(take(1)[0])), np.float32).reshape(-1, 6)[:, [2, 3, 4, 5, 0, 1]]
                if (rows[:, 4] < 1).any():
                    raise ValueError("a true box of label 0, which is the background")
                regions = np.array(take(4 * int(take(1)[0])), np.float32).reshape(-1, 4)
                multiple = self.param.image_gt_data_param.fg_img_multiple if (rows[:, 5] == 0).any() else 1
                entries += [(image, rows, regions)] * multiple
        except ValueError as error:
            line = words[min(place, len(words)) - 1][0]
            raise Error(f"{path}:{line}", f"not a list of images with boxes ({error})", do="see ImageGtData's format") from None
        return entries

    def top_shapes(self) -> list[Shape]:
        images = self.batch_size, 3, *self.extents
        labels = [(self.batch_size, 6, *(nearest(extent / rate) for extent in self.extents)) for rate, _, _ in self.fields]
        return [images, *labels, (1, 7, 1, 1)][: len(self.param.top)]

    def batch_dependence(self) -> str:
        return "crops, mirrors and scales images at random"

    def read(self, position: int) -> Iterator[Batch]:
        solvers, rank = self.share() if self.seed is None else (1, 0)
        numbers = itertools.count(position * solvers + rank, solvers)
        order = positions(len(self.list), numbers, self.seed, events.image_list_restarted)
        while True:
            scenes, places = zip(*(self.scene(number) for number in itertools.islice(order, self.batch_size)), strict=True)
            images = np.zeros((self.batch_size, 3, *self.extents), np.float32)
            for target, scene, (x, y) in zip(images, scenes, places, strict=True):
                height, width = scene.image.shape[:2]
                pixels = scene.image.transpose(2, 0, 1) - self.mean[:, None, None]
                target[:, y : y + height, x : x + width] = pixels * self.param.image_gt_data_param.scale
            labels = zip(*(self.labels(scene, *place) for scene, place in zip(scenes, places, strict=True)), strict=True)
            rows = [np.hstack((np.full((len(each.truths), 1), index), each.truths)) for index, each in enumerate(scenes)]
            # Without any box, the fork gives one that is ignored.
            truths = np.concatenate(rows) if any(map(len, rows)) else np.array([[0, 1, 1, 2, 2, 1, 1]])
            yield images, *map(np.stack, labels), truths.astype(np.float32)[:, :, None, None]

    # ---- one image

    def scene(self, number: int) -> tuple[Scene, tuple[int, int]]:
        """An image of the list as it is shown, in part, with its boxes in the batch's image, and where it lies there: x, y."""
        p = self.param.image_gt_data_param
        path, truths, ignored = self.list[number]
        image = read_listed(p.source, p.root_folder, p.root_folder + path, True).transpose(1, 2, 0)
        scene = Scene(np.ascontiguousarray(image), truths, ignored)
        if self.param.transform_param.mirror and self.rng.integers(2):
            scene = scene.mirrored()
        if p.resize_width and scene.image.shape[:2] != (p.resize_height, p.resize_width):
            scene = scene.resized(p.resize_width, p.resize_height)
        box = scene.truths[self.rng.integers(len(scene.truths)), :4] if len(scene.truths) else None
        centre = self.random_centre(scene) if box is None else (box[:2] + box[2:]) / 2
        if p.do_multiple_scale and box is not None and self.rng.integers(2):
            scene, centre = self.scaled(scene, centre, 2.0 ** self.octaves(box))
        scene, place = self.cropped(scene, centre)
        return self.without_small(scene), place

    def random_centre(self, scene: Scene) -> np.ndarray:
        """A centre, x, y, whose crop fits into the image."""
        room = zip(scene.image.shape[1::-1], self.extents[::-1], strict=True)
        return np.array([self.rng.integers(have - want + 1) + want / 2 if have >= want else have / 2 for have, want in room])

    def octaves(self, box: Boxes) -> float:
        """By how many octaves an image is enlarged: from the scale nearest to the box's to one of all scales at random."""
        p = self.param.image_gt_data_param
        count = nearest(_OCTAVE * math.log2(p.max_scale / p.min_scale) + 1)
        scales = np.arange(count) / _OCTAVE
        fields, area = (p.min_scale * 2.0**scales) ** 2, float(np.prod(box[2:] - box[:2]))
        match = scales[(np.minimum(area, fields) / np.maximum(area, fields)).argmax()]
        return float(scales[self.rng.integers(count)] - match)

    @staticmethod
    def scaled(scene: Scene, centre: np.ndarray, factor: float) -> tuple[Scene, np.ndarray]:
        """The scene enlarged, cut around the centre before if it is enlarged much, and the centre in it."""
        if factor > _FAR:
            extents = np.array(scene.image.shape[1::-1])
            sides = np.minimum([nearest(1.2 * extent / factor) for extent in extents], extents)
            corner = np.clip([nearest(value) for value in centre - sides / 2], 0, extents - sides)
            (left, upper), (right, lower) = corner, corner + sides
            scene, centre = scene.moved(scene.image[upper:lower, left:right], shift=tuple(-corner)), centre - corner
        width, height = (nearest(extent * factor) for extent in scene.image.shape[1::-1])
        return scene.moved(cv2.resize(scene.image, (width, height)), (factor, factor)), centre * factor

    def cropped(self, scene: Scene, centre: np.ndarray) -> tuple[Scene, tuple[int, int]]:
        """The part of the scene that is shown around a centre, and where it begins in the batch's image: x, y."""
        starts, places, sides = [], [], []
        for have, want, middle in zip(scene.image.shape[1::-1], self.extents[::-1], centre, strict=True):
            noise = self.rng.integers(2 * _NOISE) - _NOISE
            starts.append(min(max(nearest(middle) + noise - nearest(want / 2), 0), have - want) if have > want else 0)
            places.append(min(max(nearest((want - have) / 2) + noise, 0), want - have) if have < want else 0)
            sides.append(min(have, want))
        (left, upper), (width, height) = starts, sides
        shift = places[0] - left, places[1] - upper
        return scene.moved(scene.image[upper : upper + height, left : left + width], shift=shift), (places[0], places[1])

    def without_small(self, scene: Scene) -> Scene:
        """The scene with those boxes ignored that are too small, or whose centre is outside."""
        p = self.param.image_gt_data_param
        low, high = scene.truths[:, :2], scene.truths[:, 2:4]
        centres = (low + high) / 2
        outside = ((centres < 0) | (centres >= self.extents[::-1])).any(1)
        small = (high - low + 1 < (p.min_gt_width, p.min_gt_height)).any(1)
        scene.truths[outside | small, 5] = 1
        return scene

    # ---- labels

    def labels(self, scene: Scene, x: int, y: int) -> list[Floats]:
        """The labels of an image that lies at x, y of the batch's, for each kind of field: (6, height, width)."""
        truths = scene.truths
        corners = truths[:, :4]
        maps, best, matched = [], np.zeros((len(self.fields), len(truths))), np.zeros(len(truths), bool)
        for number, (rate, width, height) in enumerate(self.fields):
            size = [nearest(extent / rate) for extent in self.extents]
            rows, columns = np.indices(size)
            centres, half = np.stack((columns, rows), -1).reshape(-1, 2) * rate + rate / 2, np.array([width, height]) / 2
            fields = np.hstack((centres - half, centres + half))
            extents = zip((y, x), scene.image.shape, (rows, columns), strict=False)
            inside = np.ones(size, bool)
            for offset, extent, places in extents:
                first = nearest(offset / rate)
                inside &= (places >= first) & (places < first + nearest(extent / rate))
            covered = boxes.intersections(fields[:, None], scene.ignored).sum(1) / (width * height)
            counted = inside.ravel() & (covered < _COVERED)
            overlaps = np.where(counted[:, None], boxes.overlaps(fields, corners), 0)
            best[number] = overlaps.max(0, initial=0)
            greatest = overlaps.max(1, initial=0)
            labels = np.zeros((6, len(fields)), np.float32)
            labels[5] = np.where(counted, greatest, 1)
            objects = np.flatnonzero(greatest > self.param.image_gt_data_param.fg_threshold)
            chosen = overlaps[objects].argmax(1) if len(objects) else objects
            labels[:5, objects] = self.label_of(truths[chosen])
            matched[chosen] = True
            maps.append(labels.reshape(6, *size))
        for missed in np.flatnonzero(~matched & (truths[:, 5] == 0) & (best.max(0) >= _UNMATCHED)):
            kind = int(best[:, missed].argmax())
            label, rate = self.label_of(truths[[missed]])[:, 0], self.fields[kind][0]
            row, column = (
                min(max(math.floor(value / rate), 0), extent - 1)
                for value, extent in zip(label[2:0:-1], maps[kind].shape[1:], strict=True)
            )
            if maps[kind][0, row, column] <= 0:
                maps[kind][:5, row, column] = label
        return maps

    @staticmethod
    def label_of(truths: Floats) -> Floats:
        """Class, x, y of the centre, width and height of true boxes, (5, M)."""
        low, high = truths[:, :2], truths[:, 2:4]
        classes = np.where(truths[:, 5] == 0, truths[:, 4], 0)
        result: Floats = np.vstack((classes, ((low + high) / 2).T, (high - low).T))
        return result

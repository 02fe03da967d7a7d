"""OpenPose's source of images with the joints of people (Cao et al. 2017), as of caffe_train: CPMData."""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

from caffe.engine.layer import Shape, register
from caffe.errors import Error
from caffe.formats.datum import parse_datum
from caffe.layer_types.data import Batch, Data, Prefetching
from caffe.proto import caffe_pb2
from caffe.transforms import pose_maps
from caffe.transforms.boxes import Floats
from caffe.transforms.pose_maps import OUTSIDE, SEEN, UNKNOWN, Joints

_CHANNELS = 6
"""Of a record: blue, green, red, the people, the mask of the people without joints, and that of all people."""
_GREY, _COUNTED = 128, 255


class Scene(NamedTuple):
    """An image (height × width × 3), where it counts (height × width, 0 to 255), its person's centre and scale, all joints."""

    image: np.ndarray
    mask: np.ndarray
    centre: Floats
    joints: Joints
    scale: float
    """The person's height by that of the crop."""

    def moved(self, image: np.ndarray, mask: np.ndarray, matrix: Floats) -> "Scene":
        """The scene with another image, where a place p is matrix · (p, 1); matrix is (2, 3)."""
        places = self.joints.places @ matrix[:, :2].T + matrix[:, 2]
        return Scene(image, mask, matrix[:, :2] @ self.centre + matrix[:, 2], self.joints._replace(places=places), self.scale)


@register("CPMData", "data_param")
class CPMData(Data):
    """Images and maps of the joints and limbs of people: → (N, 6, H, W), (N, 2 · (num_parts + 1), H / stride, W / stride).

    Records are those of genLMDB of the repository: the image, and in the fourth plane the people, row by row. In training an
    image is scaled so that its person has target_dist of the crop's height, times a factor from scale_min to scale_max with
    scale_prob, turned by up to max_rotate_degree, cropped around the person to crop_size_x × crop_size_y, up to
    center_perterb_max pixels off, and mirrored with flip_prob; what is outside is grey. Channels are (pixel - 128) / 256, the
    last three 0. The first half of the labels are weights, the mask for all channels but for those of unknown joints, as the fork
    numbers them; the second half are fields of the limbs, x and y, confidences of the joints, and the background. num_parts is 56
    (COCO) or 43 (MPII). Testing is not defined. Source: cpm_data_transformer.cpp of CMU-Perceptual-Computing-Lab/caffe_train.
    """

    reads = "records"
    tops = (2, 2)

    def setup(self, *shapes: Shape) -> None:
        Prefetching.setup(self)
        p = self.param.cpm_transform_param
        self.require_positive("batch_size")
        if self.phase == caffe_pb2.TEST:
            raise self.error("phase TEST", "CPMData makes labels in training only", "give it include { phase: TRAIN }")
        if p.num_parts not in pose_maps.SKELETONS:
            raise self.error(f"num_parts {p.num_parts}", "56 (COCO) or 43 (MPII)")
        self.skeleton = pose_maps.SKELETONS[p.num_parts]
        needed = 1 + max(map(max, self.skeleton.sources))
        if p.np_in_lmdb < needed:
            raise self.error(f"np_in_lmdb {p.np_in_lmdb}", f"num_parts {p.num_parts} takes {needed} joints of records")
        if p.stride < 1 or min(p.crop_size_x, p.crop_size_y) < p.stride or p.sigma <= 0:
            found = f"stride {p.stride}, crop_size_x {p.crop_size_x}, crop_size_y {p.crop_size_y} and sigma {p.sigma:g}"
            raise self.error(found, "a crop of at least one stride, and a sigma above 0")
        if p.do_clahe:
            raise self.error("do_clahe: true", "images are not equalized here", "equalize them before they are stored")
        self.ahead = self.param.data_param.prefetch
        self.seed = self.order_seed()
        self.scene(next(self.database.values()))

    def top_shapes(self) -> list[Shape]:
        p = self.param.cpm_transform_param
        images = self.batch_size, _CHANNELS, p.crop_size_y, p.crop_size_x
        return [images, (self.batch_size, 2 * (p.num_parts + 1), p.crop_size_y // p.stride, p.crop_size_x // p.stride)]

    def batch_dependence(self) -> str:
        return "scales, turns, crops and mirrors images at random"

    def read(self, position: int) -> Iterator[Batch]:
        records = map(self.scene, self.records(position))
        while True:
            images, labels = (np.zeros(shape, np.float32) for shape in self.top_shapes())
            for index, scene in enumerate(itertools.islice(records, self.batch_size)):
                changed = self.mirrored(self.cropped(self.turned(self.scaled(scene))))
                images[index, :3] = (changed.image.transpose(2, 0, 1).astype(np.float32) - _GREY) / 256
                self.label(labels[index], changed)
            yield images, labels

    # ---- records

    def scene(self, record: bytes | memoryview) -> Scene:
        """The image and the people of a record."""
        source, p = self.param.data_param.source, self.param.cpm_transform_param
        try:
            datum = parse_datum(record)
            planes = np.frombuffer(datum.data, np.uint8).reshape(datum.channels, datum.height, datum.width)
            if len(planes) != _CHANNELS:
                raise ValueError(f"{len(planes)} channels, not {_CHANNELS}")
            if 4 * p.np_in_lmdb > datum.width:
                raise ValueError(f"{datum.width} columns, too few for {p.np_in_lmdb} joints")
            return self.parse(planes)
        except (ValueError, IndexError) as error:
            do = "write the database with genLMDB, or correct np_in_lmdb"
            raise Error(source, f"a record that is not of OpenPose ({error})", do=do) from error

    def parse(self, planes: np.ndarray) -> Scene:
        """The image and the people of a record's planes."""
        count = self.param.cpm_transform_param.np_in_lmdb
        rows, others = planes[3], int(planes[3, 2, 1])

        def numbers(row: int, count: int) -> Floats:
            values: Floats = rows[row, : 4 * count].view(np.float32).astype(float)
            if len(values) < count or not np.isfinite(values).all():
                raise ValueError(f"row {row} of its people")
            return values

        height, width = numbers(1, 2)
        centre, (scale,) = numbers(3, 2) - 1, numbers(4, 1)
        if not scale > 0:
            raise ValueError(f"a person of scale {scale:g}")
        people = [5, *(9 + others + 3 * number for number in range(others))]
        places = np.array([[numbers(row, count), numbers(row + 1, count)] for row in people]).transpose(0, 2, 1) - 1
        given = np.array([numbers(row + 2, count) for row in people])
        outside = ((places < 0) | (places >= (width, height))).any(2)
        states = np.where(outside, OUTSIDE, np.where(given == 0, 0, SEEN))
        states[0, given[0] == UNKNOWN] = UNKNOWN
        image = np.ascontiguousarray(planes[:3].transpose(1, 2, 0))
        return Scene(image, planes[4].copy(), centre, Joints(places, states).of(self.skeleton), float(scale))

    # ---- changes

    def scaled(self, scene: Scene) -> Scene:
        p = self.param.cpm_transform_param
        factor = p.target_dist / scene.scale
        if self.rng.random() <= p.scale_prob:
            factor *= self.rng.uniform(p.scale_min, p.scale_max)
        image, mask = (
            cv2.resize(each, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC) for each in (scene.image, scene.mask)
        )
        return scene.moved(image, mask, np.hstack((np.eye(2) * factor, np.zeros((2, 1)))))

    def turned(self, scene: Scene) -> Scene:
        angle = self.rng.uniform(-1.0, 1.0) * self.param.cpm_transform_param.max_rotate_degree
        height, width = scene.image.shape[:2]
        matrix: Floats = np.array(cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0), float)
        cosine, sine = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
        half = np.array([width * cosine + height * sine, width * sine + height * cosine]) / 2
        centre = np.array([width, height]) / 2
        extents = np.ceil(centre + half) - np.floor(centre - half) + 1
        matrix[:, 2] = matrix[:, 2] + extents / 2 - centre
        size = int(extents[0]), int(extents[1])
        image = cv2.warpAffine(scene.image, matrix, size, flags=cv2.INTER_CUBIC, borderValue=(_GREY,) * 3)
        mask = cv2.warpAffine(scene.mask, matrix, size, flags=cv2.INTER_CUBIC, borderValue=_COUNTED)
        return scene.moved(image, mask, matrix)

    def cropped(self, scene: Scene) -> Scene:
        p = self.param.cpm_transform_param
        extents = np.array([p.crop_size_x, p.crop_size_y])
        noise = np.trunc(self.rng.uniform(-1.0, 1.0, 2) * p.center_perterb_max)
        corner = np.rint(scene.centre + noise).astype(int) - extents // 2
        low, high = np.maximum(corner, 0), np.minimum(corner + extents, scene.image.shape[1::-1])
        image = np.full((*extents[::-1], 3), _GREY, np.uint8)
        mask = np.full(extents[::-1], _COUNTED, np.uint8)
        if (high > low).all():
            (left, upper), (right, lower) = low - corner, high - corner
            image[upper:lower, left:right] = scene.image[low[1] : high[1], low[0] : high[0]]
            mask[upper:lower, left:right] = scene.mask[low[1] : high[1], low[0] : high[0]]
        return scene.moved(image, mask, np.hstack((np.eye(2), -corner[:, None])))

    def mirrored(self, scene: Scene) -> Scene:
        if self.rng.random() > self.param.cpm_transform_param.flip_prob:
            return scene
        joints = scene.joints.mirrored(self.skeleton, scene.image.shape[1])
        return scene._replace(image=cv2.flip(scene.image, 1), mask=cv2.flip(scene.mask, 1), joints=joints)

    def label(self, labels: Floats, scene: Scene) -> None:
        """Write the labels of a scene."""
        p = self.param.cpm_transform_param
        mask = cv2.resize(scene.mask, labels.shape[:0:-1], interpolation=cv2.INTER_CUBIC)
        labels[: p.num_parts + 1] = mask / np.float32(255)
        labels[: len(self.skeleton.sources)][scene.joints.states[0] == UNKNOWN] = 0
        size = labels.shape[1], labels.shape[2]
        labels[p.num_parts + 1 :] = pose_maps.maps(scene.joints, self.skeleton, p.stride, size, p.sigma)

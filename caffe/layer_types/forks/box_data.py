"""Images with boxes for YOLO, by the cells of a grid: BoxData of yeahkun/caffe-yolo (Redmon et al. 2016)."""

import itertools
import math
from collections.abc import Iterator

import cv2
import numpy as np

from caffe.engine.layer import Shape, register
from caffe.errors import Error
from caffe.formats.datum import pixels_of
from caffe.layer_types.data import Batch, Data
from caffe.proto import caffe_pb2
from caffe.transforms.boxes import Boxes

_SIDES = (7,)
_LEAST = 0.71
"""Least part of each side that a random window shows."""
_TRIES = 1000


@register("BoxData", "data_param")
class BoxData(Data):
    """Images and boxes from a database of Datum records: → (N, C, H, W), and (N, 7 S²) for each S of `side` (7).

    A record's float_data has class, difficult, and x, y of the centre, width and height in fractions of the image, for each box.
    An image's labels are S² values each of difficult, of 1 where a cell has a box, and of its class or -1, then S² times x, y,
    width, height; of several boxes in a cell, the last. In training an image is a random window of 71 to 100 % of both sides, as
    large as the image again, and boxes are those with their centre in it; it is drawn again until it has one. Source:
    box_data_layer and data_transformer of yeahkun/caffe-yolo.
    """

    reads = "records"
    tops = (2, None)

    def setup(self, *shapes: Shape) -> None:
        super().setup(*shapes)
        self.sides = tuple(self.param.data_param.side) or _SIDES
        if len(self.sides) != len(self.param.top) - 1 or min(self.sides) < 1:
            raise self.error(f"side {list(self.sides)} for {len(self.param.top)} tops", "one, at least 1, for each top of labels")
        if self.param.transform_param.mirror or any(self.transformer.crop_extents) or self.transformer.resize:
            raise self.error("mirror, crop_size or a change of size in transform_param", "boxes do not follow it", "leave it out")

    def top_shapes(self) -> list[Shape]:
        sides = tuple(self.param.data_param.side) or _SIDES
        images = (self.batch_size, *self.transformer.shape(self.image))
        return [images, *((self.batch_size, 7 * side * side) for side in sides)]

    def batch_dependence(self) -> str:
        return "shows windows of images at random" if self.phase == caffe_pb2.TRAIN else super().batch_dependence()

    def pixels(self, record: bytes | memoryview) -> tuple[np.ndarray, int]:
        return self.labelled(record)[0], 0

    def labelled(self, record: bytes | memoryview) -> tuple[np.ndarray, Boxes]:
        """Image and boxes (M, 6) of a record."""
        source = self.param.data_param.source
        datum = self.datum(record)
        values = np.array(datum.float_data, np.float32)
        if not len(values) or len(values) % 6:
            raise Error(
                source, f"a record with {len(values)} float_data", "six for each box: class, difficult, x, y, width, height"
            )
        return pixels_of(datum, self.color, source), values.reshape(-1, 6)

    def read(self, position: int) -> Iterator[Batch]:
        records = map(self.labelled, self.records(position))
        while True:
            shown = [self.window(*each) for each in itertools.islice(records, self.batch_size)]
            images = self.transformer([image for image, _ in shown])
            yield images, *(np.stack([cells(boxes, side) for _, boxes in shown]) for side in self.sides)

    def window(self, image: np.ndarray, boxes: Boxes) -> tuple[np.ndarray, Boxes]:
        """A random window of an image (C, H, W), as large as the image, and the boxes in it; in testing the image."""
        if self.phase == caffe_pb2.TEST:
            return image, boxes
        extents = np.array(image.shape[:0:-1])
        pixels = (boxes[:, 2:].reshape(-1, 2, 2) * extents).astype(int)
        for _ in range(_TRIES):
            part = 1 - self.rng.integers(30) / 100
            sides = (extents * part).astype(int) - 1
            corner = np.array([self.rng.integers(int(room)) for room in extents - sides])
            places = pixels[:, 0] - corner
            inside = ((places >= 0) & (places < sides)).all(1)
            if inside.any():
                moved = np.concatenate((places[inside], pixels[inside, 1]), 1) / np.tile(sides, 2)
                (left, upper), (right, lower) = corner, corner + sides
                shown = cv2.resize(image[:, upper:lower, left:right].transpose(1, 2, 0), tuple(map(int, extents)))
                shown = shown.reshape(*image.shape[1:], -1).transpose(2, 0, 1)
                return shown, np.hstack((boxes[inside, :2], moved.astype(np.float32)))
        raise Error(
            self.param.data_param.source,
            f"a record whose boxes are in none of {_TRIES} windows",
            f"windows show {math.floor(_LEAST * 100)} to 100 % of an image, and a box's centre must be in the image",
            "correct the record, or remove it",
        )


def cells(boxes: Boxes, side: int) -> np.ndarray:
    """The labels (7 S²,) of an image's boxes (M, 6) on a grid of S × S cells."""
    difficult, occupied = np.zeros((2, side, side))
    classes = np.full((side, side), -1.0)
    coordinates = np.zeros((side, side, 4))
    for box in boxes:
        column, row = (min(math.floor(value * side), side - 1) for value in box[2:4])
        difficult[row, column], occupied[row, column], classes[row, column] = box[1], 1, box[0]
        coordinates[row, column] = box[2:]
    return np.concatenate([part.ravel() for part in (difficult, occupied, classes, coordinates)]).astype(np.float32)

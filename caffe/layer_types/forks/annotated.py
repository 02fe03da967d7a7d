"""SSD's data layer of images with boxes, which eric612/MobileNet-YOLO extended for YOLO: AnnotatedData."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from caffe.engine.layer import Shape, register
from caffe.errors import Error
from caffe.formats.datum import pixels_of
from caffe.layer_types.data import Batch, Data, Prefetching
from caffe.numerics.generator import Generator
from caffe.proto import caffe_pb2
from caffe.transforms.box_transform import BoxTransformer
from caffe.transforms.boxes import Boxes
from caffe.transforms.detections import read_label_map

_BATCHES_OF_A_SIZE = 10
"""Batches for which one of several resize_param is drawn."""
YOLO_ROWS = 300
"""Rows of an image's labels with yolo_data_type 1."""


@register("AnnotatedData", "data_param")
class AnnotatedData(Data):
    """Images and boxes from a database of AnnotatedDatum records: → (N, C, H, W), (1, 1, boxes, 8) as MultiBoxLoss takes them.

    A row is the image's index in the batch, label, instance, xmin, ymin, xmax, ymax, difficult; without boxes, one row of -1.
    With yolo_data_type 1 (eric612/MobileNet-YOLO) the second top is (N, 1, 300, 5) as RegionLoss and Yolov3 take it: rows of
    class, x, y, width, height in fractions of the image, x and y of the centre, and then zeros. The class is the record's
    label - 1, as label 0 is the background; train_diffcult: false leaves difficult boxes out. yolo_data_jitter crops in both
    phases, as there; unlike there, only if it is set or yolo_data_type is 1.
    If records have no annotations, the second top is their labels (N,). Of several resize_param (eric612's MobileNet-YOLO) one
    is drawn by its `prob` for every ten batches; the tops before the first batch have the first one's size.
    """

    reads = "records"
    seeds = ("seed", "policy_seed")

    def setup(self, *shapes: Shape) -> None:
        Prefetching.setup(self)
        p, transform = self.param.data_param, self.param.transform_param
        self.require_positive("batch_size")
        if transform.force_color and transform.force_gray:
            raise self.error("both force_color and force_gray", "only one may be given")
        self.ahead = p.prefetch
        self.seed = self.order_seed()
        self.policy_seed = self.rng.seed() if len(transform.resize_param) > 1 else None
        self.color = True if transform.force_color or p.force_encoded_color else (False if transform.force_gray else None)
        annotated = self.param.annotated_data_param
        if annotated.label_map_file:
            read_label_map(annotated.label_map_file)
        if annotated.yolo_data_type not in (0, 1):
            raise self.error(f"yolo_data_type {annotated.yolo_data_type}", "0 (labels of SSD) or 1 (labels of YOLO)")
        self.yolo = annotated.yolo_data_type == 1
        jitter = annotated.yolo_data_jitter if self.yolo or annotated.HasField("yolo_data_jitter") else 0
        self.box_transformer = BoxTransformer(transform, annotated.batch_sampler, self.phase, self.where, self.rng, jitter)
        image, truths, _ = self.parse(next(self.database.values()))
        self.annotated = truths is not None
        values, _ = self.box_transformer(image, np.empty((0, 7), np.float32))
        labels: Shape = (p.batch_size,)
        if truths is not None:
            labels = (p.batch_size, 1, YOLO_ROWS, 5) if self.yolo else (1, 1, max(1, len(truths)), 8)
        self.shapes = [(p.batch_size, *values.shape), labels]

    def top_shapes(self) -> list[Shape]:
        return self.shapes[: len(self.param.top)]

    def batch_dependence(self) -> str:
        random = self.box_transformer.jitter or (
            self.phase == caffe_pb2.TRAIN
            and (
                self.param.annotated_data_param.batch_sampler
                or any(self.param.transform_param.HasField(field) for field in ("distort_param", "expand_param", "noise_param"))
                or self.policy_seed is not None
            )
        )
        return "samples or changes images at random" if random else super().batch_dependence()

    def parse(self, record: bytes | memoryview) -> tuple[np.ndarray, np.ndarray | None, int]:
        """Image, ground-truth boxes (None if the record has no annotations) and label of a record."""
        source = self.param.data_param.source
        datum = caffe_pb2.AnnotatedDatum()
        try:
            datum.ParseFromString(bytes(record))
        except Exception as error:
            raise Error(source, f"a record that is not an AnnotatedDatum ({error})", do="rebuild the database") from error
        image = pixels_of(datum.datum, self.color, source).transpose(1, 2, 0)
        if not (datum.HasField("type") or self.param.annotated_data_param.HasField("anno_type")):
            return image, None, datum.datum.label
        rows = [
            (group.group_label, each.instance_id, box.xmin, box.ymin, box.xmax, box.ymax, box.difficult)
            for group in datum.annotation_group
            for each in group.annotation
            for box in [each.bbox]
        ]
        truths = np.array(rows, np.float32).reshape(-1, 7)
        if not (np.abs(truths) < 1e6).all():
            raise Error(source, "a box that is not finite", "corners are fractions of the image", "rebuild the database")
        return image, truths, datum.datum.label

    def read(self, position: int) -> Iterator[Batch]:
        source = self.param.data_param.source
        records = map(self.parse, self.records(position))
        for number in itertools.count(position // self.batch_size):
            if self.policy_seed is not None:
                self.box_transformer.choose_resizing(Generator(self.policy_seed, number // _BATCHES_OF_A_SIZE).random())
            images: list[np.ndarray] = []
            found: list[Boxes] = []
            labels = []
            for image, truths, label in itertools.islice(records, self.batch_size):
                if (truths is not None) != self.annotated:
                    raise Error(source, "records with annotations and records without", do="rebuild the database")
                values, truths = self.box_transformer(image, np.empty((0, 7), np.float32) if truths is None else truths)
                if images and values.shape != images[0].shape:
                    raise Error(
                        self.where,
                        f"an image of shape {values.shape} in a batch of {images[0].shape}",
                        do="give resize_param with resize_mode: WARP, or batch_size: 1",
                    )
                images.append(values)
                found.append(truths)
                labels.append(label)
            yield np.stack(images), self.rows(found) if self.annotated else np.asarray(labels, np.float32)

    def rows(self, truths: Sequence[Boxes]) -> np.ndarray:
        """The second top, of the truths of each image of a batch."""
        if self.yolo:
            return np.stack([self.yolo_rows(each) for each in truths])[:, None]
        numbered = [np.hstack((np.full((len(each), 1), place), each)) for place, each in enumerate(truths)]
        boxes = np.concatenate(numbered).astype(np.float32)
        return (boxes if len(boxes) else np.full((1, 8), -1, np.float32))[None, None]

    def yolo_rows(self, truths: Boxes) -> Boxes:
        """An image's truths as YOLO takes them, (300, 5); raises Error for more of them or the label of the background."""
        source = self.param.data_param.source
        if not self.param.annotated_data_param.train_diffcult:
            truths = truths[truths[:, 6] == 0]
        if len(truths) > YOLO_ROWS:
            expected = f"yolo_data_type 1 has room for {YOLO_ROWS}"
            raise Error(source, f"an image with {len(truths)} boxes", expected, "rebuild the database with crops of the image")
        if (truths[:, 0] < 1).any():
            expected = "with yolo_data_type 1 labels start from 1 (class 0)"
            raise Error(source, f"a box of label {truths[:, 0].min():g}", expected, "rebuild the database")
        low, high = truths[:, 2:4], truths[:, 4:6]
        rows = np.zeros((YOLO_ROWS, 5), np.float32)
        rows[: len(truths)] = np.hstack((truths[:, :1] - 1, (low + high) / 2, high - low))
        return rows

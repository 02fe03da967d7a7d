"""SSD's data layer of images with boxes: AnnotatedData."""

import itertools
from collections.abc import Iterator

import numpy as np

from caffe.engine.layer import Shape, register
from caffe.errors import Error
from caffe.formats.datum import pixels_of
from caffe.layer_types.data import Batch, Data, Prefetching
from caffe.numerics.generator import Generator
from caffe.proto import caffe_pb2
from caffe.transforms.box_transform import BoxTransformer
from caffe.transforms.detections import read_label_map

_BATCHES_OF_A_SIZE = 10
"""Batches for which one of several resize_param is drawn."""


@register("AnnotatedData", "data_param")
class AnnotatedData(Data):
    """Images and boxes from a database of AnnotatedDatum records: → (N, C, H, W), (1, 1, boxes, 8) as MultiBoxLoss takes them.

    A row is the image's index in the batch, label, instance, xmin, ymin, xmax, ymax, difficult; without boxes, one row of -1.
    If records have no annotations, the second top is their labels (N,). Of several resize_param (eric612's MobileNet-YOLO) one
    is drawn by its `prob` for every ten batches; the tops before the first batch have the first one's size.
    """

    reads = "records"

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
        self.box_transformer = BoxTransformer(transform, annotated.batch_sampler, self.phase, self.where, self.rng)
        image, truths, _ = self.parse(next(self.database.values()))
        self.annotated = truths is not None
        values, _ = self.box_transformer(image, np.empty((0, 7), np.float32))
        labels = (p.batch_size,) if truths is None else (1, 1, max(1, len(truths)), 8)
        self.shapes = [(p.batch_size, *values.shape), labels]

    def top_shapes(self) -> list[Shape]:
        return self.shapes[: len(self.param.top)]

    def batch_dependence(self) -> str:
        random = self.phase == caffe_pb2.TRAIN and (
            self.param.annotated_data_param.batch_sampler
            or any(self.param.transform_param.HasField(field) for field in ("distort_param", "expand_param", "noise_param"))
            or self.policy_seed is not None
        )
        return "samples or changes images at random" if random else super().batch_dependence()

    def keep(self, state: caffe_pb2.LayerState) -> None:
        super().keep(state)
        if self.policy_seed is not None:
            state.policy_seed = self.policy_seed

    def resume(self, state: caffe_pb2.LayerState) -> None:
        super().resume(state)
        if self.policy_seed is not None and state.HasField("policy_seed"):
            self.policy_seed = state.policy_seed

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
            rows, labels = [], []
            for place, (image, truths, label) in enumerate(itertools.islice(records, self.batch_size)):
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
                rows.append(np.hstack((np.full((len(truths), 1), place, np.float32), truths)))
                labels.append(label)
            boxes = np.concatenate(rows).astype(np.float32)
            if not len(boxes):
                boxes = np.full((1, 8), -1, np.float32)
            yield np.stack(images), boxes[None, None] if self.annotated else np.asarray(labels, np.float32)

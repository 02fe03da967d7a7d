"""Segmentation: sources of images and maps of labels (DeepLab's ImageSegData, HED's ImageLabelmapData), EltwiseAccuracy."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np

from caffe.engine.layer import Shape, register
from caffe.errors import Error
from caffe.layer_types.data import Batch
from caffe.layer_types.files import IMAGE_LIST, ImageData, numbered_lines, read_listed
from caffe.layer_types.loss import Accuracy
from caffe.proto import caffe_pb2
from caffe.transforms.segmentation import SegmentationTransformer
from caffe.transforms.transform import crop_of

NONE, IMAGE, PIXEL = (caffe_pb2.ImageDataParameter.LabelType.Value(name) for name in ("NONE", "IMAGE", "PIXEL"))


@register("ImageSegData", "image_data_param")
class ImageSegData(ImageData):
    """Images and maps of labels from a list, repeated endlessly: → (N, C, H, W), (N, 1, H, W)[, (N, 1, 1, 2)].

    A line is `image labels` with label_type PIXEL (both paths, labels the gray values), `image label` with IMAGE (one label for
    all pixels), `image` with NONE (ignore_label for all). Both are scaled, cropped and mirrored alike: see
    SegmentationTransformer. The third top has height and width of each image, as far as it fits into the crop. Source: DeepLab's
    image_seg_data_layer.cpp; unlike there, labels are resized to new_height and new_width by nearest neighbour, so that none are
    mixed.
    """

    tops = (2, 3)
    reads = "records"

    def make_transformer(self) -> Any:
        p = self.param.image_data_param
        return SegmentationTransformer(self.param.transform_param, p.ignore_label, self.phase, self.where, self.rng)

    def setup(self, *shapes: Shape) -> None:
        super().setup(*shapes)
        self.pair(self.lines[0])

    def batch_dependence(self) -> str:
        transform = self.param.transform_param
        crops = self.phase == caffe_pb2.TRAIN and any(crop_of(transform, self.where))
        random = transform.scale_factors or transform.mirror or crops
        return "scales, crops or mirrors images at random" if random else super().batch_dependence()

    def top_shapes(self) -> list[Shape]:
        channels, *extents = self.transformer.shape(self.image)
        batch = self.batch_size
        return [(batch, channels, *extents), (batch, 1, *extents), (batch, 1, 1, 2)][: len(self.param.top)]

    def read_list(self) -> list[tuple[str, Any]]:
        p = self.param.image_data_param
        return [self._parsed(number, line) for number, line in numbered_lines(p.source, IMAGE_LIST, self.where)]

    def _parsed(self, number: int, line: str) -> tuple[str, Any]:
        """Path of the image, and path of the labels or the label, of a line."""
        p = self.param.image_data_param
        image, *rest = line.split()
        if p.label_type == NONE:
            return p.root_folder + image, p.ignore_label
        if len(rest) != 1 or (p.label_type == IMAGE and not rest[0].isdigit()):
            expected = '"image label"' if p.label_type == IMAGE else '"image labels", two paths'
            do = "set label_type: PIXEL if labels are images" if p.label_type == IMAGE else ""
            raise Error(f"{p.source}:{number}", f'"{line}"', f"a line must be {expected}", do)
        return p.root_folder + image, int(rest[0]) if p.label_type == IMAGE else p.root_folder + rest[0]

    def pair(self, line: tuple[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Image and labels of a line, of the same extents."""
        image = self.pixels(line)
        if not isinstance(line[1], str):
            return image, np.full((1, *image.shape[1:]), line[1], np.float32)
        p = self.param.image_data_param
        labels = read_listed(p.source, p.root_folder, line[1], False, self.size, cv2.INTER_NEAREST)
        if labels.shape[1:] != image.shape[1:]:
            raise Error(line[1], "labels of {}×{}".format(*labels.shape[1:]), "the image has {}×{}".format(*image.shape[1:]))
        return image, labels

    def read(self, position: int) -> Iterator[Batch]:
        lines = self.ordered(position)
        with ThreadPoolExecutor(2) as pool:
            while True:
                pairs = list(pool.map(self.pair, itertools.islice(lines, self.batch_size)))
                images, labels = zip(*itertools.starmap(self.transformer, pairs), strict=True)
                if len({image.shape for image in images}) > 1:
                    raise self.error("images of different sizes in one batch", do="give crop_size, or new_height and new_width")
                limits = images[0].shape[1:]
                extents = np.array([np.minimum(image.shape[1:], limits) for image, _ in pairs], np.float32)
                yield np.stack(images), np.stack(labels), extents[:, None, None]


@register("ImageLabelmapData", "image_data_param")
class ImageLabelmapData(ImageSegData):
    """Images and maps of edges from a list of `image edges` lines, repeated endlessly: → (N, C, H, W), (N, 1, H, W).

    A label is 1 where the gray value is at least 128, else 0, after both are resized to new_height and new_width. Both are
    cropped and mirrored alike: see SegmentationTransformer; beyond an image that is smaller than the crop, labels are
    ignore_label. Source: HED's image_labelmap_data_layer.cpp (Xie and Tu 2015), where the crop has to fit.
    """

    tops = (2, 2)

    def _parsed(self, number: int, line: str) -> tuple[str, Any]:
        p = self.param.image_data_param
        paths = line.split()
        if len(paths) != 2:
            raise Error(f"{p.source}:{number}", f'"{line}"', 'a line must be "image edges", two paths')
        return p.root_folder + paths[0], p.root_folder + paths[1]

    def pair(self, line: tuple[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        p = self.param.image_data_param
        image, edges = self.pixels(line), read_listed(p.source, p.root_folder, line[1], False, self.size)
        if edges.shape[1:] != image.shape[1:]:
            raise Error(line[1], "edges of {}×{}".format(*edges.shape[1:]), "the image has {}×{}".format(*image.shape[1:]))
        return image, (edges > 127).astype(np.uint8)


@register("EltwiseAccuracy")
class EltwiseAccuracy(Accuracy):
    """Accuracy of maps: (scores (N, C, H, W), labels (N, 1, H, W)) → scalar (DeconvNet, Noh et al. 2015).

    Among equal scores the fork takes the class of the greater number; here, as in Accuracy, the label's own ranks last.
    """

    tops = (1, 1)

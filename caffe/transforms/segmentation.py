"""Images and maps of their labels, transformed together: DeepLab's random scale, padding and crop, and mirroring."""

import cv2
import numpy as np

from caffe.errors import Error
from caffe.numerics.generator import Generator
from caffe.proto import caffe_pb2
from caffe.transforms.random_crops import resized
from caffe.transforms.transform import crop_of, mean_values

_APPLIED = frozenset(
    ("scale", "mirror", "crop_size", "crop_height", "crop_width", "mean_value", "scale_factors", "use_gpu_transform")
)


class SegmentationTransformer:
    """Transforms pairs of an image and its labels, as TransformImgAndSeg of DeepLab's data_transformer.cpp.

    One of scale_factors is drawn for both; what is smaller than the crop is padded at the bottom and the right, by the mean and
    the label to ignore; crops are random in training and central in testing.
    """

    def __init__(self, param: caffe_pb2.TransformationParameter, ignored: int, phase: int, where: str, rng: Generator):
        for field, _ in param.ListFields():
            if field.name not in _APPLIED:
                raise Error(where, f"transform_param has {field.name}", "images with maps of labels are not changed by it")
        self.crop = crop_of(param, where)
        if param.scale_factors and not all(self.crop):
            raise Error(where, "scale_factors and no crop", "a batch has one size", "give crop_size")
        if any(factor <= 0 for factor in param.scale_factors):
            raise Error(where, f"scale_factors {min(param.scale_factors):g}", "they must be above 0")
        self.param, self.ignored, self.where, self.rng = param, ignored, where, rng
        self.training = phase == caffe_pb2.TRAIN

    def shape(self, image: tuple[int, ...]) -> tuple[int, ...]:
        """Channels, height and width after transforming an image of that shape."""
        return (image[0], *self.crop) if all(self.crop) else tuple(image)

    def __call__(self, image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """An image, channels × height × width, and its labels, 1 × height × width: float32, and labels of the same extents."""
        p = self.param
        mean = mean_values(p, len(image), self.where) if p.mean_value else np.zeros(len(image), np.float32)
        image, labels = self._scaled(image, labels)
        values = image.astype(np.float32)
        if all(self.crop):
            values, labels = self._cropped(values, labels, mean)
        if p.mirror and self.rng.integers(2):
            values, labels = values[:, :, ::-1], labels[:, :, ::-1]
        return (values - mean[:, None, None]) * np.float32(p.scale), labels.astype(np.float32)

    def _scaled(self, image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        factors = self.param.scale_factors
        factor = factors[self.rng.integers(len(factors))] if factors else 1
        if factor == 1:
            return image, labels
        height, width = (max(1, int(extent * factor)) for extent in image.shape[1:])
        return resized(image, height, width), resized(labels, height, width, cv2.INTER_NEAREST)

    def _cropped(self, image: np.ndarray, labels: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, width = (max(pair) for pair in zip(self.crop, image.shape[1:], strict=True))
        padded = np.empty((len(image), height, width), np.float32)
        padded[...] = mean[:, None, None]
        padded[:, : image.shape[1], : image.shape[2]] = image
        whole = np.full((1, height, width), self.ignored, np.float32)
        whole[:, : labels.shape[1], : labels.shape[2]] = labels
        room = height - self.crop[0], width - self.crop[1]
        top, left = (int(self.rng.integers(free + 1)) if self.training else free // 2 for free in room)
        window = np.s_[:, top : top + self.crop[0], left : left + self.crop[1]]
        return padded[window], whole[window]

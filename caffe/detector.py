"""caffe.Detector: a net that classifies windows of images (R-CNN, Girshick et al. 2014)."""

import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caffe import io
from caffe.classifier import Mean, create_transformer
from caffe.engine import early
from caffe.engine.net import Net
from caffe.errors import Error
from caffe.proto.caffe_pb2 import TEST


class Detector(Net):
    """A net in phase TEST whose first input takes windows of images, resized to its size.

    mean, input_scale, raw_scale, channel_swap, of_2014   as for caffe.Classifier
    context_pad   context around the window, in pixels at each border of the input; needs a square input
    """

    def __init__(
        self,
        model_file: str,
        pretrained_file: str,
        mean: Mean | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
        context_pad: int | None = None,
        **of_2014: Any,
    ):
        settings = {"mean": mean, "input_scale": input_scale, "raw_scale": raw_scale, "channel_swap": channel_swap}
        early.keywords(settings, of_2014, "Detector")
        super().__init__(model_file, TEST, weights=pretrained_file)
        self.transformer = create_transformer(self, **settings)
        self.configure_crop(context_pad)

    def configure_crop(self, context_pad: int | None) -> None:
        """Set the context of the windows, which beyond the image's edge is filled with the mean, in the images' units."""
        name = self.inputs[0]
        to_image = np.argsort(self.transformer.transpose[name])
        self.crop_dims = np.array(self.blobs[name].shape[1:])[to_image]
        self.context_pad = context_pad
        if not context_pad:
            return
        mean = self.transformer.mean.get(name, np.zeros(()))
        self.crop_mean = np.broadcast_to(mean, self.blobs[name].shape[1:]).transpose(to_image).astype(np.float32)
        if (order := self.transformer.channel_swap.get(name)) is not None:
            self.crop_mean = self.crop_mean[:, :, np.argsort(order)]
        if (raw_scale := self.transformer.raw_scale.get(name)) is not None:
            self.crop_mean = self.crop_mean / raw_scale

    def detect_windows(self, images_windows: Iterable[tuple[str, np.ndarray]]) -> list[dict[str, Any]]:
        """Classify windows: [{"window": …, "prediction": the first output, "filename": …}, …] in the given order.

        images_windows  pairs of an image file and its windows, each (ymin, xmin, ymax, xmax) in pixels
        """
        name = self.inputs[0]
        detections, prepared = [], []
        for filename, windows in images_windows:
            image = io.load_image(filename).astype(np.float32)
            for window in windows:
                detections.append({"window": window, "filename": filename})
                prepared.append(self.transformer.preprocess(name, self.crop(image, window)))
        if not detections:
            return []
        predictions = self.forward_all(**{name: np.stack(prepared).astype(np.float32)})[self.outputs[0]]
        return [{**found, "prediction": prediction} for found, prediction in zip(detections, predictions, strict=True)]

    def detect_selective_search(self, image_fnames: Iterable[str]) -> list[dict[str, Any]]:
        """Classify the windows that selective search proposes (Uijlings et al. 2013), by its MATLAB program."""
        try:
            search = importlib.import_module("selective_search_ijcv_with_python")
        except ModuleNotFoundError as error:
            do = "put it on PYTHONPATH, or pass your own windows to detect_windows"
            found = "no module selective_search_ijcv_with_python"
            raise Error("detect_selective_search", found, "it proposes the windows, by MATLAB", do) from error
        filenames = [str(Path(name).resolve()) for name in image_fnames]
        return self.detect_windows(zip(filenames, search.get_windows(filenames, cmd="selective_search_rcnn"), strict=True))

    def crop(self, im: np.ndarray, window: np.ndarray) -> np.ndarray:
        """Crop a window of an image, height × width × channels; with context_pad, with its context, resized to the input."""
        ymin, xmin, ymax, xmax = (int(side) for side in window)
        if not self.context_pad:
            return im[ymin:ymax, xmin:xmax]
        size = self.blobs[self.inputs[0]].width
        scale = size / (size - 2.0 * self.context_pad)
        half = np.array([ymax - ymin + 1, xmax - xmin + 1]) / 2.0
        centre = np.array([ymin, xmin]) + half
        low, high = np.round(centre - scale * half), np.round(centre + scale * half)
        ratio = size / (high - low + 1)
        limits = np.array(im.shape[:2])
        outside = np.round(np.maximum(0, -low) * ratio).astype(int)
        low, high = np.clip(low, 0, limits), np.clip(high, 0, limits)
        if (high <= low).any():
            raise Error(
                "Detector.crop", f"window {tuple(window)} outside the image", f"the image has {limits[0]}×{limits[1]} pixels"
            )
        # Rounding can make the resized part one pixel too large.
        extent = np.minimum(np.round((high - low + 1) * ratio).astype(int), size - outside)
        top, left, bottom, right = (int(side) for side in (*low, *high))
        part = io.resize_image(im[top:bottom, left:right], tuple(int(side) for side in extent))
        crop = np.ones(self.crop_dims, np.float32) * self.crop_mean
        crop[outside[0] : outside[0] + extent[0], outside[1] : outside[1] + extent[1]] = part
        return crop

"""caffe.Classifier: a net that classifies images, with resizing, cropping and preprocessing."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from caffe import io
from caffe.engine import early
from caffe.engine.net import Net
from caffe.errors import Error
from caffe.proto.caffe_pb2 import TEST

Mean = np.ndarray | str | os.PathLike[str]


class Classifier(Net):
    """A net in phase TEST whose first input takes images.

    image_dims    height and width to which images are resized before cropping; the input's by default
    mean          subtracted after raw_scale: an array of the input's shape without the batch axis, or one value for each channel;
                  or a .npy or .binaryproto file
    input_scale   factor applied after the mean
    raw_scale     factor applied before the mean: 255 for nets trained on 0 to 255, since images are loaded as 0 to 1
    channel_swap  order of the channels: (2, 1, 0) for nets trained on BGR
    of_2014       mean_file and gpu, which were dropped since; see caffe.early
    """

    def __init__(
        self,
        model_file: str,
        pretrained_file: str,
        image_dims: Sequence[int] | None = None,
        mean: Mean | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
        **of_2014: Any,
    ):
        settings = {"mean": mean, "input_scale": input_scale, "raw_scale": raw_scale, "channel_swap": channel_swap}
        early.keywords(settings, of_2014, "Classifier")
        super().__init__(model_file, TEST, weights=pretrained_file)
        self.transformer = create_transformer(self, **settings)
        self.crop_dims = np.array(self.blobs[self.inputs[0]].shape[2:])
        self.image_dims = self.crop_dims if image_dims is None or len(image_dims) == 0 else image_dims

    def predict(self, inputs: Sequence[np.ndarray], oversample: bool = True) -> np.ndarray:
        """The net's first output for each image: N × classes.

        inputs      N images, height × width × channels, from caffe.io.load_image
        oversample  average over ten crops (corners and centre, each also mirrored) instead of the centre crop alone
        """
        check_images(inputs)
        scaled = np.stack([io.resize_image(image, self.image_dims) for image in inputs]).astype(np.float32)
        if oversample:
            crops = io.oversample(scaled, self.crop_dims)
        else:
            corner = ((np.array(self.image_dims) - self.crop_dims) / 2.0).astype(int)
            height, width = self.crop_dims
            crops = scaled[:, corner[0] : corner[0] + height, corner[1] : corner[1] + width]
        name = self.inputs[0]
        prepared = np.stack([self.transformer.preprocess(name, crop) for crop in crops]).astype(np.float32)
        predictions: np.ndarray = self.forward_all(**{name: prepared})[self.outputs[0]]
        return predictions.reshape((len(predictions) // 10, 10, -1)).mean(1) if oversample else predictions


def check_images(inputs: Sequence[np.ndarray]) -> None:
    """Raise an Error unless `inputs` are images, height × width × channels; a single image is not a list of them."""
    for image in inputs:
        if np.ndim(image) != 3:
            found = f"an array of shape {np.shape(image)}" if np.ndim(image) else repr(image)
            do = "write net.predict([caffe.io.load_image(FILE)]), with a list also of one image"
            raise Error("predict", found, "each input is an image of height × width × channels", do)


def create_transformer(net: Net, **settings: Any) -> io.Transformer:
    """The preprocessing of images for the first input of `net`, by caffe.Classifier's settings; None leaves one out."""
    name = net.inputs[0]
    result = io.Transformer({name: net.blobs[name].shape})
    result.set_transpose(name, (2, 0, 1))
    for setting, value in settings.items():
        if value is not None:
            getattr(result, f"set_{setting}")(name, value)
    return result

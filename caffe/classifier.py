"""caffe.Classifier: a net that classifies images, prepared and cropped as the net wants them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffe import io
from caffe.engine.net import Net
from caffe.proto.caffe_pb2 import TEST


class Classifier(Net):
    """A net in testing whose first input takes images.

    image_dims    height and width that images are scaled to before they are cropped; those of the input by default
    mean          subtracted after raw_scale: an array of the input's shape without the batch, or one value for each channel
    input_scale   factor after the mean
    raw_scale     factor before the mean: 255 for nets trained on 0 to 255, as images are loaded as 0 to 1
    channel_swap  order of the channels: (2, 1, 0) for nets trained on BGR
    """

    def __init__(
        self, model_file, pretrained_file, image_dims=None, mean=None, input_scale=None, raw_scale=None, channel_swap=None
    ):
        super().__init__(model_file, TEST, weights=pretrained_file)
        self.transformer = transformer(self, mean, input_scale, raw_scale, channel_swap)
        self.crop_dims = np.array(self.blobs[self.inputs[0]].shape[2:])
        self.image_dims = self.crop_dims if image_dims is None or len(image_dims) == 0 else image_dims

    def predict(self, inputs: Sequence[np.ndarray], oversample: bool = True) -> np.ndarray:
        """The net's first output for each image: N × classes.

        inputs      N images, height × width × channels, as caffe.io.load_image gives them
        oversample  take the mean over ten crops (corners, centre, and all mirrored) in place of the centre alone
        """
        scaled = np.stack([io.resize_image(image, self.image_dims) for image in inputs]).astype(np.float32)
        if oversample:
            crops = io.oversample(scaled, self.crop_dims)
        else:
            corner = ((np.array(self.image_dims) - self.crop_dims) / 2.0).astype(int)
            height, width = self.crop_dims
            crops = scaled[:, corner[0] : corner[0] + height, corner[1] : corner[1] + width]
        name = self.inputs[0]
        prepared = np.stack([self.transformer.preprocess(name, crop) for crop in crops]).astype(np.float32)
        predictions = self.forward_all(**{name: prepared})[self.outputs[0]]
        if oversample:
            predictions = predictions.reshape((len(predictions) // 10, 10, -1)).mean(1)
        return predictions


def transformer(net: Net, mean, input_scale, raw_scale, channel_swap) -> io.Transformer:
    """What prepares images (height × width × channels, 0 to 1) for the first input of `net`."""
    name = net.inputs[0]
    result = io.Transformer({name: net.blobs[name].shape})
    result.set_transpose(name, (2, 0, 1))
    for set_to, value in (
        (result.set_mean, mean),
        (result.set_input_scale, input_scale),
        (result.set_raw_scale, raw_scale),
        (result.set_channel_swap, channel_swap),
    ):
        if value is not None:
            set_to(name, value)
    return result

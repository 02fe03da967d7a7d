"""How an image becomes a net's input: written beside the nets, and read by the steps that give them image files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from google.protobuf import json_format

import caffe
from caffe.proto import caffe_pb2
from pipeline.dataset.resize import resize, size_of
from pipeline.errors import InputError
from pipeline.formats.images import content_of, decode
from pipeline.options.dataset import ImageSize, ResizeOptions


@dataclass(frozen=True)
class Preprocessing:
    """How the dataset's images were resized, and what the Data layer does to them in testing.

    resize     size, mode, interpolation, colour or gray
    transform  crop, mean and scale
    channels   channel order of the records: BGR or RGB
    """

    resize: ResizeOptions
    transform: caffe_pb2.TransformationParameter
    channels: str = "BGR"

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        content = {
            "resize": {
                "height": self.resize.size.height,
                "width": self.resize.size.width,
                "mode": str(self.resize.resize_mode),
                "interpolation": self.resize.interpolation,
                "color": "gray" if self.resize.color == "gray" else self.channels,
            },
            "transform_param": json_format.MessageToDict(self.transform, preserving_proto_field_name=True),
        }
        path.write_text(json.dumps(content, indent=1) + "\n")

    def image(self, content: bytes) -> np.ndarray | None:
        """An image file as in the database, height × width (× 3), uint8; None if it is not an image."""
        image = decode(content, self.resize.color == "color", size_of(self.resize))
        if image is None:
            return None
        image = resize(image, self.resize)
        return image[..., ::-1] if image.ndim == 3 and self.channels == "RGB" else image

    def pixels(self, content: bytes) -> np.ndarray | None:
        """An image file's pixels as in the dataset's records, channels × height × width, uint8; None if it is not an image."""
        image = self.image(content)
        if image is None:
            return None
        return image.transpose(2, 0, 1) if image.ndim == 3 else image[None]

    def inputs(self, pixels: np.ndarray, oversample: bool = False) -> np.ndarray:
        """A net's input for an image, crops × channels × height × width, float32: the center crop, as in testing.

        oversample  ten crops: also the four corners, and all of them mirrored
        """
        if not oversample:
            return self._center([pixels]).numpy()
        (whole,) = self._whole([pixels]).numpy()
        height, width = (self.transform.crop_size or extent for extent in whole.shape[1:])
        down, right = whole.shape[1] - height, whole.shape[2] - width
        corners = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
        crops = np.stack([whole[:, top : top + height, left : left + width] for top, left in corners])
        return np.concatenate([crops, crops[..., ::-1]])

    # Cached, as they read the mean.

    @cached_property
    def _center(self) -> caffe.transform.Transformer:
        return caffe.transform.Transformer(self.transform, caffe.TEST, "preprocessing", caffe.Generator(0))

    @cached_property
    def _whole(self) -> caffe.transform.Transformer:
        param = caffe_pb2.TransformationParameter()
        param.CopyFrom(self.transform)
        param.ClearField("crop_size")
        return caffe.transform.Transformer(param, caffe.TEST, "preprocessing", caffe.Generator(0))


class Fitted:
    """Image files below `root`, by path, resized on access as the dataset's were; None if missing or not an image."""

    def __init__(self, root: Path, how: Preprocessing):
        self.root, self.how = root, how

    def __getitem__(self, path: str) -> np.ndarray | None:
        try:
            return self.how.image(content_of(self.root / path))
        except OSError:
            return None


def _find_mean(path: Path, mean: str) -> Path:
    """The mean that a preprocessing.json names relative to the project's folder, one of the folders above; or beside the file."""
    places = [Path(mean), *(folder / mean for folder in path.absolute().parents), path.with_name(Path(mean).name)]
    for place in places:
        if place.is_file():
            return place
    raise InputError(path, f"its mean, {mean}, is missing", do="work in the project's folder, or put the mean beside this file")


def read(path: Path) -> Preprocessing:
    """Read a preprocessing.json, and find its mean: by its path from here or from any folder above, or beside the file."""
    if not path.is_file():
        expected = "the prototxt step writes it beside the nets"
        raise InputError(path, "no such file", expected, "run that first, or correct the path")
    try:
        content = json.loads(path.read_text())
        how = content["resize"]
        size, color = ImageSize(height=how["height"], width=how["width"]), how["color"]
        if color not in ("BGR", "RGB", "gray"):
            raise ValueError(f"color {color}")
        kind = "gray" if color == "gray" else "color"
        options = ResizeOptions(size=size, resize_mode=how["mode"], interpolation=how["interpolation"], color=kind)
        transform = json_format.ParseDict(content["transform_param"], caffe_pb2.TransformationParameter())
    except (KeyError, TypeError, ValueError, json_format.ParseError) as error:
        raise InputError(path, f"not a preprocessing.json ({error})", do="write it again with the prototxt step") from None
    if transform.mean_file:
        transform.mean_file = str(_find_mean(path, transform.mean_file))
    return Preprocessing(options, transform, "RGB" if color == "RGB" else "BGR")

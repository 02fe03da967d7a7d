"""How an image becomes what a net takes: written beside the nets, and read by whatever gives them images that are no records."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from google.protobuf import json_format

import caffe
from caffe.proto import caffe_pb2
from caffe.transform import Transformer
from pipeline.dataset.resize import resize, size_of
from pipeline.errors import InputError
from pipeline.formats.images import content_of, decode
from pipeline.options.dataset import ImageSize, ResizeOptions


@dataclass(frozen=True)
class Preprocessing:
    """What the dataset's images went through, and what the Data layer does to them in testing.

    resize     size, mode, interpolation, colour or gray
    transform  crop, mean and scale
    channels   the order of the records' colours: BGR or RGB
    """

    resize: ResizeOptions
    transform: caffe_pb2.TransformationParameter
    channels: str = "BGR"

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        made = {
            "resize": {
                "height": self.resize.size.height,
                "width": self.resize.size.width,
                "mode": str(self.resize.resize_mode),
                "interpolation": self.resize.interpolation,
                "color": "gray" if self.resize.color == "gray" else self.channels,
            },
            "transform_param": json_format.MessageToDict(self.transform, preserving_proto_field_name=True),
        }
        path.write_text(json.dumps(made, indent=1) + "\n")

    def image(self, content: bytes) -> np.ndarray | None:
        """An image file as it goes into the database, height × width (× 3), uint8; None where it is none."""
        image = decode(content, self.resize.color == "color", size_of(self.resize))
        if image is None:
            return None
        image = resize(image, self.resize)
        return image[..., ::-1] if image.ndim == 3 and self.channels == "RGB" else image

    def pixels(self, content: bytes) -> np.ndarray | None:
        """An image file's pixels as the dataset's records have them, channels × height × width; None where it is none."""
        image = self.image(content)
        if image is None:
            return None
        return image.transpose(2, 0, 1) if image.ndim == 3 else image[None]

    def inputs(self, pixels: np.ndarray, oversample: bool = False) -> np.ndarray:
        """What a net takes of an image, crops × channels × height × width, float32: the middle, as in testing.

        oversample  the four corners too, and all of them mirrored: ten
        """
        if not oversample:
            return self._middle([pixels]).numpy()
        (whole,) = self._whole([pixels]).numpy()
        crop = self.transform.crop_size
        height, width = (crop or extent for extent in whole.shape[1:])
        down, right = whole.shape[1] - height, whole.shape[2] - width
        corners = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
        crops = np.stack([whole[:, top : top + height, left : left + width] for top, left in corners])
        return np.concatenate([crops, crops[..., ::-1]])

    # Made once, for they read the mean.

    @cached_property
    def _middle(self) -> Transformer:
        return Transformer(self.transform, caffe.TEST, "preprocessing", np.random.default_rng(0))

    @cached_property
    def _whole(self) -> Transformer:
        param = caffe_pb2.TransformationParameter()
        param.CopyFrom(self.transform)
        param.ClearField("crop_size")
        return Transformer(param, caffe.TEST, "preprocessing", np.random.default_rng(0))


class Fitted:
    """Image files below `root`, by path, resized as the dataset's were when asked for; None for what is missing or no image."""

    def __init__(self, root: Path, how: Preprocessing):
        self.root, self.how = root, how

    def __getitem__(self, path: str) -> np.ndarray | None:
        try:
            return self.how.image(content_of(self.root / path))
        except OSError:
            return None


def _found(path: Path, mean: str) -> Path:
    """The mean that a preprocessing.json names from the project's folder; seen from elsewhere, or moved along with the file."""
    places = [Path(mean), *(folder / mean for folder in path.absolute().parents), path.with_name(Path(mean).name)]
    for place in places:
        if place.is_file():
            return place
    raise InputError(path, f"its mean, {mean}, is not there", do="work in the project's folder, or put the mean beside this file")


def read(path: Path) -> Preprocessing:
    """What was written. The mean may lie where it says, as seen from any folder above, or beside the file."""
    if not path.is_file():
        raise InputError(
            path, "no such file", "the prototxt step writes it beside the nets", "run that first, or correct the path"
        )
    try:
        found = json.loads(path.read_text())
        how = found["resize"]
        size, color = ImageSize(height=how["height"], width=how["width"]), how["color"]
        if color not in ("BGR", "RGB", "gray"):
            raise ValueError(f"color {color}")
        kind = "gray" if color == "gray" else "color"
        options = ResizeOptions(size=size, resize_mode=how["mode"], interpolation=how["interpolation"], color=kind)
        transform = json_format.ParseDict(found["transform_param"], caffe_pb2.TransformationParameter())
    except (KeyError, TypeError, ValueError, json_format.ParseError) as error:
        raise InputError(path, f"not a preprocessing.json ({error})", do="write it again with the prototxt step") from None
    if transform.mean_file:
        transform.mean_file = str(_found(path, transform.mean_file))
    return Preprocessing(options, transform, "RGB" if color == "RGB" else "BGR")

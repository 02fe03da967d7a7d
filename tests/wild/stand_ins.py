"""Stand-ins for the data layers of a training net, whose records nobody has: Input layers of the shapes they would give."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

import caffe
from caffe.engine.topology import filtered
from caffe.proto import caffe_pb2

Shape = tuple[int, ...]
KEPT = ("Input", "DummyData", "Parameter", "ContinuationIndicator")
"""Layers without bottoms that need no records."""
_CLASSES = ("Data", "ImageData", "WindowData", "MemoryData", "VideoData")
"""Types whose second top is one class for each image."""
_MAPS = ("DenseImageData", "ImageSegData", "ImageLabelmapData")
"""Types whose second top is a map of classes for each image."""
_TARGET = re.compile(r"label|target|truth|gt|mask|seg|score|sim|weight", re.IGNORECASE)
"""Names of tops that a prediction is compared with, perhaps after other layers."""
_REGIONS = 2
"""Boxes for each image, where a data layer gives boxes."""


class Guess(NamedTuple):
    """What a prototxt leaves to the records, or to the time that a check may take.

    batch          most images in a batch; None: as many as the prototxt says
    channels       of an image
    height, width  of an image, where the prototxt gives none
    unsaid         images in a batch, where the prototxt gives none
    """

    batch: int | None
    channels: int
    height: int
    width: int
    unsaid: int = 1


GUESSES = (
    Guess(2, 3, 224, 224),
    Guess(None, 3, 224, 224),
    Guess(2, 1, 28, 28),
    Guess(2, 3, 32, 32),
    Guess(2, 2, 28, 28),
    Guess(1, 3, 360, 480),
    Guess(2, 3, 448, 448),
    Guess(2, 3, 256, 320),
    Guess(2, 3, 12, 12, unsaid=2),
    Guess(20, 1, 161, 200, unsaid=20),
)
"""Tried in this order until a net runs: ImageNet's, MNIST's, CIFAR's, a pair of MNIST's, CamVid's, YOLO's, multiples of 64,
MTCNN's, spectrograms; at first in small batches, but a net that cuts its batch in parts needs all of it."""
_SEQUENCES = "CtcLoss", "WarpCTCLoss"
_SYMBOLS = 4
"""Symbols of an image's text."""
_STRIDES = 4, 8, 16
"""Columns of an image for each step of a sequence, in nets that read text."""
_LINE = 32
"""Height of an image of a line of text."""


def guesses(net: caffe_pb2.NetParameter) -> tuple[Guess, ...]:
    """The guesses for a net: GUESSES, and for one that reads text in a number of steps images as long as that takes."""
    indicators = [each.continuation_indicator_param for each in net.layer if each.type == "ContinuationIndicator"]
    steps = max((each.time_step for each in indicators), default=0)
    lines = [Guess(None, channels, _LINE, steps * stride) for stride in _STRIDES for channels in (3, 1)] if steps else []
    return *lines, *GUESSES


class Top(NamedTuple):
    """A top of a data layer.

    shape   None if only the layer that compares it with a prediction knows it
    values  what it is filled with: image, class, box (of SSD), truths (of YOLO), region or rois (of R-CNN), known (of MS-CNN),
            objects (of DetectNet), extent, order (of a face's landmarks)
    """

    shape: Shape | None
    values: str


_OF_RCNN = {"im_info": Top((1, 3), "extent"), "gt_boxes": Top((_REGIONS, 5), "region"), "rois": Top((_REGIONS, 5), "rois")}
"""Tops of R-CNNs' data layers."""


def replaced(net: caffe_pb2.NetParameter, guess: Guess) -> tuple[caffe_pb2.NetParameter, dict[str, Top]]:
    """The layers of a net that training includes, with Input layers for its data layers; and what their blobs hold.

    Raises caffe.Error as building the net does, since shapes of targets are taken from the predictions they are compared with.
    """
    net.state.phase = caffe_pb2.TRAIN
    training, _ = filtered(net, [layer.name for layer in net.layer])
    sources = [layer for layer in training.layer if is_data(layer)]
    targets = {name for layer in training.layer if layer.type.endswith("Loss") for name in layer.bottom[1:]} | _compared(training)
    texts = {layer.bottom[1] for layer in training.layer if layer.type in _SEQUENCES and len(layer.bottom) == 2}
    tops = {name: top for layer in sources for name, top in _tops(layer, guess, targets, texts).items()}
    for layer in training.layer:
        if layer.type == "AlignDataTransform":
            tops.update(_landmarks(layer, tops))
    for layer in training.layer:
        if layer.type == "DetectNetTransformation" and set(layer.bottom) <= set(tops):
            images, labels = (tops[name] for name in layer.bottom)
            assert images.shape is not None
            tops[layer.bottom[1]] = labels._replace(shape=(images.shape[0], 1, 1 + _REGIONS, 16), values="objects")
    if any(top.shape is None for top in tops.values()):
        tops = _resolved(training, tops)
    return _with_inputs(training, tops), tops


def _compared(net: caffe_pb2.NetParameter) -> set[str]:
    """Bottoms after the first of layers in Python that no other layer takes: what a loss in Python compares with."""
    others = {name for layer in net.layer if layer.type != "Python" for name in layer.bottom} | set(_OF_RCNN)
    return {layer.bottom[1] for layer in net.layer if layer.type == "Python" and len(layer.bottom) == 2} - others


def _landmarks(layer: caffe_pb2.LayerParameter, tops: dict[str, Top]) -> dict[str, Top]:
    """JÂA-Net's 49 landmarks, crops, and the order of landmarks in a mirrored face."""
    batch = next(top.shape[0] for top in tops.values() if top.shape and top.values == "image")
    made = Top((batch, 98, 1, 1), "class"), Top((batch, 4, 1, 1), "class"), Top((batch, 49, 1, 1), "order")
    return dict(zip(layer.bottom, made, strict=True))


def is_data(layer: caffe_pb2.LayerParameter) -> bool:
    """Whether a layer reads records."""
    return not layer.bottom and bool(layer.top) and layer.type not in KEPT


def sizes_unknown(net: caffe_pb2.NetParameter) -> list[str]:
    """Types of the data layers whose prototxt does not say how large images are."""
    unsaid = Guess(None, 0, 0, 0)
    return sorted({layer.type for layer in net.layer if is_data(layer) and 0 in _extent(layer, unsaid)})


def values_of(top: Top, rng: np.random.Generator) -> np.ndarray:
    """Random values of the kind and shape of a top."""
    assert top.shape is not None
    if top.values == "image":
        return rng.standard_normal(top.shape, np.float32)
    if top.values == "class":
        return rng.integers(0, 2, top.shape).astype(np.float32)
    if top.values == "order":
        return np.broadcast_to(np.arange(1, top.shape[1] + 1, dtype=np.float32)[:, None, None], top.shape)
    rows = {"box": [0, 1, 0, 0.1, 0.1, 0.6, 0.6, 0], "region": [10, 10, 100, 100, 1], "rois": [0, 10, 10, 100, 100]}
    if top.values == "known":
        return np.array([0, 10, 10, 100, 100, 1, 0], np.float32).reshape(1, 7, 1, 1).repeat(top.shape[0], 0)
    if top.values == "objects":
        objects = np.zeros(top.shape, np.float32)
        objects[:, :, 0, :2] = _REGIONS, 16
        objects[:, :, 1:, :6] = 10, 10, 90, 90, 0, 1
        return objects
    if top.values == "truths":
        truths = np.zeros(top.shape, np.float32)
        truths[:, :, :_REGIONS] = 0, 0.35, 0.35, 0.5, 0.5
        return truths
    row = rows[top.values] if top.values in rows else [*rng.integers(200, 224, 2), 1]
    return np.broadcast_to(np.array(row, np.float32), top.shape)


def _tops(layer: caffe_pb2.LayerParameter, guess: Guess, targets: set[str], texts: set[str]) -> dict[str, Top]:
    batch, height, width = _extent(layer, guess)
    channels = layer.memory_data_param.channels or guess.channels
    image = Top((batch, channels, height, width), "image")
    if layer.top[0] in targets:  # an image that a prediction is compared with
        image = Top(None, "image")
    names = list(layer.top)
    if layer.type == "AnnotatedData":
        yolo = layer.annotated_data_param.yolo_data_type == 1
        labels = Top((batch, 1, 300, 5), "truths") if yolo else Top((1, 1, batch * _REGIONS, 8), "box")
        return dict(zip(names, (image, labels), strict=False))
    if layer.type == "VideoData":
        image = Top(_clip(layer.video_data_param, batch, height, width), "image")
        return dict(zip(names, (image, Top((batch,), "class")), strict=True))
    if layer.type == "CPMData":
        p = layer.cpm_transform_param
        maps = Top((batch, 2 * (p.num_parts + 1), height // p.stride, width // p.stride), "image")
        return dict(zip(names, (Top((batch, 6, height, width), "image"), maps), strict=True))
    if layer.type == "BoxData":
        labels = [Top((batch, 7 * side * side), "class") for side in layer.data_param.side or [7]]
        return dict(zip(names, (image, *labels), strict=True))
    if layer.type == "ImageGtData":
        rates = layer.image_gt_data_param.downsample_rate
        fields = [Top((batch, 6, round(height / rate), round(width / rate)), "class") for rate in rates]
        return dict(zip(names, (image, *fields, Top((batch * _REGIONS, 7, 1, 1), "known")), strict=False))
    if layer.type == "FloData":
        return {names[0]: Top((batch, 2, height, width), "image")}
    if len(names) == 2 and layer.type in (*_CLASSES, *_MAPS) and names[1] not in texts:
        return dict(
            zip(names, (image, Top((batch,) if layer.type in _CLASSES else (batch, 1, height, width), "class")), strict=True)
        )
    return {name: Top(None, "class") if name in targets else _by_name(name, image) for name in names}


def _clip(p: caffe_pb2.VideoDataParameter, batch: int, height: int, width: int) -> Shape:
    """Clips of C3D, or the frames of segments as channels."""
    if not any(p.HasField(name) for name in ("num_segments", "modality", "name_pattern", "grayscale")):
        return (batch, 3, p.new_length, height, width)
    channels = 2 if p.modality == caffe_pb2.VideoDataParameter.FLOW else 3
    return (batch, channels * p.new_length * p.num_segments, height, width)


def _by_name(name: str, image: Top) -> Top:
    """A top of a data layer written in Python, or of another one whose tops the prototxt does not describe."""
    return _OF_RCNN.get(name) or (Top(None, "class") if _TARGET.search(name) or name.startswith("bbox_") else image)


def _extent(layer: caffe_pb2.LayerParameter, guess: Guess) -> tuple[int, int, int]:
    """Images in a batch, height and width, of the first part of the prototxt that gives them."""
    settings = [value for field, value in layer.ListFields() if field.name.endswith("_param") and field.message_type]
    batch = _first(settings, "batch_size") or guess.unsaid
    resize = next(iter(layer.transform_param.resize_param), caffe_pb2.ResizeParameter())
    crop = _first(settings, "crop_size")
    crop_height = _first(settings, "crop_height") or _first(settings, "crop_size_y")
    crop_width = _first(settings, "crop_width") or _first(settings, "crop_size_x")
    height = (
        crop_height or crop or resize.height or _first(settings, "new_height") or layer.memory_data_param.height or guess.height
    )
    width = crop_width or crop or resize.width or _first(settings, "new_width") or layer.memory_data_param.width or guess.width
    return min(batch, guess.batch or batch), height, width


def _first(settings: Iterable[object], name: str) -> int:
    return next((int(getattr(each, name)) for each in settings if getattr(each, name, 0)), 0)


def _with_inputs(net: caffe_pb2.NetParameter, tops: dict[str, Top]) -> caffe_pb2.NetParameter:
    result = caffe_pb2.NetParameter()
    result.CopyFrom(net)
    del result.layer[:]
    for layer in net.layer:
        if is_data(layer):
            shapes = [caffe_pb2.BlobShape(dim=tops[name].shape) for name in layer.top]
            result.layer.add(name=layer.name, type="Input", top=layer.top).input_param.shape.extend(shapes)
        else:
            result.layer.add().CopyFrom(layer)
    return result


def _resolved(net: caffe_pb2.NetParameter, tops: dict[str, Top]) -> dict[str, Top]:
    """The tops with the shapes of all: a target has its prediction's shape, a class one value for each vector of scores."""
    batch = next((top.shape[0] for top in tops.values() if top.shape and top.values == "image"), 1)
    known = caffe_pb2.NetParameter(layer=_computable(net, tops), state=net.state)
    built = caffe.Net(_with_inputs(known, tops), caffe.TRAIN)
    shapes = {name: tuple(blob.shape) for name, blob in built.blobs.items()}
    found: dict[str, Shape] = {}
    for layer in net.layer:
        if layer.type == "Slice" and layer.slice_param.axis == 1 and layer.bottom[0] in tops:
            last = layer.slice_param.slice_point[-1] if layer.slice_param.slice_point else len(layer.top) - 1
            found.setdefault(layer.bottom[0], (batch, last + 1))
    for layer in net.layer:
        if len(layer.bottom) > 1 and layer.bottom[0] in shapes:
            for name in layer.bottom[1:]:
                if name in tops and tops[name].shape is None:
                    found.setdefault(name, _target_shape(layer.type, name, shapes[layer.bottom[0]]))
    return {name: top._replace(shape=top.shape or found.get(name, (batch,))) for name, top in tops.items()}


def _computable(net: caffe_pb2.NetParameter, tops: dict[str, Top]) -> Iterator[caffe_pb2.LayerParameter]:
    """The layers that do not depend on a top of unknown shape; of a data layer, the tops of known shape."""
    unknown = {name for name, top in tops.items() if top.shape is None}
    for layer in net.layer:
        if unknown.intersection(layer.bottom):
            unknown.update(layer.top)
            continue
        copy = caffe_pb2.LayerParameter()
        copy.CopyFrom(layer)
        if is_data(layer):
            copy.top[:] = [name for name in layer.top if name not in unknown]
        if copy.top:
            yield copy


def _target_shape(layer_type: str, name: str, scores: Shape) -> Shape:
    """Shape of the bottom `name` that a layer compares with scores of a shape."""
    if layer_type in _SEQUENCES:
        return (scores[1], _SYMBOLS)
    if layer_type == "Python" and "label" in name:
        return (scores[0], 1)
    if caffe.layer_type(layer_type).compares_labels:
        return scores[:1] if len(scores) == 2 else (scores[0], 1, *scores[2:])
    return scores

"""Check that two nets compute the same: run random images through both and compare the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

import caffe
from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.nets import graph

LIMIT = 1e-4
"""The largest difference that rounding explains, as a share of the largest value."""


HALF_LIMIT = 0.02
"""The same for models that compute in float16, which has 11 bits."""


def random_inputs(net: caffe.Net, batch: int | None = None, scale: float = 1.0) -> dict[str, np.ndarray]:
    """{input: values}, always the same, of standard deviation 50 · scale as images less their mean, for `batch` images.

    Inputs that a layer reads as indices, regions, image sizes or continuation marks are in the range that it takes.
    """
    draw = np.random.default_rng(1)
    joined = caffe.NetGraph(graph.exported_of(net).layer)
    values = {}
    for name in net.inputs:
        own = net.blobs[name].shape
        shape = (batch or own[0], *own[1:]) if own else ()
        reader = _reader(net, joined, name)
        meaning = _MEANINGS.get(reader) if reader else None
        if meaning and reader:
            layer = next(layer for layer in joined.layers if layer.type == reader[0] and name in _sources(joined, layer))
            values[name] = meaning(draw, shape, net, layer).astype(np.float32)
        else:
            values[name] = (draw.standard_normal(shape) * 50 * scale).astype(np.float32)
    return values


def _sources(joined: caffe.NetGraph, layer: caffe_pb2.LayerParameter) -> set[str]:
    """The net's inputs that a layer reads, also by way of layers that copy their values."""
    number = next(number for number, each in enumerate(joined.layers) if each is layer)
    return {_origin(joined, value).blob for value in joined.bottoms[number]}


def _origin(joined: caffe.NetGraph, value: Any) -> Any:
    """The value that layers which copy values have made this one of."""
    while caffe.layer_type(joined.layers[value.layer].type).copies_values:
        value = joined.bottoms[value.layer][0]
    return value


def _reader(net: caffe.Net, joined: caffe.NetGraph, name: str) -> tuple[str, int] | None:
    """The type of the first layer that gives an input a meaning, and which of its bottoms that is; negative from the last."""
    for layer, bottoms in zip(joined.layers, joined.bottoms, strict=True):
        for slot, value in enumerate(bottoms):
            origin = _origin(joined, value)
            if origin.blob == name and caffe.layer_type(joined.layers[origin.layer].type).is_input:
                for place in (slot, slot - len(bottoms)):
                    if (layer.type, place) in _MEANINGS:
                        return layer.type, place
    return None


Draw = np.random.Generator
Shape = tuple[int, ...]


def _marks(draw: Draw, shape: Shape, net: caffe.Net, layer: caffe_pb2.LayerParameter) -> np.ndarray:
    """Continuation marks: 0 at the first step, later mostly 1."""
    marks = draw.random(shape) < 0.8
    marks[0] = False
    return marks


def _selection(draw: Draw, shape: Shape, net: caffe.Net, layer: caffe_pb2.LayerParameter) -> np.ndarray:
    chosen = draw.random(shape) < 0.6
    chosen[0] = True
    return chosen


def _indices(draw: Draw, shape: Shape, net: caffe.Net, layer: caffe_pb2.LayerParameter) -> np.ndarray:
    """Whole numbers below Embed's input_dim, or the number of images."""
    is_embed = layer.HasField("embed_param")
    return draw.integers(layer.embed_param.input_dim if is_embed else net.blobs[layer.bottom[0]].shape[0], size=shape)


def _places(draw: Draw, shape: Shape, net: caffe.Net, layer: caffe_pb2.LayerParameter) -> np.ndarray:
    """A different position in the unpooled map for each value of a channel."""
    positions = np.prod(net.blobs[layer.top[0]].shape[2:])
    rows = [draw.permutation(positions)[: np.prod(shape[2:])] for _ in range(shape[0] * shape[1])]
    return np.array(rows).reshape(shape)


def _regions(draw: Draw, shape: Shape, net: caffe.Net, layer: caffe_pb2.LayerParameter) -> np.ndarray:
    """Image index, x1, y1, x2 and y2 of regions within the map."""
    images, _, height, width = net.blobs[layer.bottom[0]].shape
    # Cascade R-CNN's ROIAlign has ROIPooling's settings.
    pools = layer.HasField("roi_pooling_param")
    settings = layer.roi_pooling_param if pools else caffe.layer_type(layer.type).settings_of(layer)
    corners = draw.random((shape[0], 2, 2)) * np.array([width, height]) / settings.spatial_scale
    corners.sort(axis=1)
    index = draw.integers(images, size=(shape[0], 1))
    return np.concatenate([index, corners.reshape(-1, 4)], 1).reshape(shape)


def _sizes(draw: Draw, shape: Shape, net: caffe.Net, layer: caffe_pb2.LayerParameter) -> np.ndarray:
    """Heights and widths of the images of a Proposal, and the scale 1."""
    sizes = np.ones(shape)
    sizes[..., :2] = np.array(net.blobs[layer.bottom[0]].shape[2:]) * layer.proposal_param.feat_stride
    return sizes


_MEANINGS: dict[tuple[str, int], Callable[[Draw, Shape, caffe.Net, caffe_pb2.LayerParameter], np.ndarray]] = {
    ("RNN", 1): _marks,
    ("LSTM", 1): _marks,
    ("Lstm", 1): _marks,
    ("LSTMUnit", 2): _marks,
    ("Filter", -1): _selection,
    ("BatchReindex", 1): _indices,
    ("Embed", 0): _indices,
    ("Upsample", 1): _places,
    ("Unpooling", 1): _places,
    ("ROIPooling", 1): _regions,
    ("PSROIPooling", 1): _regions,
    ("DeformablePSROIPooling", 1): _regions,
    ("ROIAlign", 1): _regions,
    ("ROIWarping", 1): _regions,
    ("Proposal", 2): _sizes,
}
"""How the values of a bottom are drawn that are no image, by type and number of the bottom."""


def compared_blobs(net: caffe.Net) -> list[str]:
    """The net's outputs, and the bottom of a Softmax that gives one: scores differ more clearly than probabilities."""
    names: list[str] = []
    for layer in graph.definition_of(net).layer:
        if set(layer.top) & set(net.outputs):
            names += [*layer.bottom[:1], *layer.top] if caffe.layer_type(layer.type).applies_softmax else layer.top
    return list(dict.fromkeys(names))


def compute(net: caffe.Net, inputs: dict[str, np.ndarray], blobs: Sequence[str]) -> list[np.ndarray]:
    """The values of these blobs for these inputs; the inputs' shapes are restored."""
    shapes = {name: tuple(net.blobs[name].shape) for name in inputs}
    for name, values in inputs.items():
        net.blobs[name].reshape(*values.shape)
        net.blobs[name].data[...] = values
    outputs = net.forward(blobs=list(blobs))
    result = [outputs[name].copy() for name in blobs]
    for name, shape in shapes.items():
        net.blobs[name].reshape(*shape)
    net.reshape()
    return result


Values = Mapping[str, tuple[list[str], list[str]]]
"""{layer: names of its bottoms' and of its tops' values}."""


def compare(
    where: str,
    net: caffe.Net,
    inputs: dict[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    deciding: Values,
    limit: float = 0.0,
) -> float:
    """The largest relative difference between the values of another implementation and the net's own, as `assert_close` has it.

    found     {name: values}, of `compared_blobs` and of all names in `deciding`
    deciding  layers that choose rows by comparing values (non-maximum suppression), in order. Values that differ by rounding
              can lead to other choices; so both they and what follows them are computed from the other implementation's values.
    limit     the largest difference that is accepted, LIMIT by default
    """
    shapes = {name: tuple(net.blobs[name].shape) for name in inputs}
    for name, values in inputs.items():
        net.blobs[name].reshape(*values.shape)
    net.reshape()
    for name, values in inputs.items():
        net.blobs[name].data[...] = values
    names, worst, begin = list(net.top_names), 0.0, 0
    try:
        for layer, (bottoms, tops) in deciding.items():
            end = names.index(layer)
            if end > begin:
                net.forward(start=names[begin], end=names[end - 1])
            own = [net.blobs[blob] for blob in net.bottom_names[layer]]
            given = [
                found[name].reshape(blob.shape) if found[name].size == blob.data.size else found[name]
                for name, blob in zip(bottoms, own, strict=True)
            ]
            worst = max(worst, assert_close(where, [blob.data for blob in own], given, limit))
            _put(own, given)
            net.forward(start=layer, end=layer)
            own, given = [net.blobs[blob] for blob in net.top_names[layer]], [found[name] for name in tops]
            ordered = given
            if net.layer_dict[layer].type in _COMPUTE_SCORES:
                ordered = [_order_ties(blob.data, values) for blob, values in zip(own, given, strict=True)]
            worst = max(worst, assert_close(where, [blob.data for blob in own], ordered, limit))
            _put(own, given)
            begin = end + 1
        if begin < len(names):
            net.forward(start=names[begin])
        blobs = [name for name in compared_blobs(net) if name in found]
        return max(worst, assert_close(where, [net.blobs[name].data for name in blobs], [found[name] for name in blobs], limit))
    finally:
        for name, shape in shapes.items():
            net.blobs[name].reshape(*shape)
        net.reshape()


_COMPUTE_SCORES = ("YoloDetectionOutput", "Yolov3DetectionOutput")
"""Types that sort rows by scores which they compute: rounding can exchange rows."""
_TIE = 1e-6
"""The largest difference of scores, which are at most 1, that rounding explains."""


def _order_ties(own: np.ndarray, given: np.ndarray) -> np.ndarray:
    """The given rows (1, 1, R, 7), those of equal scores but for rounding in the order that fits the net's own rows."""
    if own.shape != given.shape:
        return given
    result = given.copy()
    ours, rows = own.reshape(-1, own.shape[-1]), result.reshape(-1, own.shape[-1])
    for place in range(len(rows)):
        apart = np.abs(rows[place:, 2] - rows[place, 2]) > _TIE
        ties = rows[place : place + (int(apart.argmax()) if apart.any() else len(apart))]
        nearest = int(np.abs(ties - ours[place]).max(1).argmin())
        ties[[0, nearest]] = ties[[nearest, 0]]
    return result


def _put(blobs: Iterable[caffe.Blob], values: Iterable[np.ndarray]) -> None:
    for blob, given in zip(blobs, values, strict=True):
        if tuple(blob.shape) == given.shape:
            blob.data[...] = given


def assert_close(where: str, expected: Sequence[np.ndarray], found: Sequence[np.ndarray], limit: float = 0.0) -> float:
    """The largest difference, as a share of the largest value of its array. Arrays of equal size may differ in shape.

    Raises InputError, with `where` as its place, if it is above `limit` (LIMIT by default) or if `expected` has NaN or infinite
    values.
    """
    worst, limit = 0.0, limit or LIMIT
    for ours, theirs in zip(expected, found, strict=True):
        if ours.size != theirs.size:
            raise InputError(where, f"an output of shape {theirs.shape}", f"the net's own has {ours.shape}")
        if not np.isfinite(ours).all():
            raise InputError(where, "the net's output for random images is not finite", do="check the weights")
        absolute = np.abs(ours.ravel().astype(np.float64) - theirs.ravel()).max(initial=0)
        difference = float(absolute / (np.abs(ours).max(initial=0) or 1.0))
        if not difference <= limit:
            differs = f"its output differs from the net's own by {difference:.1e} of the largest value"
            raise InputError(where, differs, f"rounding explains at most {limit:g}", "nothing was written")
        worst = max(worst, difference)
    return worst

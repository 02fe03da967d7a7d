"""Convert layers that pool regions to ONNX: ROIPooling, PSROIPooling, ROIAlign, ROIWarping; MaskResize, DecodeBBox."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from pipeline.export.onnx_part import Part, converts

LAST_ROI_OPSET = 21
"""The last opset whose MaxRoiPool and RoiAlign the pinned onnxruntime computes; 22 only adds types."""
ROI_OPERATORS = {"ROIPooling": "MaxRoiPool", "ROIAlign": "RoiAlign", "ROIWarping": "RoiAlign"}
"""Operators that the converters use of these, by layer type."""


def regions_of(part: Part, regions: str) -> str:
    """The second bottom as rows (R, 5) of image index, x1, y1, x2 and y2."""
    return regions if len(part.shapes[1]) == 2 else part.add("Reshape", regions, part.whole("regions", [-1, 5]))


def images_of(part: Part, rows: str) -> str:
    """The image index of each region, (R, 1), int64."""
    return part.add("Cast", part.columns(rows, 0, 1), to=TensorProto.INT64)


def _refuse_late_opset(part: Part) -> None:
    """Raise InputError if the pinned onnxruntime does not compute the layer's operator in the model's opset."""
    if part.opset > LAST_ROI_OPSET:
        operator = ROI_OPERATORS[part.param.type]
        do = f"give --opset {LAST_ROI_OPSET}"
        raise part.error(f"opset {part.opset}", f"onnxruntime has {operator} up to opset {LAST_ROI_OPSET}", do)


def _padded(part: Part, corners: str, ratio: float) -> str:
    """Regions x1, y1, x2, y2 (R, 4), with their last pixels, enlarged at each end by `ratio` times their sides."""
    if not ratio:
        return corners
    low, high = part.columns(corners, 0, 2), part.columns(corners, 2, 4)
    sides = part.add("Add", part.add("Sub", high, low), part.number("one", 1))
    pad = part.add("Mul", sides, part.number("pad_ratio", ratio))
    return part.add("Concat", part.add("Sub", low, pad), part.add("Add", high, pad), axis=1)


@converts("ROIPooling", single_precision=True)
def roi_pooling(part: Part, x: str, regions: str) -> str:
    p = part.param.roi_pooling_param
    _refuse_late_opset(part)
    rows = regions_of(part, regions)
    if p.pad_ratio:
        rows = part.add("Concat", part.columns(rows, 0, 1), _padded(part, part.columns(rows, 1, 5), p.pad_ratio), axis=1)
    return part.add("MaxRoiPool", x, rows, pooled_shape=[p.pooled_h, p.pooled_w], spatial_scale=p.spatial_scale)


def rounded(part: Part, x: str) -> str:
    """Rounded to the nearest integer, halves away from 0; ONNX rounds halves to even numbers."""
    whole = part.add("Cast", part.add("Cast", x, to=TensorProto.INT64), to=TensorProto.FLOAT)
    is_half = part.add("Equal", part.add("Abs", part.add("Sub", x, whole)), part.number("half", 0.5))
    return part.add("Where", is_half, part.add("Add", whole, part.add("Sign", x)), part.add("Round", x))


def _bins(part: Part, first: str, last: str, count: int, extent: int, shape: Sequence[int]) -> tuple[str, str]:
    """First and last + 1 position of each bin of regions (R, 1) along an axis, int64, reshaped to `shape`."""
    size = part.add("Max", part.add("Sub", last, first), part.number("least", 0.1))
    size = part.add("Div", size, part.number("count", count))
    ends = []
    for operator, start in (("Floor", 0), ("Ceil", 1)):
        edges = part.tensor("edges", np.arange(start, start + count, dtype=np.float32))
        edge = part.add(operator, part.add("Add", part.add("Mul", edges, size), first))
        edge = part.add("Clip", edge, part.number("first", 0), part.number("last", extent))
        ends.append(part.add("Reshape", part.add("Cast", edge, to=TensorProto.INT64), part.whole("bins", shape)))
    return ends[0], ends[1]


@converts("PSROIPooling", single_precision=True)
def position_sensitive_roi_pooling(part: Part, x: str, regions: str) -> str:
    """Means over bins from an integral image, in float64 as its sums grow with the map."""
    p, (_, channels, height, width) = part.param.psroi_pooling_param, part.shapes[0]
    bins, cells = p.group_size, (height + 1) * (width + 1)
    rows = regions_of(part, regions)
    corners = rounded(part, part.columns(rows, 1, 5))
    corners = part.add("Add", corners, part.tensor("closed", np.array([0, 0, 1, 1], np.float32)))
    corners = part.add("Mul", corners, part.number("spatial_scale", p.spatial_scale))
    left, top, right, bottom = (part.columns(corners, index, index + 1) for index in range(4))
    left, right = _bins(part, left, right, bins, width, [-1, 1, 1, bins])
    top, bottom = _bins(part, top, bottom, bins, height, [-1, 1, bins, 1])
    sums = part.add("Cast", x, to=TensorProto.DOUBLE)
    for axis in (2, 3):
        sums = part.add("CumSum", sums, part.whole("axis", axis))
    sums = part.add("Pad", sums, part.whole("border", [0, 0, 1, 1, 0, 0, 0, 0]))
    sums = part.add("Reshape", sums, part.whole("line", [-1]))
    image = part.add("Mul", images_of(part, rows), part.whole("image", channels * cells))
    image = part.add("Reshape", image, part.whole("column", [-1, 1, 1, 1]))
    own = part.tensor("channels", np.arange(channels, dtype=np.int64).reshape(1, p.output_dim, bins, bins) * cells)
    begin = part.add("Add", image, own)

    def until(row: str, column: str) -> str:
        place = part.add("Add", part.add("Mul", row, part.whole("width", width + 1)), column)
        return part.add("Gather", sums, part.add("Add", begin, place))

    total = part.add("Sub", until(bottom, right), until(top, right))
    total = part.add("Add", part.add("Sub", total, until(bottom, left)), until(top, left))
    extents = (part.add("Sub", bottom, top), part.add("Sub", right, left))
    nothing = part.whole("nothing", 0)
    area = part.add("Mul", *[part.add("Max", extent, nothing) for extent in extents])
    divisor = part.add("Cast", part.add("Max", area, part.whole("one", 1)), to=TensorProto.DOUBLE)
    mean = part.add("Cast", part.add("Div", total, divisor), to=TensorProto.FLOAT)
    return part.add("Where", part.add("Greater", area, nothing), mean, part.number("empty", 0))


# ---- interpolated values


def _align(part: Part, x: str, image: str, corners: str, samples: int, **attributes: Any) -> str:
    """Means of samples² values in the bins of regions whose image and corners are given, (R, 1) and (R, 4)."""
    height, width = part.tops[0][2:]
    images = part.add("Reshape", image, part.whole("images", [-1]))
    size = {"output_height": height, "output_width": width, "sampling_ratio": samples}
    return part.add("RoiAlign", x, corners, images, mode="avg", **size, **attributes)


def _sample(part: Part, x: str, image: str, first: str, step: str, *counts: str) -> str:
    """Interpolated values at first + i · step, both (R, 2) for columns and rows; 0 more than half a pixel outside the map.

    A bin of RoiAlign with one sample is read in its middle.
    counts  further conditions (R, 2) for values to count
    """
    half, (rows, columns) = part.number("half", 0.5), part.tops[0][2:]
    begin = part.add("Add", part.add("Sub", first, part.add("Mul", step, half)), half)
    bins = part.tensor("bins", np.array([columns, rows], np.float32))
    corners = part.add("Concat", begin, part.add("Add", begin, part.add("Mul", step, bins)), axis=1)
    values = _align(part, x, image, corners, 1, coordinate_transformation_mode="half_pixel")
    inside = ""
    for axis, (count, extent, shape) in enumerate(
        ((columns, part.shapes[0][3], [-1, 1, 1, columns]), (rows, part.shapes[0][2], [-1, 1, rows, 1]))
    ):
        moves = part.add("Mul", part.columns(step, axis, axis + 1), part.tensor("grid", np.arange(count, dtype=np.float32)))
        at = part.add("Add", part.columns(first, axis, axis + 1), moves)
        within = part.add("GreaterOrEqual", at, part.number("low", -0.5))
        within = part.add("And", within, part.add("LessOrEqual", at, part.number("high", extent - 0.5)))
        for condition in counts:
            within = part.add("And", within, part.columns(condition, axis, axis + 1))
        within = part.add("Reshape", within, part.whole("axis", shape))
        inside = part.add("And", inside, within) if inside else within
    return part.add("Where", inside, values, part.number("outside", 0))


@converts("ROIAlign", single_precision=True)
def roi_align(part: Part, x: str, regions: str) -> str:
    p, rows = part.layer.settings_of(part.param), regions_of(part, regions)
    _refuse_late_opset(part)
    image, corners = images_of(part, rows), part.columns(rows, 1, 5)
    if not part.layer.at_corners:
        mode = {"spatial_scale": p.spatial_scale, "coordinate_transformation_mode": "output_half_pixel"}
        return _align(part, x, image, corners, max(0, p.sampling_ratio), **mode)
    corners = part.add("Mul", _padded(part, corners, p.pad_ratio), part.number("spatial_scale", p.spatial_scale))
    low, high = part.columns(corners, 0, 2), part.columns(corners, 2, 4)
    size = part.add("Sub", high, low)
    step = part.add("Div", size, part.tensor("pooled", np.array([p.pooled_w, p.pooled_h], np.float32)))
    first = part.add("Sub", low, part.number("pixel", 0.5))
    return _sample(part, x, image, first, step, part.add("Greater", size, part.number("nothing", 0)))


@converts("ROIWarping", single_precision=True)
def roi_warping(part: Part, x: str, regions: str) -> str:
    p, rows = part.param.roi_warping_param, regions_of(part, regions)
    _refuse_late_opset(part)
    corners = part.add("Mul", part.columns(rows, 1, 5), part.number("spatial_scale", p.spatial_scale))
    corners = rounded(part, corners)
    first, last = part.columns(corners, 0, 2), part.columns(corners, 2, 4)
    size = part.add("Max", part.add("Sub", last, first), part.number("least", 0))
    step = part.add("Div", size, part.tensor("pooled", np.array([p.pooled_w, p.pooled_h], np.float32)))
    return _sample(part, x, images_of(part, rows), first, step)


@converts("MaskResize")
def mask_resize(part: Part, x: str) -> str:
    matrices = []
    for old, new in zip(part.shapes[0][2:], part.tops[0][2:], strict=True):
        positions = np.arange(new, dtype=np.float32) * np.float32(old / new)
        distances = np.abs(np.minimum(positions, old - 1)[:, None] - np.arange(old, dtype=np.float32))
        matrices.append(np.maximum(1 - distances, 0) * (positions <= old - 0.5)[:, None])
    rows, columns = (part.tensor(name, values) for name, values in (("rows", matrices[0]), ("columns", matrices[1].T)))
    return part.add("MatMul", rows, part.add("MatMul", x, columns))


# ---- regions themselves


@converts("DecodeBBox", single_precision=True)
def decode_bbox(part: Part, offsets: str, regions: str) -> str:
    layer = part.layer
    rows = part.add("Reshape", regions, part.whole("regions", [-1, 5]))
    moves = part.columns(part.add("Reshape", offsets, part.whole("offsets", [-1, 8])), 4, 8)
    moves = part.add("Mul", moves, part.tensor("bbox_std", np.array(layer.deviation, np.float32)))
    moves = part.add("Add", moves, part.tensor("bbox_mean", np.array(layer.mean, np.float32)))
    one, two = part.number("one", 1), part.number("two", 2)
    low, high = part.columns(rows, 1, 3), part.columns(rows, 3, 5)
    sides = part.add("Add", part.add("Sub", high, low), one)
    middle = part.add("Div", part.add("Add", low, high), two)
    centre = part.add("Add", part.add("Mul", part.columns(moves, 0, 2), sides), middle)
    sides = part.add("Sub", part.add("Mul", sides, part.add("Exp", part.columns(moves, 2, 4))), one)
    low = part.add("Sub", centre, part.add("Div", sides, two))
    boxes = part.add("Concat", part.columns(rows, 0, 1), low, part.add("Add", low, sides), axis=1)
    return part.add("Reshape", boxes, part.whole("top", [-1, 5, 1, 1]))

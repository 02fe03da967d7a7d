"""Coordinate maps between blobs of a NetSpec: pixel positions through convolution, pooling and cropping.

A map is (axis, a, b): position x of a layer's top is position a x + b of its bottom, on the spatial axes from `axis` + 1 on; a
and b are arrays of one value, or of one for each axis. `axis` is None for layers that keep positions.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from caffe.errors import Error
from caffe.net_spec import Function, Top, layers

PASS_THROUGH_LAYERS = [
    *("AbsVal", "BNLL", "BatchNorm", "Bias", "Dropout", "ELU", "Eltwise", "Exp", "LRN", "Log"),
    *("MVN", "PReLU", "Power", "ReLU", "Scale", "Sigmoid", "Split", "TanH", "Threshold"),
]
Coefficient = float | np.ndarray
Map = tuple[int | None, Coefficient, Coefficient]
_SIDES = {f"{name}_{side}" for name in ("pad", "kernel", "stride") for side in "hw"}


class UndefinedMapException(Error):
    """A layer without a coordinate map."""


class AxisMismatchException(Error):
    """Maps of different axes, which cannot be composed."""


class UnconnectedError(Error, RuntimeError):
    """Blobs that are not connected by layers with coordinate maps."""


class CropError(Error, AssertionError):
    """Blobs that cannot be aligned by cropping."""


def _settings(fn: Function, field: str) -> Any:
    return fn.params.get(field, fn.params)


def conv_params(fn: Function) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Axis, stride, extent of the (dilated) kernel, and pad of a convolution or pooling."""
    params = _settings(fn, "pooling_param" if fn.type_name == "Pooling" else "convolution_param")
    given = sorted(_SIDES & {*params, *fn.params})
    if given:
        raise CropError(fn.type_name, ", ".join(given), "maps need kernel_size, stride and pad", "give these instead")
    defaults = {"kernel_size": 1, "stride": 1, "dilation": 1, "pad": 0}
    kernel, stride, dilation, pad = (np.array(params.get(name, default), ndmin=1) for name, default in defaults.items())
    return params.get("axis", 1), stride, (kernel - 1) * dilation + 1, pad


def crop_params(fn: Function) -> tuple[int, np.ndarray]:
    """First axis and offsets of a Crop."""
    params = _settings(fn, "crop_param")
    return params.get("axis", 2), np.array(params.get("offset", 0), ndmin=1)


def coord_map(fn: Function) -> Map:
    """The map of one layer."""
    if fn.type_name in ("Convolution", "Pooling", "Im2col"):
        axis, stride, kernel, pad = conv_params(fn)
        return axis, 1 / stride, (pad - (kernel - 1) / 2) / stride
    if fn.type_name == "Deconvolution":
        axis, stride, kernel, pad = conv_params(fn)
        return axis, stride, (kernel - 1) / 2 - pad
    if fn.type_name in PASS_THROUGH_LAYERS:
        return None, 1, 0
    if fn.type_name == "Crop":
        axis, offset = crop_params(fn)
        return axis - 1, 1, -offset
    raise UndefinedMapException(
        fn.type_name, "it has no coordinate map", f"these layers keep positions: {', '.join(PASS_THROUGH_LAYERS)}"
    )


def compose(base_map: Map, next_map: Map) -> Map:
    """The map through two consecutive layers."""
    axis, a, b = base_map
    next_axis, next_a, next_b = next_map
    if axis is not None and next_axis is not None and axis != next_axis:
        raise AxisMismatchException("coordinates", f"axes {axis} and {next_axis}", "composed maps must have the same axis")
    return next_axis if axis is None else axis, a * next_a, a * next_b + b


def inverse(coord_map: Map) -> Map:
    """The map in the opposite direction."""
    axis, a, b = coord_map
    return axis, 1 / a, -b / a


def _walk(start: Top) -> Iterator[tuple[Top, Map]]:
    """`start` and its ancestors, as far as layers have maps, each with the map from it to `start`."""
    maps: dict[Top, Map] = {start: (None, 1, 0)}
    frontier = [start]
    while frontier:
        top = frontier.pop()
        yield top, maps[top]
        try:
            step = coord_map(top.fn)
        except UndefinedMapException:
            continue
        # The second bottom of a Crop only gives the size.
        for bottom in top.fn.inputs[:1] if top.fn.type_name == "Crop" else top.fn.inputs:
            if bottom not in maps:
                maps[bottom] = compose(maps[top], step)
                frontier.append(bottom)


def coord_map_from_to(top_from: Top, top_to: Top) -> Map:
    """The map from positions of one blob to those of another, through a common ancestor."""
    from_maps = dict(_walk(top_from))
    for top, to_map in _walk(top_to):
        if top in from_maps:
            return compose(to_map, inverse(from_maps[top]))
    raise UnconnectedError("coordinates", "the blobs have no common origin", "layers with coordinate maps must connect them")


def crop(top_from: Top, top_to: Top) -> Top:
    """A Crop layer that crops `top_from` to the size and position of `top_to`."""
    axis, a, b = coord_map_from_to(top_from, top_to)
    for wrong, found, expected in (
        (np.any(a != 1), f"scale {a}", "both blobs must have the same scale"),
        (np.any(b > 0), f"offset {-b}", "the blob to be cropped must be the larger one"),
        (np.any(np.round(b) != b), f"offset {-b}", "offsets must be whole pixels"),
    ):
        if wrong:
            raise CropError("crop", found, expected)
    offsets = np.array(-np.round(b).astype(int), ndmin=1).tolist()
    cropped: Top = layers.Crop(top_from, top_to, crop_param={"axis": 2 if axis is None else axis + 1, "offset": offsets})
    return cropped

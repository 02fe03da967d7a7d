"""Where a pixel of one blob lies in another: coordinates through convolution, pooling and cropping, for nets made by NetSpec.

A map is (axis, a, b): position x of the blob that a layer gives is position a x + b of its bottom, on the spatial axes from
`axis` + 1 on; arrays of one value, or one for each axis. `axis` is None for layers that leave positions as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from caffe.errors import Error
from caffe.net_spec import Function, Top, layers

PASS_THROUGH_LAYERS = [
    *("AbsVal", "BNLL", "BatchNorm", "Bias", "Dropout", "ELU", "Eltwise", "Exp", "LRN", "Log"),
    *("MVN", "PReLU", "Power", "ReLU", "Scale", "Sigmoid", "Split", "TanH", "Threshold"),
]
_SIDES = {f"{name}_{side}" for name in ("pad", "kernel", "stride") for side in "hw"}


class UndefinedMapException(Error):
    """A layer that has no map of coordinates."""


class AxisMismatchException(Error):
    """Maps of different axes, which cannot follow each other."""


class UnconnectedError(Error, RuntimeError):
    """Blobs that no chain of mapped layers joins."""


class CropError(Error, AssertionError):
    """Blobs that no crop makes alike."""


def _settings(fn: Function, field: str) -> dict:
    return fn.params.get(field, fn.params)


def conv_params(fn: Function) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Axis, stride, extent of the (dilated) kernel, and pad of a layer with windows."""
    params = _settings(fn, "pooling_param" if fn.type_name == "Pooling" else "convolution_param")
    given = sorted(_SIDES & {*params, *fn.params})
    if given:
        raise CropError(fn.type_name, ", ".join(given), "maps are made from kernel_size, stride and pad", "give these instead")
    defaults = {"kernel_size": 1, "stride": 1, "dilation": 1, "pad": 0}
    kernel, stride, dilation, pad = (np.array(params.get(name, default), ndmin=1) for name, default in defaults.items())
    return params.get("axis", 1), stride, (kernel - 1) * dilation + 1, pad


def crop_params(fn: Function) -> tuple[int, np.ndarray]:
    """First axis and offsets of a Crop."""
    params = _settings(fn, "crop_param")
    return params.get("axis", 2), np.array(params.get("offset", 0), ndmin=1)


def coord_map(fn: Function) -> tuple:
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
        fn.type_name, "it has no map of coordinates", f"there are those of {', '.join(PASS_THROUGH_LAYERS)}"
    )


def compose(base_map: tuple, next_map: tuple) -> tuple:
    """The map through two layers."""
    axis, a, b = base_map
    next_axis, next_a, next_b = next_map
    if axis is not None and next_axis is not None and axis != next_axis:
        raise AxisMismatchException("coordinates", f"axes {axis} and {next_axis}", "maps that follow each other have one axis")
    return next_axis if axis is None else axis, a * next_a, a * next_b + b


def inverse(coord_map: tuple) -> tuple:
    """The map in the other direction."""
    axis, a, b = coord_map
    return axis, 1 / a, -b / a


def _walk(start: Top) -> Iterator[tuple[Top, tuple]]:
    """Tops that lead to `start`, itself first, as far as layers have maps, each with the map from it to `start`."""
    maps = {start: (None, 1, 0)}
    frontier = [start]
    while frontier:
        top = frontier.pop()
        yield top, maps[top]
        try:
            step = coord_map(top.fn)
        except UndefinedMapException:
            continue
        # The second bottom of a Crop only says how large the result is.
        for bottom in top.fn.inputs[:1] if top.fn.type_name == "Crop" else top.fn.inputs:
            if bottom not in maps:
                maps[bottom] = compose(maps[top], step)
                frontier.append(bottom)


def coord_map_from_to(top_from: Top, top_to: Top) -> tuple:
    """The map from positions of one blob to those of another, through a blob that both come from."""
    from_maps = dict(_walk(top_from))
    for top, to_map in _walk(top_to):
        if top in from_maps:
            return compose(to_map, inverse(from_maps[top]))
    raise UnconnectedError("coordinates", "the blobs have no common origin", "they are joined by layers that have maps")


def crop(top_from: Top, top_to: Top) -> Top:
    """A Crop layer that cuts `top_from` to the size and place of `top_to`."""
    axis, a, b = coord_map_from_to(top_from, top_to)
    for wrong, found, expected in (
        (np.any(a != 1), f"scale {a}", "the blobs must have one scale"),
        (np.any(b > 0), f"offset {-b}", "the blob to be cropped must be the larger one"),
        (np.any(np.round(b) != b), f"offset {-b}", "offsets must be whole pixels"),
    ):
        if wrong:
            raise CropError("crop", found, expected)
    offsets = np.array(-np.round(b).astype(int), ndmin=1).tolist()
    return layers.Crop(top_from, top_to, crop_param={"axis": 2 if axis is None else axis + 1, "offset": offsets})

"""Convert deformable layers to ONNX: DeformableConvolution, ModulatedDeformableConvolution, DeformablePSROIPooling."""

import math

import numpy as np
from onnx import TensorProto

from pipeline.export.onnx_part import Part, converts
from pipeline.export.onnx_regions import images_of, regions_of, rounded


def _convolve(part: Part, values: str) -> str:
    """The top, from what each weight of a window is applied to, (N · groups, channels of a group, weights · H', W')."""
    layer, (_, channels, *_), (_, _, height, width) = part.layer, part.shapes[0], part.tops[0]
    settings = layer.settings_of(part.param)
    weights = math.prod(layer.kernel)
    values = part.add("Reshape", values, part.whole("values", [-1, channels * weights, height, width]))
    kernels = part.tensor("weight", part.tensors["weight"].reshape(settings.num_output, -1, 1, 1))
    bias = [part.tensor("bias")] if settings.bias_term else []
    return part.add("Conv", values, kernels, *bias, kernel_shape=[1, 1], group=settings.group)


def _read(part: Part, x: str, offsets: str, padding: str) -> tuple[str, str]:
    """Interpolated values (N · groups, channels of a group, weights · H', W'), and where they are read.

    Those are rows and columns of the bottom, (N · groups, weights, H', W', 2).
    """
    layer, (_, channels, *extents), (_, _, height, width) = part.layer, part.shapes[0], part.tops[0]
    weights = math.prod(layer.kernel)
    moved = part.add("Reshape", offsets, part.whole("offsets", [-1, weights, 2, height, width]))
    moved = part.add("Transpose", moved, perm=[0, 1, 3, 4, 2])
    axes = zip(layer.kernel, layer.dilation, (height, width), layer.stride, layer.pad, strict=True)
    rows, columns = (
        np.add.outer(np.arange(size) * dilation, np.arange(count) * stride - pad) for size, dilation, count, stride, pad in axes
    )
    places = np.broadcast_arrays(rows[:, None, :, None], columns[None, :, None, :])
    own = np.stack(places, -1).reshape(weights, height, width, 2).astype(np.float32)
    positions = part.add("Add", moved, part.tensor("places", own))
    # GridSample takes columns first, as numbers from -1 to 1 between the outer edges of the first and the last pixel.
    grid = part.add("Gather", positions, part.whole("order", [1, 0]), axis=-1)
    sides = np.array(extents[::-1], np.float32)
    grid = part.add("Add", part.add("Mul", grid, part.tensor("scale", 2 / sides)), part.tensor("shift", 1 / sides - 1))
    grid = part.add("Reshape", grid, part.whole("grid", [-1, weights * height, width, 2]))
    maps = part.add("Reshape", x, part.whole("groups", [-1, channels // layer.groups, *extents]))
    mode = "bilinear" if part.opset < 20 else "linear"
    return part.add("GridSample", maps, grid, mode=mode, padding_mode=padding, align_corners=0), positions


def _factors(part: Part, factors: str) -> str:
    """A factor for each weight of each window, to multiply `_read`'s values by."""
    height, width = part.tops[0][2:]
    return part.add("Reshape", factors, part.whole("factors", [-1, 1, math.prod(part.layer.kernel) * height, width]))


@converts("DeformableConvolution", single_precision=True)
def deformable_convolution(part: Part, x: str, offsets: str) -> str:
    values, positions = _read(part, x, offsets, "border")
    ends = part.tensor("ends", np.array(part.shapes[0][2:], np.float32))
    inside = part.add("GreaterOrEqual", positions, part.number("zero", 0))
    inside = part.add("And", inside, part.add("Less", positions, ends))
    inside = part.reduce("ReduceMin", part.add("Cast", inside, to=part.float_type), [-1], keepdims=0)
    return _convolve(part, part.add("Mul", values, _factors(part, inside)))


@converts("ModulatedDeformableConvolution", single_precision=True)
def modulated_deformable_convolution(part: Part, x: str, offsets: str, masks: str) -> str:
    values, _ = _read(part, x, offsets, "zeros")
    return _convolve(part, part.add("Mul", values, _factors(part, masks)))


@converts("DeformablePSROIPooling", single_precision=True)
def deformable_position_sensitive_roi_pooling(part: Part, x: str, regions: str, *offsets: str) -> str:
    """Values of shape (R, classes, channels of a class, bins, bins, samples, samples), and their means over the samples."""
    p, layer, (_, channels, *extents) = part.param.deformable_psroi_pooling_param, part.layer, part.shapes[0]
    bins, samples, parts = layer.pooled, p.sample_per_part, layer.parts
    classes = part.shapes[2][1] // 2 if offsets else 1
    rows = regions_of(part, regions)
    ends = rounded(part, part.columns(rows, 1, 5))
    ends = part.add("Add", ends, part.tensor("closed", np.array([0, 0, 1, 1], np.float32)))
    ends = part.add("Mul", ends, part.number("spatial_scale", p.spatial_scale))
    ends = part.add("Sub", ends, part.number("half", 0.5))
    low = part.columns(ends, 0, 2)
    sides = part.add("Max", part.add("Sub", part.columns(ends, 2, 4), low), part.number("least", 0.1))
    size = part.add("Div", sides, part.number("bins", bins))
    moved = ""
    if offsets:
        part_of = part.whole("parts", np.floor(np.arange(bins, dtype=np.float32) / np.float32(bins) * parts).astype(int).tolist())
        moved = part.add("Reshape", *offsets, part.whole("offsets", [-1, classes, 2, parts, parts]))
        for axis in (3, 4):
            moved = part.add("Gather", moved, part_of, axis=axis)
        moved = part.add("Mul", moved, part.number("trans_std", p.trans_std))
        moved = part.add("Mul", moved, part.add("Reshape", sides, part.whole("sides", [-1, 1, 2, 1, 1])))

    def along(axis: int) -> str:
        """Columns (axis 0) or rows of the samples, to be broadcast to (R, classes, 1, bins, bins, samples, samples)."""
        first, wide = (
            part.add("Reshape", part.columns(each, axis, axis + 1), part.whole("region", [-1] + [1] * 6)) for each in (low, size)
        )
        of_bin, of_sample = [1] * 7, [1] * 7
        of_bin[4 - axis], of_sample[6 - axis] = bins, samples
        grid = part.tensor("grid", np.arange(bins, dtype=np.float32).reshape(of_bin))
        at = part.add("Add", first, part.add("Mul", grid, wide))
        if moved:
            own = part.slice(moved, [2], [axis], [axis + 1])
            at = part.add("Add", at, part.add("Reshape", own, part.whole("moved", [-1, classes, 1, bins, bins, 1, 1])))
        steps = np.arange(samples, dtype=np.float32) / np.float32(samples)
        return part.add("Add", at, part.add("Mul", part.tensor("steps", steps.reshape(of_sample)), wide))

    inside, near, shares = "", [], []
    for axis, extent in enumerate(extents[::-1]):
        at = along(axis)
        within = part.add("GreaterOrEqual", at, part.number("first", -0.5))
        within = part.add("And", within, part.add("LessOrEqual", at, part.number("last", extent - 0.5)))
        inside = part.add("And", inside, within) if inside else within
        at = part.add("Clip", at, part.number("first", 0), part.number("last", extent - 1))
        near.append((part.add("Floor", at), part.add("Ceil", at)))
        shares.append(part.add("Sub", at, near[-1][0]))

    pixels = math.prod(extents)
    group = np.clip(np.arange(bins) * p.group_size // bins, 0, p.group_size - 1)
    own = np.arange(p.output_dim)[:, None, None] * p.group_size + group[:, None]
    own = ((own * p.group_size + group) * pixels).reshape(1, classes, -1, bins, bins, 1, 1)
    image = part.add("Mul", images_of(part, rows), part.whole("image", channels * pixels))
    image = part.add("Reshape", image, part.whole("region", [-1] + [1] * 6))
    begin = part.add("Add", image, part.tensor("channels", own.astype(np.int64)))
    line = part.add("Reshape", x, part.whole("line", [-1]))

    def value(row: str, column: str) -> str:
        place = part.add("Add", part.add("Mul", row, part.number("width", extents[1])), column)
        return part.add("Gather", line, part.add("Add", begin, part.add("Cast", place, to=TensorProto.INT64)))

    def between(share: str, first: str, second: str) -> str:
        rest = part.add("Sub", part.number("one", 1), share)
        return part.add("Add", part.add("Mul", rest, first), part.add("Mul", share, second))

    (left, right), (upper, lower) = near
    above, below = (between(shares[0], value(row, left), value(row, right)) for row in (upper, lower))
    counted = part.add("Cast", inside, to=part.float_type)
    found = part.add("Mul", between(shares[1], above, below), counted)
    total, count = (part.reduce("ReduceSum", each, [-2, -1], keepdims=0) for each in (found, counted))
    mean = part.add("Div", total, part.add("Max", count, part.number("least", 1)))
    return part.add("Reshape", mean, part.whole("top", [-1, p.output_dim, bins, bins]))

"""Convert layers of single forks to ONNX: Reorg, Norm, Unpooling, Division, DenseBlock, C3D's, FlowNet's …."""

import math

import numpy as np
from onnx import TensorProto

from caffe.proto import caffe_pb2
from pipeline.export.onnx_layers import has_positions, spread
from pipeline.export.onnx_part import Part, converts

BLOCK_STATISTICS = ("scale", "bias", "running_mean", "running_var")
"""DenseBlock's blobs of a batch normalisation, in the order of its formula."""
BLOCK_EPSILON = 1e-5


@converts("Reorg")
def reorg(part: Part, x: str) -> str:
    s, (_, channels, height, width) = part.layer.stride, part.shapes[0]
    inner = channels // s**2
    if part.param.reorg_param.reverse:
        x = part.add("Reshape", x, part.whole("blocks", [-1, s, s, inner, height, width]))
        x = part.add("Transpose", x, perm=[0, 3, 4, 1, 5, 2])
        return part.add("Reshape", x, part.whole("shape", [-1, inner, height * s, width * s]))
    x = part.add("Reshape", x, part.whole("blocks", [-1, inner, height, s, width, s]))
    x = part.add("Transpose", x, perm=[0, 3, 5, 1, 2, 4])
    return part.add("Reshape", x, part.whole("shape", [-1, channels * s**2, height // s, width // s]))


@converts("Norm", single_precision=True)
def norm(part: Part, x: str) -> str:
    length = part.reduce("ReduceL2", x, [1])
    return part.add("Div", x, part.add("Add", length, part.number("eps", 1e-6)))


@converts("MaskPooling")
def mask_pooling(part: Part, x: str, masks: str) -> str:
    return part.add("Mul", x, masks)


@converts("ChannelScale")
def channel_scale(part: Part, x: str, scale: str) -> str:
    if not part.param.channel_scale_param.do_forward:
        return part.add("Identity", x)
    factors = part.add("Reshape", scale, part.whole("shape", [-1, 1, *part.shapes[0][2:]]))
    return part.add("Mul", x, factors)


@converts("InnerDistance")
def inner_distance(part: Part, x: str, *others: str) -> str:
    p = part.param.inner_distance_param
    if part.layer.first != 1:
        raise part.error(f"axis {p.axis}", "distances of whole images are exported", "set axis: 1")
    length = math.prod(part.shapes[0][1:])
    rows = part.add("Reshape", x, part.whole("rows", [-1, 1, length]))
    centres = part.add(
        "Reshape", others[0] if part.layer.given else part.tensor("centers"), part.whole("centres", [1, -1, length])
    )
    difference = part.add("Sub", rows, centres)
    terms = part.add("Abs", difference) if p.distance_type == "L1" else part.add("Mul", difference, difference)
    return part.reduce("ReduceSum", terms, [2], keepdims=0)


@converts("Division")
def division(part: Part, x: str) -> list[str]:
    p = part.param.division_param
    corners = zip(p.ycoord, p.xcoord, strict=True)
    return [part.slice(x, [2, 3], [upper, left], [upper + p.height, left + p.width]) for upper, left in corners]


@converts("Mean")
def mean(part: Part, *bottoms: str) -> list[str]:
    p, term = part.param.mean_param, part.layer.term.cpu().numpy()
    tops = []
    for x, shape in zip(bottoms, part.shapes, strict=True):
        repeated = np.tile(term, (shape[1] // len(term), 1, 1)) * p.output_scale
        scaled = part.add("Mul", x, part.number("scale", p.input_scale * p.output_scale))
        tops.append(part.add("Add", scaled, part.tensor("term", repeated.astype(np.float32))))
    return tops


@converts("Unpooling", single_precision=has_positions)
def unpooling(part: Part, x: str, *positions: str) -> str:
    """MAX by positions: scattered values; else a transposed convolution of each channel, cut or padded at its end."""
    layer, (_, channels, *counts), extents = part.layer, part.shapes[0], part.tops[0][2:]
    takes_maximum = part.param.unpooling_param.unpool == caffe_pb2.UnpoolingParameter.MAX
    if takes_maximum and positions:
        return spread(part, x, *positions)
    window = (1, 1) if takes_maximum else layer.kernel
    if part.param.unpooling_param.unpool == caffe_pb2.UnpoolingParameter.AVE:
        axes = zip(counts, layer.stride, window, extents, strict=True)
        tall, wide = (np.minimum(extent - step * np.arange(count), size) for count, step, size, extent in axes)
        x = part.add("Div", x, part.tensor("places", np.outer(tall, wide).astype(np.float32)))
    axes = zip(counts, layer.stride, window, extents, strict=True)
    missing = [extent - (count - 1) * step - size for count, step, size, extent in axes]
    ones = part.tensor("ones", np.ones((channels, 1, *window), np.float32))
    cut = [0, 0, *(max(0, -pixels) for pixels in missing)]
    y = part.add("ConvTranspose", x, ones, kernel_shape=window, strides=layer.stride, pads=cut, group=channels)
    behind = [max(0, pixels) for pixels in missing]
    return part.add("Pad", y, part.whole("behind", [0] * 6 + behind)) if any(behind) else y


@converts("Combination")
def combination(part: Part, *bottoms: str) -> str:
    *_, height, width = part.tops[0]
    top, filled = "", np.zeros((height, width), bool)
    for x, shape, (left, upper) in zip(bottoms, part.shapes, part.layer.corners, strict=True):
        own = np.zeros_like(filled)
        own[upper : upper + shape[2], left : left + shape[3]] = True
        around = [0, 0, upper, left, 0, 0, height - upper - shape[2], width - left - shape[3]]
        placed = part.add("Pad", x, part.whole("around", around))
        if not filled.any():
            top = placed
        elif (own & filled).any():
            top = part.add("Where", part.tensor("window", own), placed, top)
        else:
            top = part.add("Add", top, placed)
        filled |= own
    return top


@converts("DenseBlock")
def dense_block(part: Part, x: str) -> str:
    p = part.param.denseblock_param

    def normalized(x: str, stage: str) -> str:
        """relu(BN(x)), as one product and one sum: variances may be beyond float16."""
        scale, bias, mean, variance = (part.tensors[f"{stage}_{name}"].astype(np.float64)[0] for name in BLOCK_STATISTICS)
        factor = scale / np.sqrt(variance + BLOCK_EPSILON)
        y = part.add("Mul", x, part.tensor(f"{stage}_factor", factor.astype(np.float32)))
        term = part.tensor(f"{stage}_term", (bias - mean * factor).astype(np.float32))
        return part.add("Relu", part.add("Add", y, term))

    for step in range(p.numTransition):
        y = normalized(x, f"conv{step}")
        if p.use_BC:
            y = part.add("Conv", y, part.tensor(f"reduction{step}_weight"), kernel_shape=[1, 1])
            y = normalized(y, f"reduction{step}")
        # A convolution of mathematics: the kernels are stored turned.
        kernels = part.tensor(f"conv{step}_weight", part.tensors[f"conv{step}_weight"][:, :, ::-1, ::-1])
        x = part.add("Concat", x, part.add("Conv", y, kernels, kernel_shape=[3, 3], pads=[1] * 4), axis=1)
    return x


# ---- C3D


@converts("Convolution3D")
def convolution3d(part: Part, x: str) -> str:
    layer = part.layer
    parameters = [part.tensor(name, values.reshape(-1) if name == "bias" else values) for name, values in part.tensors.items()]
    return part.add("Conv", x, *parameters, kernel_shape=layer.kernel, strides=layer.stride, pads=layer.pad * 2)


@converts("Deconvolution3D")
def deconvolution3d(part: Part, x: str) -> str:
    layer = part.layer
    parameters = [part.tensor(name, values.reshape(-1) if name == "bias" else values) for name, values in part.tensors.items()]
    return part.add("ConvTranspose", x, *parameters, kernel_shape=layer.kernel, strides=layer.stride, pads=layer.pad * 2)


@converts("Pooling3D")
def pooling3d(part: Part, x: str) -> str:
    layer, extents, counts = part.layer, part.shapes[0][2:], part.tops[0][2:]
    geometry = list(zip(extents, counts, layer.kernel, layer.stride, layer.pad, strict=True))
    behind = [max(0, (count - 1) * step + size - extent - before) for extent, count, size, step, before in geometry]
    attributes = {"kernel_shape": layer.kernel, "strides": layer.stride, "pads": [*layer.pad, *behind]}
    if layer.takes_maximum:
        return part.add("MaxPool", x, **attributes)
    y = part.add("AveragePool", x, count_include_pad=1, **attributes)
    # The divisor counts pixels of the padding, but none beyond it.
    divisor = np.ones((), np.float32)
    for extent, count, size, step, before in geometry:
        divisor = divisor[..., None] * np.minimum(size, extent + 2 * before - step * np.arange(count)).astype(np.float32)
    correction = math.prod(layer.kernel) / divisor
    return part.add("Mul", y, part.tensor("correction", correction[None, None].astype(np.float32)))


# ---- FlowNet


@converts("Correlation", single_precision=True)
def correlation(part: Part, a: str, b: str) -> str:
    """Two nodes or three for each displacement."""
    p, layer, (*_, rows, columns) = part.param.correlation_param, part.layer, part.tops[0]
    height, width = ((count - 1) * p.stride_1 + p.kernel_size for count in (rows, columns))
    pads = part.whole("pads", [0, 0, p.pad, p.pad] * 2)
    a, b = (part.add("Pad", x, pads) if p.pad else x for x in (a, b))
    first = p.max_displacement
    window = part.slice(a, [2, 3], [first, first], [first + height, first + width])
    channels = []
    for down in layer.displacements:
        for right in layer.displacements:
            start = [first + down, first + right]
            other = part.slice(b, [2, 3], start, [start[0] + height, start[1] + width])
            if p.correlation_type == caffe_pb2.CorrelationParameter.MULTIPLY:
                alike = part.add("Mul", window, other)
            else:
                alike = part.add("Abs", part.add("Sub", window, other))
            channels.append(part.reduce("ReduceMean", alike, [1]))
    whole = part.add("Concat", *channels, axis=1)
    return part.add("AveragePool", whole, kernel_shape=[p.kernel_size] * 2, strides=[p.stride_1] * 2)


@converts("FlowWarp", single_precision=True)
def flow_warp(part: Part, image: str, flow: str) -> str:
    """The four pixels around each place, by their positions in the image."""
    (_, channels, height, width), zero, one = part.shapes[0], part.number("zero", 0), part.number("one", 1)
    fills_zero = part.param.flow_warp_param.fill_value == caffe_pb2.FlowWarpParameter.ZERO
    grids = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    ends, inside, places = (width, height), "", []
    for axis in (0, 1):
        at = part.add("Add", part.slice(flow, [1], [axis], [axis + 1]), part.tensor("grid", grids[axis]))
        within = part.add("And", part.add("GreaterOrEqual", at, zero), part.add("Less", at, part.number("end", ends[axis])))
        inside = part.add("And", inside, within) if inside else within
        places.append(at)
    near, shares = [], []
    for axis, at in enumerate(places):
        at = part.add("Where", inside, at, zero)
        low = part.add("Floor", at)
        near.append((low, part.add("Min", part.add("Add", low, one), part.number("last", ends[axis] - 1))))
        shares.append(part.add("Sub", at, low))
    pixels = part.add("Reshape", image, part.whole("rows", [0, channels, -1]))
    rows = part.add("Shape", pixels)

    def pixel(row: str, column: str) -> str:
        place = part.add("Add", part.add("Mul", row, part.number("width", width)), column)
        place = part.add("Reshape", part.add("Cast", place, to=TensorProto.INT64), part.whole("place", [0, 1, -1]))
        values = part.add("GatherElements", pixels, part.add("Expand", place, rows), axis=2)
        return part.add("Reshape", values, part.whole("maps", [0, channels, height, width]))

    def between(share: str, first: str, second: str) -> str:
        return part.add("Add", part.add("Mul", part.add("Sub", one, share), first), part.add("Mul", share, second))

    (left, right), (upper, lower) = near
    above, below = (between(shares[0], pixel(row, left), pixel(row, right)) for row in (upper, lower))
    return part.add("Where", inside, between(shares[1], above, below), zero if fills_zero else part.number("outside", math.nan))


@converts("Downsample", single_precision=True)
def downsample(part: Part, x: str, *_: str) -> str:
    old, new = part.shapes[0][2:], part.tops[0][2:]
    if old == new:
        return part.add("Identity", x)
    rows, columns = (part.layer.weights(*pair).cpu().numpy() for pair in zip(old, new, strict=True))
    down, across, zero = part.tensor("rows", rows), part.tensor("columns", columns.T), part.number("zero", 0)
    missing = part.add("IsNaN", x)
    lacks = part.add("Cast", missing, to=TensorProto.FLOAT)
    has = part.add("Sub", part.number("one", 1), lacks)
    parts = (part.add("Where", missing, zero, x), has, lacks)
    total, used, left_out = (part.add("MatMul", part.add("MatMul", down, values), across) for values in parts)
    gone = part.add("Greater", left_out, part.add("Mul", used, part.number("share", 0.5)))
    return part.add("Where", gone, part.number("missing", math.nan), part.add("Div", total, used))


@converts("Resample")
def resample(part: Part, x: str, *_: str) -> str:
    old, new = part.shapes[0][2:], part.tops[0][2:]
    if part.param.resample_param.type == caffe_pb2.ResampleParameter.NEAREST:
        for axis, places in enumerate(part.layer.nearest(old, new), 2):
            x = part.add("Gather", x, part.tensor("places", places.cpu().numpy()), axis=axis)
        return x
    rows, columns = (matrix.cpu().numpy() for matrix in part.layer.matrices(old, new))
    return part.add("MatMul", part.add("MatMul", part.tensor("rows", rows), x), part.tensor("columns", columns.T))


@converts("ChannelNorm", single_precision=True)
def channel_norm(part: Part, x: str) -> str:
    return part.reduce("ReduceL2", x, [1])

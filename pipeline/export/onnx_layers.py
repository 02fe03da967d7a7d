"""What each layer type becomes in ONNX: CONVERTERS, functions of a Part and the names of its bottoms that name its tops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from caffe.proto import caffe_pb2

if TYPE_CHECKING:
    from pipeline.export.onnx_graph import Part

CONVERTERS: dict[str, Callable] = {}


def converts(*types: str):
    """Function decorator: make a converter known for these types."""

    def decorate(function: Callable) -> Callable:
        CONVERTERS.update(dict.fromkeys(types, function))
        return function

    return decorate


def _each(param, name: str, axes: int, default: int) -> list[int]:
    """A value for each spatial axis, from `name` or from `name_h` and `name_w`."""
    stem = name.removesuffix("_size")
    if any(field.name in (f"{stem}_h", f"{stem}_w") for field, _ in param.ListFields()):
        return [getattr(param, f"{stem}_h"), getattr(param, f"{stem}_w")]
    given = getattr(param, name)
    given = ([given] if param.HasField(name) else []) if isinstance(given, int) else list(given)
    return given if len(given) == axes else (given or [default]) * axes


# ---- with learned weights


@converts("Convolution", "DepthwiseConvolution", "ConvolutionDepthwise", "Deconvolution")
def convolution(part: Part, *bottoms):
    p, axes = part.param.convolution_param, len(part.shapes[0]) - 2
    if part.axis(p.axis) != 1:
        raise part.error(f"axis {p.axis}", "ONNX convolves with the channels on axis 1")
    pad = _each(p, "pad", axes, 0)
    dilation = list(p.dilation)
    attributes = {
        "kernel_shape": part.tensors["weight"].shape[2:],
        "strides": _each(p, "stride", axes, 1),
        "pads": pad + pad,
        "dilations": dilation if len(dilation) == axes else (dilation or [1]) * axes,
        "group": p.group,
    }
    operator = "ConvTranspose" if part.param.type == "Deconvolution" else "Conv"
    parameters = [part.tensor(name) for name in part.tensors]
    return [part.add(operator, x, *parameters, **attributes) for x in bottoms]


@converts("InnerProduct")
def inner_product(part: Part, x):
    p, shape = part.param.inner_product_param, part.shapes[0]
    axis, weight = part.axis(p.axis), part.tensors["weight"]
    if axis == 1:
        x = part.add("Flatten", x, axis=1) if len(shape) > 2 else x
        return part.add("Gemm", x, *[part.tensor(name) for name in part.tensors], transB=int(not p.transpose))
    if len(shape) != axis + 1:
        x = part.add("Reshape", x, part.whole("shape", [0] * axis + [-1]))
    y = part.add("MatMul", x, part.tensor("weight", weight if p.transpose else weight.T))
    return part.add("Add", y, part.tensor("bias")) if p.bias_term else y


@converts("Embed")
def embed(part: Part, x):
    y = part.add("Gather", part.tensor("weight"), part.add("Cast", x, to=TensorProto.INT64))
    return part.add("Add", y, part.tensor("bias")) if part.param.embed_param.bias_term else y


@converts("BatchNorm", "BN")
def batch_norm(part: Part, x):
    scaled = "weight" in part.tensors
    p = part.param.bn_param if part.param.type == "BN" else part.param.batch_norm_param
    by_batch = part.param.type == "BatchNorm" and p.HasField("use_global_stats") and not p.use_global_stats
    if by_batch or "running_mean" not in part.tensors or len(part.shapes[0]) < 2:
        raise part.error("statistics of the batch", "an exported net has kept ones", "give use_global_stats: true")
    channels = part.shapes[0][1]
    weight, bias = (
        part.tensor(name, None if scaled else np.full(channels, value, np.float32))
        for name, value in (("weight", 1), ("bias", 0))
    )
    eps = max(p.eps, 1e-5) if scaled and part.param.type == "BatchNorm" else p.eps
    averages = part.tensor("running_mean"), part.tensor("running_var")
    return part.add("BatchNormalization", x, weight, bias, *averages, epsilon=eps)


def _along(part: Part, param, operand: str | np.ndarray, name: str, shape: tuple[int, ...]) -> str:
    """A second operand as it is broadcast over the first bottom: with axes of extent 1 behind it."""
    axis = part.axis(param.axis) if part.shapes[0] else 0
    missing = len(part.shapes[0]) - axis - len(shape)
    if not isinstance(operand, str):
        return part.tensor(name, operand.reshape(operand.shape + (1,) * missing))
    if not missing or not shape:
        return operand
    return part.add("Unsqueeze", operand, part.whole("axes", range(len(shape), len(shape) + missing)))


@converts("Scale")
def scale(part: Part, x, *factor):
    p = part.param.scale_param
    shape = part.shapes[1] if factor else part.tensors["weight"].shape
    y = part.add("Mul", x, _along(part, p, factor[0] if factor else part.tensors["weight"], "weight", shape))
    return part.add("Add", y, _along(part, p, part.tensors["bias"], "bias", shape)) if p.bias_term else y


@converts("Bias")
def bias(part: Part, x, *term):
    shape = part.shapes[1] if term else part.tensors["bias"].shape
    return part.add("Add", x, _along(part, part.param.bias_param, term[0] if term else part.tensors["bias"], "bias", shape))


@converts("PReLU")
def prelu(part: Part, x):
    slope = part.tensors["weight"].reshape(-1)
    return part.add("PRelu", x, part.tensor("weight", slope.reshape(-1, *(1,) * (len(part.shapes[0]) - 2))))


@converts("Normalize")
def normalize(part: Part, x):
    p, axes = part.param.norm_param, len(part.shapes[0])
    over = part.whole("axes", range(1, axes) if p.across_spatial else [1])
    total = part.add("ReduceSumSquare", x, over, keepdims=1)
    norm = part.add("Sqrt", part.add("Add", total, part.number("eps", p.eps)))
    factor = part.tensors["weight"].reshape(-1, *(1,) * (axes - 2))
    return part.add("Mul", part.add("Div", x, norm), part.tensor("weight", factor))


# ---- neighbourhoods


@converts("Pooling")
def pooling(part: Part, x):
    """Caffe's windows, with the padding behind that makes ONNX have as many."""
    p, extents, counts = part.param.pooling_param, part.shapes[0][2:], part.tops[0][2:]
    largest = p.pool == caffe_pb2.PoolingParameter.MAX
    if len(part.tops) > 1 or not (largest or p.pool == caffe_pb2.PoolingParameter.AVE):
        raise part.error("two tops" if len(part.tops) > 1 else "STOCHASTIC", "MAX and AVE with one top are exported")
    if p.global_pooling:
        return part.add("GlobalMaxPool" if largest else "GlobalAveragePool", x)
    kernel, stride, pad = _each(p, "kernel_size", 2, 0), _each(p, "stride", 2, 1), _each(p, "pad", 2, 0)
    geometry = list(zip(extents, counts, kernel, stride, pad, strict=True))
    behind = [max(0, (count - 1) * step + size - extent - before) for extent, count, size, step, before in geometry]
    attributes = {"kernel_shape": kernel, "strides": stride, "pads": pad + behind}
    if largest:
        return part.add("MaxPool", x, **attributes)
    # Padding counts in the mean, but not what a window has beyond it.
    y = part.add("AveragePool", x, count_include_pad=int(any(pad)), **attributes)
    if not any(pad) or all(after <= before for after, before in zip(behind, pad, strict=True)):
        return y
    rows, columns = (
        [min(size, extent + 2 * before - number * step) for number in range(count)]
        for extent, count, size, step, before in geometry
    )
    correction = math.prod(kernel) / np.outer(rows, columns).astype(np.float32)
    return part.add("Mul", y, part.tensor("correction", correction[None, None]))


@converts("LRN")
def lrn(part: Part, x):
    p = part.param.lrn_param
    if p.norm_region == caffe_pb2.LRNParameter.ACROSS_CHANNELS:
        return part.add("LRN", x, size=p.local_size, alpha=p.alpha, beta=p.beta, bias=p.k)
    window = {"kernel_shape": [p.local_size] * 2, "pads": [p.local_size // 2] * 4, "count_include_pad": 1}
    mean = part.add("AveragePool", part.add("Mul", x, x), **window)
    total = part.add("Add", part.add("Mul", mean, part.number("alpha", p.alpha)), part.number("one", 1))
    return part.add("Mul", x, part.add("Pow", total, part.number("exponent", -p.beta)))


@converts("MVN")
def mvn(part: Part, x):
    p = part.param.mvn_param
    axes = part.whole("axes", range(1 if p.across_channels else 2, len(part.shapes[0])))
    y = part.add("Sub", x, part.add("ReduceMean", x, axes, keepdims=1))
    if not p.normalize_variance:
        return y
    deviation = part.add("Sqrt", part.add("ReduceMean", part.add("Mul", y, y), axes, keepdims=1))
    return part.add("Div", y, part.add("Add", deviation, part.number("eps", p.eps)))


@converts("Interp")
def interp(part: Part, x):
    p = part.param.interp_param
    if p.pad_beg or p.pad_end:
        ends = [extent + p.pad_end for extent in part.shapes[0][2:]]
        x = part.add("Slice", x, part.whole("starts", [-p.pad_beg] * 2), part.whole("ends", ends), part.whole("axes", [2, 3]))
    sizes = part.whole("sizes", part.tops[0][2:])
    return part.add("Resize", x, "", "", sizes, axes=[2, 3], mode="linear", coordinate_transformation_mode="align_corners")


@converts("Upsample")
def upsample(part: Part, x, *positions):
    if positions:
        raise part.error("positions of a pooling", "only blocks are exported")
    scales = [top / bottom for top, bottom in zip(part.tops[0][2:], part.shapes[0][2:], strict=True)]
    way = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return part.add("Resize", x, "", part.tensor("scales", np.array(scales, np.float32)), axes=[2, 3], **way)


# ---- value by value

for _type, _operator in {"Sigmoid": "Sigmoid", "TanH": "Tanh", "BNLL": "Softplus", "AbsVal": "Abs"}.items():
    converts(_type)(lambda part, x, operator=_operator: part.add(operator, x))


@converts("Dropout", "Split")
def unchanged(part: Part, x):
    return [x] * len(part.tops)


@converts("Silence")
def silence(part: Part, *bottoms):
    return []


@converts("ReLU", "ReLU6")
def relu(part: Part, x):
    slope, most = part.param.relu_param.negative_slope, part.param.type == "ReLU6"
    if most and not slope:
        return part.add("Clip", x, part.number("min", 0), part.number("max", 6))
    y = part.add("LeakyRelu", x, alpha=slope) if slope else part.add("Relu", x)
    return part.add("Min", y, part.number("max", 6)) if most else y


@converts("ELU")
def elu(part: Part, x):
    return part.add("Elu", x, alpha=part.param.elu_param.alpha)


@converts("Swish")
def swish(part: Part, x):
    beta = part.param.swish_param.beta
    return part.add("Mul", x, part.add("Sigmoid", part.add("Mul", x, part.number("beta", beta)) if beta != 1 else x))


@converts("Clip")
def clip(part: Part, x):
    p = part.param.clip_param
    return part.add("Clip", x, part.number("min", p.min), part.number("max", p.max))


@converts("Threshold")
def threshold(part: Part, x):
    above = part.add("Greater", x, part.number("threshold", part.param.threshold_param.threshold))
    return part.add("Cast", above, to=TensorProto.FLOAT)


def _linear(part: Part, x: str, scale: float, shift: float) -> str:
    """shift + scale · x."""
    x = part.add("Mul", x, part.number("scale", scale)) if scale != 1 else x
    return part.add("Add", x, part.number("shift", shift)) if shift else x


@converts("Exp")
def exp(part: Part, x):
    p = part.param.exp_param
    log_base = 1.0 if p.base == -1 else math.log(p.base)
    return part.add("Exp", _linear(part, x, log_base * p.scale, log_base * p.shift))


@converts("Log")
def log(part: Part, x):
    p = part.param.log_param
    y = part.add("Log", _linear(part, x, p.scale, p.shift))
    return y if p.base == -1 else part.add("Div", y, part.number("base", math.log(p.base)))


@converts("Power")
def power(part: Part, x):
    p = part.param.power_param
    if p.power * p.scale == 0:
        return _linear(part, part.add("Sub", x, x), 1, p.shift**p.power)
    y = _linear(part, x, p.scale, p.shift)
    return part.add("Pow", y, part.number("power", p.power)) if p.power != 1 else y


@converts("Softmax")
def softmax(part: Part, x):
    return part.add("Softmax", x, axis=part.axis(part.param.softmax_param.axis))


# ---- several blobs


@converts("Eltwise")
def eltwise(part: Part, *bottoms):
    p = part.param.eltwise_param
    if p.operation == caffe_pb2.EltwiseParameter.MAX:
        return part.add("Max", *bottoms)
    operator = "Mul" if p.operation == caffe_pb2.EltwiseParameter.PROD else "Add"
    coefficients = p.coeff or [1.0] * len(bottoms)
    first, *others = (
        part.add("Mul", x, part.number(f"coeff{index}", coefficient)) if coefficient != 1 else x
        for index, (x, coefficient) in enumerate(zip(bottoms, coefficients, strict=True))
    )
    for other in others:
        first = part.add(operator, first, other)
    return first


@converts("Axpy")
def axpy(part: Part, factor, x, y):
    missing = range(len(part.shapes[0]), len(part.shapes[1]))
    factor = part.add("Unsqueeze", factor, part.whole("axes", missing)) if missing else factor
    return part.add("Add", part.add("Mul", factor, x), y)


@converts("Concat")
def concat(part: Part, *bottoms):
    p = part.param.concat_param
    return part.add("Concat", *bottoms, axis=part.axis(p.concat_dim if p.HasField("concat_dim") else p.axis))


@converts("Slice")
def slices(part: Part, x):
    p = part.param.slice_param
    axis = part.axis(p.slice_dim if p.HasField("slice_dim") else p.axis)
    if len(part.tops) == 1:
        return x
    return part.add("Split", x, part.whole("split", [shape[axis] for shape in part.tops]), outputs=len(part.tops), axis=axis)


@converts("Crop")
def crop(part: Part, x, reference):
    p = part.param.crop_param
    axes = range(part.axis(p.axis), len(part.shapes[0]))
    offsets = list(p.offset) if len(p.offset) == len(axes) else (list(p.offset) or [0]) * len(axes)
    ends = [offset + part.shapes[1][axis] for offset, axis in zip(offsets, axes, strict=True)]
    return part.add("Slice", x, part.whole("starts", offsets), part.whole("ends", ends), part.whole("axes", axes))


# ---- shapes


@converts("Flatten")
def flatten(part: Part, x):
    p = part.param.flatten_param
    first, last = part.axis(p.axis), part.axis(p.end_axis)
    return part.add("Reshape", x, part.whole("shape", [0] * first + [-1, *part.shapes[0][last + 1 :]]))


@converts("Reshape")
def reshape(part: Part, x):
    p, shape = part.param.reshape_param, part.shapes[0]
    start = p.axis if p.axis >= 0 else len(shape) + 1 + p.axis
    end = len(shape) if p.num_axes == -1 else start + p.num_axes
    return part.add("Reshape", x, part.whole("shape", [0] * start + [*p.shape.dim, *shape[end:]]))


@converts("Permute")
def permute(part: Part, x):
    order = list(part.param.permute_param.order)
    return part.add("Transpose", x, perm=order + [axis for axis in range(len(part.shapes[0])) if axis not in order])


@converts("ShuffleChannel")
def shuffle_channel(part: Part, x):
    group, (_, channels, *rest) = part.param.shuffle_channel_param.group, part.shapes[0]
    x = part.add("Reshape", x, part.whole("groups", [0, group, channels // group, *rest]))
    x = part.add("Transpose", x, perm=[0, 2, 1, *range(3, 3 + len(rest))])
    return part.add("Reshape", x, part.whole("shape", [0, channels, *rest]))


@converts("Tile")
def tile(part: Part, x):
    p = part.param.tile_param
    times = [1] * len(part.shapes[0])
    times[part.axis(p.axis)] = p.tiles
    return part.add("Tile", x, part.whole("repeats", times))


@converts("Reduction")
def reduction(part: Part, x):
    p, names = part.param.reduction_param, caffe_pb2.ReductionParameter
    operator = {names.SUM: "ReduceSum", names.ASUM: "ReduceL1", names.SUMSQ: "ReduceSumSquare", names.MEAN: "ReduceMean"}
    axes = part.whole("axes", range(part.axis(p.axis), len(part.shapes[0])))
    return _linear(part, part.add(operator[p.operation], x, axes, keepdims=0), p.coeff, 0)


@converts("ArgMax")
def arg_max(part: Part, x):
    p = part.param.argmax_param
    if p.top_k != 1 or p.out_max_val:
        raise part.error("top_k or out_max_val", "the position of the largest value alone is exported")
    axis = part.axis(p.axis) if p.HasField("axis") else 1
    x = x if p.HasField("axis") else part.add("Reshape", x, part.whole("shape", [0, -1]))
    y = part.add("ArgMax", x, axis=axis, keepdims=1, select_last_index=1)
    y = part.add("Cast", y, to=TensorProto.FLOAT)
    return y if p.HasField("axis") else part.add("Reshape", y, part.whole("top", [0, *part.tops[0][1:]]))

"""Convert the layers of classification and segmentation nets to ONNX, and say of each type that is not converted why."""

import math
from typing import Any

import numpy as np
from onnx import TensorProto

import caffe
from caffe.proto import caffe_pb2
from pipeline.export.onnx_part import Part, converts

_KINDS = {name: caffe.layer_type(name) for name in caffe.layer_type_list()}
_COMPARING = [name for name, kind in _KINDS.items() if kind.is_loss or kind.compares_labels]
NO_TARGETS = "an exported model has no targets to compare with"
_COMPARING_TOO = (
    *("BboxAccuracy", "BoxAnnotatorOHEM", "DetectionAccuracy", "DetectionEvaluate", "EvalDetection", "LabelsequenceAccuracy"),
    *("PR", "ProposalTarget", "SequenceAccuracy"),
)
_AUGMENTING = (
    "AlignDataTransform",
    "DataAugmentation",
    "DetectNetTransformation",
    "FlowAugmentation",
    "GenerateAugmentationParameters",
)
_OF_LABELS = ("CombinedMargin", "CosinAddm", "LabelSpecificAdd", "LargeMarginInnerProduct", "MarginInnerProduct")
NOT_EXPORTED = {
    **dict.fromkeys([name for name, kind in _KINDS.items() if kind.is_source], "a model's inputs come from its caller"),
    **dict.fromkeys((*_COMPARING, *_COMPARING_TOO), NO_TARGETS),
    **dict.fromkeys(_OF_LABELS, "an exported model has no labels to add a margin to"),
    **dict.fromkeys(_AUGMENTING, "an exported model takes images as they are"),
    **dict.fromkeys(("FLOWriter", "HDF5Output"), "a model writes no files"),
    "Python": "its code is in Python",
    **dict.fromkeys(("AttPooling", "PwAttend"), "ONNX does not weight windows by their position"),
    **dict.fromkeys(
        ("BgrToMunsell", "SparseHistogramExtractor", "SparseHypercolumnExtractor", "StripDecimals", "UniformToHistogram"),
        "it samples images and places in training",
    ),
    "AUMaskBasedLand": "it draws maps around landmarks, for the layers of a face's regions",
    "MultiStageMeanfield": "it filters on a lattice whose points depend on the image's colours, which ONNX cannot look up",
}
"""Types without a converter, and why they have none."""


# ---- with learned weights


@converts("Convolution", "DepthwiseConvolution", "ConvolutionDepthwise", "Deconvolution")
def convolution(part: Part, *bottoms: str) -> list[str]:
    layer = part.layer
    if layer.channel_axis != 1:
        raise part.error(f"axis {layer.channel_axis}", "ONNX convolves with the channels on axis 1")
    operator = "ConvTranspose" if layer.is_transposed else "Conv"
    if not layer.kernel:
        raise part.error("no spatial axes", "ONNX convolves maps", "use an InnerProduct")
    parameters = [part.tensor(name) for name in part.tensors]
    left, right, top, below = layer.sides or (0, 0, 0, 0)
    pads = (top, left, below, right) if layer.sides else layer.pad * 2
    window = {"kernel_shape": layer.kernel, "strides": layer.stride, "pads": pads}
    return [part.add(operator, x, *parameters, dilations=layer.dilation, group=layer.group, **window) for x in bottoms]


@converts("InnerProduct")
def inner_product(part: Part, x: str) -> str:
    p, shape = part.param.inner_product_param, part.shapes[0]
    axis, weight = part.layer.first, part.tensors["weight"]
    if axis == 1:
        x = part.add("Flatten", x, axis=1) if len(shape) > 2 else x
        return part.add("Gemm", x, *[part.tensor(name) for name in part.tensors], transB=int(not p.transpose))
    if len(shape) != axis + 1:
        x = part.add("Reshape", x, part.whole("shape", [0] * axis + [-1]))
    y = part.add("MatMul", x, part.tensor("weight", weight if p.transpose else weight.T))
    return part.add("Add", y, part.tensor("bias")) if p.bias_term else y


@converts("Embed", single_precision=True)
def embed(part: Part, x: str) -> str:
    y = part.add("Gather", part.tensor("weight"), part.add("Cast", x, to=TensorProto.INT64))
    return part.add("Add", y, part.tensor("bias")) if part.param.embed_param.bias_term else y


@converts("BatchNorm", "BN")
def batch_norm(part: Part, x: str) -> str:
    segnets = "running_mean" not in part.tensors
    if part.layer.tests_by_batch(part.param) or (segnets and part.param.type != "BN") or len(part.shapes[0]) < 2:
        raise part.error("statistics of the batch", "an exported net uses stored averages", "set use_global_stats: true")
    if len(part.tops) > 1:
        raise part.error(f"{len(part.tops)} tops", "only the normalised values are exported", "remove the other tops")
    channels = part.shapes[0][1]
    values = {name: values.astype(np.float64).reshape(-1) for name, values in part.tensors.items()}
    weight, bias = values.get("weight", np.ones(channels)), values.get("bias", np.zeros(channels))
    if segnets or part.half:
        # One product and one sum: variances may be beyond float16.
        if not segnets:
            weight = weight / np.sqrt(values["running_var"] + part.layer.epsilon(part.param))
            bias = bias - values["running_mean"] * weight
        along = (-1, *(1,) * (len(part.shapes[0]) - 2))
        factor, term = (each.astype(np.float32).reshape(along) for each in (weight, bias))
        return part.add("Add", part.add("Mul", x, part.tensor("factor", factor)), part.tensor("term", term))
    learned = (part.tensor(name, each.astype(np.float32)) for name, each in (("weight", weight), ("bias", bias)))
    averages = part.tensor("running_mean"), part.tensor("running_var")
    return part.add("BatchNormalization", x, *learned, *averages, epsilon=part.layer.epsilon(part.param))


def _broadcast(part: Part, name: str, *second: str) -> str:
    """The second bottom, else the parameter `name`, with trailing axes of extent 1, to broadcast over the first bottom."""
    trailing = part.layer.trailing
    if not second:
        return part.tensor(name, part.tensors[name].reshape(part.tensors[name].shape + trailing))
    axes = len(part.shapes[1])
    if not trailing or not axes:
        return second[0]
    return part.add("Unsqueeze", *second, part.whole("axes", range(axes, axes + len(trailing))))


@converts("Scale")
def scale(part: Part, x: str, *factor: str) -> str:
    y = part.add("Mul", x, _broadcast(part, "weight", *factor))
    return part.add("Add", y, _broadcast(part, "bias")) if part.param.scale_param.bias_term else y


@converts("Bias")
def bias(part: Part, x: str, *term: str) -> str:
    return part.add("Add", x, _broadcast(part, "bias", *term))


def _weight_by_channel(part: Part) -> str:
    """The parameter `weight`, per channel or shared, shaped to broadcast over the bottom."""
    return part.tensor("weight", part.tensors["weight"].reshape(-1, *(1,) * (len(part.shapes[0]) - 2)))


@converts("PReLU")
def prelu(part: Part, x: str) -> str:
    return part.add("PRelu", x, _weight_by_channel(part))


@converts("Normalize", single_precision=True)
def normalize(part: Part, x: str) -> str | list[str]:
    p = part.param.norm_param
    if part.layer.is_happynears(part.param):
        total = part.reduce("ReduceSumSquare" if part.layer.kind == "L2" else "ReduceL1", x, [1])
        eps = part.number("eps", 1e-6)
        norm = part.add("Add", total, eps)
        norm = part.add("Sqrt", norm) if part.layer.kind == "L2" else norm
        return [part.add("Div", x, norm), norm][: len(part.tops)]
    axes = list(range(1, len(part.shapes[0]))) if p.across_spatial else [1]
    total = part.reduce("ReduceSumSquare", x, axes)
    norm = part.add("Sqrt", part.add("Add", total, part.number("eps", p.eps)))
    return part.add("Mul", part.add("Div", x, norm), _weight_by_channel(part))


# ---- neighbourhoods


def _windows(part: Part, pooling: Any, extents: tuple[int, ...], counts: tuple[int, ...]) -> dict[str, Any]:
    """Attributes of a pooling operator: ONNX computes as many windows as Caffe if the bottom is padded at its end."""
    geometry = zip(extents, counts, pooling.window, pooling.stride, pooling.pad, strict=True)
    behind = [max(0, (count - 1) * step + size - extent - before) for extent, count, size, step, before in geometry]
    return {"kernel_shape": pooling.window, "strides": pooling.stride, "pads": [*pooling.pad, *behind]}


def _pool(part: Part, x: str, pooling: Any, extents: tuple[int, ...], counts: tuple[int, ...]) -> str:
    """The maximum, the mean, or STOCHASTIC's expectation of each window, as the layer `pooling` computes it."""
    attributes = _windows(part, pooling, extents, counts)
    if pooling.method == caffe_pb2.PoolingParameter.MAX:
        return part.add("MaxPool", x, **attributes)
    if pooling.method == caffe_pb2.PoolingParameter.STOCHASTIC:
        squares = part.add("AveragePool", part.add("Mul", x, x), count_include_pad=1, **attributes)
        mean = part.add("AveragePool", x, count_include_pad=1, **attributes)
        return part.add("Div", squares, part.add("Max", mean, part.number("least", float(np.finfo(np.float32).tiny))))
    padded = any(pooling.pad + pooling.pad_after)
    y = part.add("AveragePool", x, count_include_pad=int(padded and not pooling.excludes_pad), **attributes)
    if not padded or pooling.excludes_pad:
        return y
    # The padding counts in the mean; the part of a window beyond it does not.
    axes = zip(extents, counts, pooling.window, pooling.stride, pooling.pad, pooling.pad_after, strict=True)
    rows, columns = (
        [min(size, extent + before + after - number * step) for number in range(count)]
        for extent, count, size, step, before, after in axes
    )
    correction = math.prod(pooling.window) / np.outer(rows, columns).astype(np.float32)
    return y if (correction == 1).all() else part.add("Mul", y, part.tensor("correction", correction[None, None]))


def _is_delicate(param: caffe_pb2.LayerParameter) -> bool:
    """Whether a pooling gives positions, or divides by sums that may be near 0."""
    return len(param.top) > 1 or param.pooling_param.pool == caffe_pb2.PoolingParameter.STOCHASTIC


@converts("Pooling", single_precision=_is_delicate)
def pooling(part: Part, x: str) -> str | list[str]:
    layer, extents, counts = part.layer, part.shapes[0][2:], part.tops[0][2:]
    if layer.volumes:
        raise part.error(f"a bottom of shape {part.shapes[0]}", "pooling of maps (N, C, H, W) is exported", "use Pooling3D")
    largest = layer.method == caffe_pb2.PoolingParameter.MAX
    if len(part.tops) > 1:
        if any(layer.beyond):
            raise part.error("positions of windows beyond the bottom", "ONNX has none", "use a stride up to the kernel's size")
        y = part.add("MaxPool", x, outputs=2, **_windows(part, layer, extents, counts))
        # ONNX counts positions over all images and channels.
        places = part.add("Mod", part.nodes[-1].output[1], part.whole("size", math.prod(extents)))
        return [y, part.add("Cast", places, to=TensorProto.FLOAT)]
    if part.param.pooling_param.global_pooling and layer.method != caffe_pb2.PoolingParameter.STOCHASTIC:
        return part.add("GlobalMaxPool" if largest else "GlobalAveragePool", x)
    return _pool(part, x, layer, extents, counts)


@converts("SPP")
def spatial_pyramid(part: Part, x: str) -> str:
    extents = part.shapes[0][2:]
    part.layer.fit(part.shapes[0])
    levels = []
    for level in part.layer.levels:
        level.fit(part.shapes[0])
        levels.append(_pool(part, x, level, extents, level.sizes))
    if len(levels) == 1:
        return levels[0]
    return part.add("Concat", *[part.add("Flatten", level, axis=1) for level in levels], axis=1)


@converts("Im2col")
def im2col(part: Part, x: str) -> str:
    """A convolution of each channel with a kernel for each place of the window."""
    layer, channels = part.layer, part.shapes[0][1]
    size = math.prod(layer.kernel)
    kernels = np.tile(np.eye(size, dtype=np.float32).reshape(size, 1, *layer.kernel), (channels, 1, 1, 1))
    window = {"kernel_shape": layer.kernel, "strides": layer.stride, "pads": layer.pad * 2, "dilations": layer.dilation}
    return part.add("Conv", x, part.tensor("places", kernels), group=channels, **window)


@converts("LRN", single_precision=True)
def lrn(part: Part, x: str) -> str:
    p = part.param.lrn_param
    if p.norm_region == caffe_pb2.LRNParameter.ACROSS_CHANNELS:
        return part.add("LRN", x, size=p.local_size, alpha=p.alpha, beta=p.beta, bias=p.k)
    squares, pads = part.add("Mul", x, x), [p.local_size // 2] * 4
    mean = part.add("AveragePool", squares, kernel_shape=[p.local_size] * 2, pads=pads, count_include_pad=1)
    total = part.add("Add", part.add("Mul", mean, part.number("alpha", p.alpha)), part.number("one", 1))
    return part.add("Mul", x, part.add("Pow", total, part.number("exponent", -p.beta)))


@converts("MVN", single_precision=True)
def mvn(part: Part, x: str) -> str:
    p = part.param.mvn_param
    axes = range(1 if p.across_channels else 2, len(part.shapes[0]))
    y = part.add("Sub", x, part.reduce("ReduceMean", x, axes))
    if not p.normalize_variance:
        return y
    deviation = part.add("Sqrt", part.reduce("ReduceMean", part.add("Mul", y, y), axes))
    return part.add("Div", y, part.add("Add", deviation, part.number("eps", p.eps)))


@converts("Interp")
def interp(part: Part, x: str) -> str:
    p, (height, width) = part.param.interp_param, part.shapes[0][2:]
    if p.pad_beg or p.pad_end:
        ends = [height + p.pad_end, width + p.pad_end]
        x = part.slice(x, [2, 3], [-p.pad_beg] * 2, ends)
        height, width = (end + p.pad_beg for end in ends)
    return part.resize(x, (height, width), part.tops[0][2:], mode="linear", coordinate_transformation_mode="align_corners")


@converts("BilinearInterpolation")
def bilinear_interpolation(part: Part, x: str, like: str) -> str:
    sizes = part.shapes[0][2:], part.tops[0][2:]
    return part.resize(x, *sizes, mode="linear", coordinate_transformation_mode="align_corners")


def has_positions(param: caffe_pb2.LayerParameter) -> bool:
    return len(param.bottom) > 1


def spread(part: Part, x: str, positions: str) -> str:
    """The first bottom's values at their positions in maps of the top's size, 0 elsewhere."""
    channels, (*_, height, width) = part.shapes[0][1], part.tops[0]
    rows = part.whole("rows", [0, channels, -1])
    values, places = (part.add("Reshape", each, rows) for each in (x, positions))
    images = part.slice(part.add("Shape", x), [0], [0], [1])
    size = part.add("Concat", images, part.whole("size", [channels, height * width]), axis=0)
    zeros = part.add("Expand", part.number("zero", 0), size)
    there = part.add("ScatterElements", zeros, part.add("Cast", places, to=TensorProto.INT64), values, axis=2)
    return part.add("Reshape", there, part.whole("maps", [0, channels, height, width]))


@converts("Upsample", single_precision=has_positions)
def upsample(part: Part, x: str, *positions: str) -> str:
    if positions:
        return spread(part, x, *positions)
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return part.resize(x, part.shapes[0][2:], part.tops[0][2:], **nearest)


# ---- value by value

for _type, _operator in {"Sigmoid": "Sigmoid", "TanH": "Tanh", "BNLL": "Softplus", "AbsVal": "Abs"}.items():
    converts(_type)(lambda part, x, operator=_operator: part.add(operator, x))


@converts("Dropout")
def dropout(part: Part, x: str) -> str:
    p = part.param.dropout_param
    return x if p.scale_train else _linear(part, x, 1 - p.dropout_ratio, 0)


@converts("Split", "Silence", "GradientReversal", "GradientScaler")
def unchanged(part: Part, x: str, *_: str) -> list[str]:
    return [x] * len(part.tops)


@converts("ReLU")
def relu(part: Part, x: str) -> str:
    slope = part.param.relu_param.negative_slope
    return part.add("LeakyRelu", x, alpha=slope) if slope else part.add("Relu", x)


@converts("ReLU6")
def relu6(part: Part, x: str) -> str:
    if part.param.relu_param.negative_slope:
        return part.add("Min", relu(part, x), part.number("max", 6))
    return part.add("Clip", x, part.number("min", 0), part.number("max", 6))


@converts("ELU")
def elu(part: Part, x: str) -> str:
    return part.add("Elu", x, alpha=part.param.elu_param.alpha)


@converts("Swish")
def swish(part: Part, x: str) -> str:
    beta = part.param.swish_param.beta
    return part.add("Mul", x, part.add("Sigmoid", part.add("Mul", x, part.number("beta", beta)) if beta != 1 else x))


@converts("Clip")
def clip(part: Part, x: str) -> str:
    p = part.param.clip_param
    return part.add("Clip", x, part.number("min", p.min), part.number("max", p.max))


@converts("Threshold")
def threshold(part: Part, x: str) -> str:
    above = part.add("Greater", x, part.number("threshold", part.param.threshold_param.threshold))
    return part.add("Cast", above, to=TensorProto.FLOAT)


def _linear(part: Part, x: str, scale: float, shift: float) -> str:
    """shift + scale · x."""
    x = part.add("Mul", x, part.number("scale", scale)) if scale != 1 else x
    return part.add("Add", x, part.number("shift", shift)) if shift else x


@converts("Exp", single_precision=True)
def exp(part: Part, x: str) -> str:
    p = part.param.exp_param
    log_base = 1.0 if p.base == -1 else math.log(p.base)
    return part.add("Exp", _linear(part, x, log_base * p.scale, log_base * p.shift))


@converts("Log", single_precision=True)
def log(part: Part, x: str) -> str:
    p = part.param.log_param
    y = part.add("Log", _linear(part, x, p.scale, p.shift))
    return y if p.base == -1 else part.add("Div", y, part.number("base", math.log(p.base)))


@converts("Power", single_precision=True)
def power(part: Part, x: str) -> str:
    p = part.param.power_param
    if p.power * p.scale == 0:
        return _linear(part, part.add("Sub", x, x), 1, p.shift**p.power)
    y = _linear(part, x, p.scale, p.shift)
    return part.add("Pow", y, part.number("power", p.power)) if p.power != 1 else y


# ---- along an axis, and several blobs


@converts("Softmax", single_precision=True)
def softmax(part: Part, x: str) -> str:
    return part.add("Softmax", x, axis=part.layer.along)


@converts("Concat")
def concat(part: Part, *bottoms: str) -> str:
    return part.add("Concat", *bottoms, axis=part.layer.along)


@converts("Eltwise")
def eltwise(part: Part, *bottoms: str) -> str:
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
def axpy(part: Part, factor: str, x: str, y: str) -> str:
    missing = range(len(part.shapes[0]), len(part.shapes[1]))
    factor = part.add("Unsqueeze", factor, part.whole("axes", missing)) if missing else factor
    return part.add("Add", part.add("Mul", factor, x), y)


@converts("Slice")
def slices(part: Part, x: str) -> str | list[str]:
    axis = part.layer.along
    if len(part.tops) == 1:
        return x
    part.add("Split", x, part.whole("split", [shape[axis] for shape in part.tops]), outputs=len(part.tops), axis=axis)
    return list(part.nodes[-1].output)


@converts("Crop")
def crop(part: Part, x: str, reference: str) -> str:
    axes, offsets = range(part.layer.start, len(part.shapes[0])), part.layer.offsets
    ends = [offset + part.shapes[1][axis] for offset, axis in zip(offsets, axes, strict=True)]
    return part.add("Slice", x, part.whole("starts", offsets), part.whole("ends", ends), part.whole("axes", axes))


# ---- shapes


@converts("Flatten")
def flatten(part: Part, x: str) -> str:
    first, last = part.layer.first, part.layer.last
    return part.add("Reshape", x, part.whole("shape", [0] * first + [-1, *part.shapes[0][last + 1 :]]))


@converts("Reshape")
def reshape(part: Part, x: str) -> str:
    p, shape = part.param.reshape_param, part.shapes[0]
    start = p.axis if p.axis >= 0 else len(shape) + 1 + p.axis
    end = len(shape) if p.num_axes == -1 else start + p.num_axes
    return part.add("Reshape", x, part.whole("shape", [0] * start + [*p.shape.dim, *shape[end:]]))


@converts("Permute", "Transpose")
def permute(part: Part, x: str) -> str:
    return part.add("Transpose", x, perm=part.layer.order)


@converts("ShuffleChannel")
def shuffle_channel(part: Part, x: str) -> str:
    group, (_, channels, *rest) = part.param.shuffle_channel_param.group, part.shapes[0]
    x = part.add("Reshape", x, part.whole("groups", [0, group, channels // group, *rest]))
    x = part.add("Transpose", x, perm=[0, 2, 1, *range(3, 3 + len(rest))])
    return part.add("Reshape", x, part.whole("shape", [0, channels, *rest]))


@converts("Tile")
def tile(part: Part, x: str) -> str:
    times = [1] * len(part.shapes[0])
    times[part.layer.along] = part.param.tile_param.tiles
    return part.add("Tile", x, part.whole("repeats", times))


@converts("Reduction", single_precision=True)
def reduction(part: Part, x: str) -> str:
    p, names = part.param.reduction_param, caffe_pb2.ReductionParameter
    operator = {names.SUM: "ReduceSum", names.ASUM: "ReduceL1", names.SUMSQ: "ReduceSumSquare", names.MEAN: "ReduceMean"}
    axes = range(part.layer.first, len(part.shapes[0]))
    return _linear(part, part.reduce(operator[p.operation], x, axes, keepdims=0), p.coeff, 0)


@converts("ArgMax", single_precision=True)
def arg_max(part: Part, x: str) -> str:
    p = part.param.argmax_param
    if p.top_k != 1 or p.out_max_val:
        return _largest(part, x)
    along = part.layer.along
    x = part.add("Reshape", x, part.whole("shape", [0, -1])) if along is None else x
    y = part.add("ArgMax", x, axis=1 if along is None else along, keepdims=1, select_last_index=1)
    y = part.add("Cast", y, to=TensorProto.FLOAT)
    return y if along is not None else part.add("Reshape", y, part.whole("top", [0, *part.tops[0][1:]]))


def _largest(part: Part, x: str) -> str:
    """Positions or values of the top_k largest along an axis; of equal values the last comes first, as in a reversed TopK."""
    p, shape, along = part.param.argmax_param, part.shapes[0], part.layer.along
    x = part.add("Reshape", x, part.whole("flat", [0, -1])) if along is None else x
    axis, size = (1, math.prod(shape[1:])) if along is None else (along, shape[along])
    reverse = part.slice(x, [axis], [-1], [-size - 1], [-1])
    values = part.add("TopK", reverse, part.whole("k", [p.top_k]), outputs=2, axis=axis)
    places = part.add("Sub", part.whole("last", size - 1), part.nodes[-1].output[1])
    places = part.add("Cast", places, to=TensorProto.FLOAT)
    if along is not None:
        return values if p.out_max_val else places
    rows = part.add("Concat", places, values, axis=1) if p.out_max_val else places
    return part.add("Reshape", rows, part.whole("top", [0, *part.tops[0][1:]]))


@converts("BatchReindex", single_precision=True)
def batch_reindex(part: Part, x: str, numbers: str) -> str:
    return part.add("Gather", x, part.add("Cast", numbers, to=TensorProto.INT64), axis=0)


@converts("Filter", single_precision=True)
def filtered(part: Part, *bottoms: str) -> list[str]:
    *data, selector = bottoms
    chosen = part.add("NonZero", part.add("Reshape", selector, part.whole("flat", [-1])))
    chosen = part.add("Reshape", chosen, part.whole("images", [-1]))
    return [part.add("Gather", x, chosen, axis=0) for x in data]


@converts("Parameter")
def parameter(part: Part) -> str:
    return part.add("Identity", part.tensor("weight"))

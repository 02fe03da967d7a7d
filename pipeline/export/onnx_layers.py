"""Convert each layer type to ONNX: CONVERTERS, functions of a Part and the names of its bottoms that return those of its tops."""

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from onnx import TensorProto

import caffe
from caffe.proto import caffe_pb2
from pipeline.export.onnx_part import Part

Converter = TypeVar("Converter", bound=Callable[..., str | list[str]])
CONVERTERS: dict[str, Callable[..., str | list[str]]] = {}
_KINDS = {name: caffe.layer_type(name) for name in caffe.layer_type_list()}
_COMPARING = [name for name, kind in _KINDS.items() if kind.is_loss or kind.compares_labels]
_OF_FORKS = (
    *(
        "BilinearInterpolation",
        "ChannelNorm",
        "Combination",
        "Convolution3D",
        "Correlation",
        "DenseBlock",
        "DeformableConvolution",
        "ModulatedDeformableConvolution",
        "Division",
        "Downsample",
    ),
    *("FlowWarp", "MaskPooling", "Mean", "MultiStageMeanfield", "Norm", "Pooling3D", "Resample", "Unpooling"),
)
_AUGMENTING = ("DataAugmentation", "FlowAugmentation", "GenerateAugmentationParameters")
_OF_LABELS = ("CombinedMargin", "CosinAddm", "LabelSpecificAdd", "LargeMarginInnerProduct", "MarginInnerProduct")
_OF_DETECTORS = (
    *("ROIPooling", "PSROIPooling", "Reorg", "PriorBox", "DetectionOutput", "Proposal"),
    *("YoloDetectionOutput", "Yolov3DetectionOutput", "BoxOutput", "DecodeBBox"),
    *("DeformablePSROIPooling", "ROIAlign", "ROIWarping", "MaskResize"),
)
NOT_EXPORTED = {
    **dict.fromkeys([name for name, kind in _KINDS.items() if kind.is_source], "a model's inputs come from its caller"),
    **dict.fromkeys(
        (*_COMPARING, "DetectionEvaluate", "EvalDetection", "BoxAnnotatorOHEM", "LabelsequenceAccuracy", "SequenceAccuracy"),
        "an exported model has no targets to compare with",
    ),
    **dict.fromkeys(
        ("LSTM", "Lstm", "RNN"), "ONNX's operators neither take continuation marks nor keep their state between runs"
    ),
    **dict.fromkeys(("BatchReindex", "Filter"), "which images its tops hold depends on values"),
    **dict.fromkeys(_OF_DETECTORS, "of a detector only the feature layers are exported"),
    **dict.fromkeys(("Im2col", "SPP", "Parameter", "LSTMUnit"), "the published classifiers do not use it"),
    **dict.fromkeys(_OF_LABELS, "an exported model has no labels to add a margin to"),
    **dict.fromkeys(_AUGMENTING, "an exported model takes images as they are"),
    **dict.fromkeys(("ContinuationIndicator", "Reverse", "CTCGreedyDecoder"), "of sequences only the layers before are exported"),
    **dict.fromkeys(_OF_FORKS, "the published classifiers do not use it"),
    **{"Python": "its code is the user's"},
    **dict.fromkeys(("FLOWriter", "HDF5Output"), "a model writes no files"),
}
"""Types without a converter, and why they have none."""


def converts(*types: str) -> Callable[[Converter], Converter]:
    """Decorator: register a converter of these layer types."""

    def decorate(function: Converter) -> Converter:
        CONVERTERS.update(dict.fromkeys(types, function))
        return function

    return decorate


# ---- with learned weights


@converts("Convolution", "DepthwiseConvolution", "ConvolutionDepthwise", "Deconvolution")
def convolution(part: Part, *bottoms: str) -> list[str]:
    layer = part.layer
    if layer.channel_axis != 1:
        raise part.error(f"axis {layer.channel_axis}", "ONNX convolves with the channels on axis 1")
    operator = "ConvTranspose" if layer.is_transposed else "Conv"
    parameters = [part.tensor(name) for name in part.tensors]
    window = {"kernel_shape": layer.kernel, "strides": layer.stride, "pads": layer.pad * 2}
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


@converts("Embed")
def embed(part: Part, x: str) -> str:
    y = part.add("Gather", part.tensor("weight"), part.add("Cast", x, to=TensorProto.INT64))
    return part.add("Add", y, part.tensor("bias")) if part.param.embed_param.bias_term else y


@converts("BatchNorm", "BN")
def batch_norm(part: Part, x: str) -> str:
    scaled = "weight" in part.tensors
    if part.layer.tests_by_batch(part.param) or "running_mean" not in part.tensors or len(part.shapes[0]) < 2:
        raise part.error("statistics of the batch", "an exported net uses stored averages", "set use_global_stats: true")
    channels = part.shapes[0][1]
    weight = part.tensor("weight", None if scaled else np.ones(channels, np.float32))
    bias = part.tensor("bias", None if scaled else np.zeros(channels, np.float32))
    averages = part.tensor("running_mean"), part.tensor("running_var")
    return part.add("BatchNormalization", x, weight, bias, *averages, epsilon=part.layer.epsilon(part.param))


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


@converts("Normalize")
def normalize(part: Part, x: str) -> str:
    p = part.param.norm_param
    axes = part.whole("axes", range(1, len(part.shapes[0])) if p.across_spatial else [1])
    total = part.add("ReduceSumSquare", x, axes, keepdims=1)
    norm = part.add("Sqrt", part.add("Add", total, part.number("eps", p.eps)))
    return part.add("Mul", part.add("Div", x, norm), _weight_by_channel(part))


# ---- neighbourhoods


@converts("Pooling")
def pooling(part: Part, x: str) -> str:
    """Caffe's windows: ONNX computes as many if the bottom is padded at its end."""
    p, extents, counts = part.param.pooling_param, part.shapes[0][2:], part.tops[0][2:]
    largest = p.pool == caffe_pb2.PoolingParameter.MAX
    if len(part.tops) > 1 or not (largest or p.pool == caffe_pb2.PoolingParameter.AVE):
        raise part.error("two tops" if len(part.tops) > 1 else "STOCHASTIC", "MAX and AVE with one top are exported")
    if p.global_pooling:
        return part.add("GlobalMaxPool" if largest else "GlobalAveragePool", x)
    kernel, stride, pad = part.layer.kernel, part.layer.stride, part.layer.pad
    geometry = list(zip(extents, counts, kernel, stride, pad, strict=True))
    behind = [max(0, (count - 1) * step + size - extent - before) for extent, count, size, step, before in geometry]
    attributes = {"kernel_shape": kernel, "strides": stride, "pads": [*pad, *behind]}
    if largest:
        return part.add("MaxPool", x, **attributes)
    # The padding counts in the mean; the part of a window beyond it does not.
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
def lrn(part: Part, x: str) -> str:
    p = part.param.lrn_param
    if p.norm_region == caffe_pb2.LRNParameter.ACROSS_CHANNELS:
        return part.add("LRN", x, size=p.local_size, alpha=p.alpha, beta=p.beta, bias=p.k)
    squares, pads = part.add("Mul", x, x), [p.local_size // 2] * 4
    mean = part.add("AveragePool", squares, kernel_shape=[p.local_size] * 2, pads=pads, count_include_pad=1)
    total = part.add("Add", part.add("Mul", mean, part.number("alpha", p.alpha)), part.number("one", 1))
    return part.add("Mul", x, part.add("Pow", total, part.number("exponent", -p.beta)))


@converts("MVN")
def mvn(part: Part, x: str) -> str:
    p = part.param.mvn_param
    axes = part.whole("axes", range(1 if p.across_channels else 2, len(part.shapes[0])))
    y = part.add("Sub", x, part.add("ReduceMean", x, axes, keepdims=1))
    if not p.normalize_variance:
        return y
    deviation = part.add("Sqrt", part.add("ReduceMean", part.add("Mul", y, y), axes, keepdims=1))
    return part.add("Div", y, part.add("Add", deviation, part.number("eps", p.eps)))


@converts("Interp")
def interp(part: Part, x: str) -> str:
    p = part.param.interp_param
    if p.pad_beg or p.pad_end:
        ends = [extent + p.pad_end for extent in part.shapes[0][2:]]
        x = part.add("Slice", x, part.whole("starts", [-p.pad_beg] * 2), part.whole("ends", ends), part.whole("axes", [2, 3]))
    sizes = part.whole("sizes", part.tops[0][2:])
    return part.add("Resize", x, "", "", sizes, axes=[2, 3], mode="linear", coordinate_transformation_mode="align_corners")


@converts("Upsample")
def upsample(part: Part, x: str, *positions: str) -> str:
    if positions:
        raise part.error("a second bottom (pooling mask)", "only upsampling by a scale is exported")
    scales = part.tensor("scales", np.divide(part.tops[0][2:], part.shapes[0][2:]).astype(np.float32))
    return part.add(
        "Resize", x, "", scales, axes=[2, 3], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )


# ---- value by value

for _type, _operator in {"Sigmoid": "Sigmoid", "TanH": "Tanh", "BNLL": "Softplus", "AbsVal": "Abs"}.items():
    converts(_type)(lambda part, x, operator=_operator: part.add(operator, x))


@converts("Dropout", "Split", "Silence", "GradientReversal", "GradientScaler")
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


@converts("Exp")
def exp(part: Part, x: str) -> str:
    p = part.param.exp_param
    log_base = 1.0 if p.base == -1 else math.log(p.base)
    return part.add("Exp", _linear(part, x, log_base * p.scale, log_base * p.shift))


@converts("Log")
def log(part: Part, x: str) -> str:
    p = part.param.log_param
    y = part.add("Log", _linear(part, x, p.scale, p.shift))
    return y if p.base == -1 else part.add("Div", y, part.number("base", math.log(p.base)))


@converts("Power")
def power(part: Part, x: str) -> str:
    p = part.param.power_param
    if p.power * p.scale == 0:
        return _linear(part, part.add("Sub", x, x), 1, p.shift**p.power)
    y = _linear(part, x, p.scale, p.shift)
    return part.add("Pow", y, part.number("power", p.power)) if p.power != 1 else y


# ---- along an axis, and several blobs


@converts("Softmax", "Concat")
def along_axis(part: Part, *bottoms: str) -> str:
    return part.add(part.param.type, *bottoms, axis=part.layer.along)


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


@converts("Reduction")
def reduction(part: Part, x: str) -> str:
    p, names = part.param.reduction_param, caffe_pb2.ReductionParameter
    operator = {names.SUM: "ReduceSum", names.ASUM: "ReduceL1", names.SUMSQ: "ReduceSumSquare", names.MEAN: "ReduceMean"}
    axes = part.whole("axes", range(part.layer.first, len(part.shapes[0])))
    return _linear(part, part.add(operator[p.operation], x, axes, keepdims=0), p.coeff, 0)


@converts("ArgMax")
def arg_max(part: Part, x: str) -> str:
    p = part.param.argmax_param
    if p.top_k != 1 or p.out_max_val:
        raise part.error("top_k or out_max_val", "the position of the largest value alone is exported")
    along = part.layer.along
    x = part.add("Reshape", x, part.whole("shape", [0, -1])) if along is None else x
    y = part.add("ArgMax", x, axis=1 if along is None else along, keepdims=1, select_last_index=1)
    y = part.add("Cast", y, to=TensorProto.FLOAT)
    return y if along is not None else part.add("Reshape", y, part.whole("top", [0, *part.tops[0][1:]]))

"""Building blocks of later nets: ReLU6, DepthwiseConvolution, ShuffleChannel, Axpy, Permute, Normalize, BN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from caffe.engine.layer import BIAS, WEIGHT, BlobSpec, Layer, Shape, Tops, register
from caffe.layer_types.activation import Elementwise
from caffe.layer_types.normalization import normalize_batch, stop_learning
from caffe.layer_types.vision import Convolution
from caffe.proto import caffe_pb2


@register("ReLU6", "relu_param")
class ReLU6(Elementwise, takes_bfloat16=True):
    """y = min(max(x, 0), 6), with negative_slope · x instead of 0 if it is given (MobileNet); shape of x.

    relu_param, or relu6_param as in eric612/MobileNet-YOLO: negative_slope (0)
    """

    def forward(self, x: Tensor) -> Tensor:
        slope = self.param.relu_param.negative_slope or self.param.relu6_param.negative_slope
        if slope:
            return functional.leaky_relu(x, slope).clamp_max(6)
        return functional.relu6(x, inplace=self.overwrites)


@register("DepthwiseConvolution")
class DepthwiseConvolution(Convolution):
    """A Convolution with as many groups as channels: (N, C, H, W) × (O, 1, k_h, k_w) → (N, O, H', W'); O is a multiple of C.

    convolution_param: as for Convolution; `group` is set from the bottom.
    """

    begins_layout = False
    is_classifier = False

    def setup(self, *shapes: Shape) -> None:
        p = self.param.convolution_param
        p.group = shapes[0][self.axis(p.axis, len(shapes[0]))]
        super().setup(*shapes)


@register("ConvolutionDepthwise")
class ConvolutionDepthwise(DepthwiseConvolution):
    """DepthwiseConvolution under another fork's name."""


@register("ShuffleChannel")
class ShuffleChannel(Layer, takes_bfloat16=True):
    """Channel shuffle: channel i of group g becomes channel i · group + g (Zhang et al. 2017); shape of x."""

    keeps_shape = True

    def setup(self, shape: Shape) -> None:
        self.group = self.param.shuffle_channel_param.group
        if len(shape) < 2 or self.group < 1 or shape[1] % self.group:
            raise self.error(f"group {self.group} for a bottom of shape {shape}", "the groups must divide its channels evenly")

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.group, -1)).transpose(1, 2).flatten(1, 2)


@register("Axpy")
class Axpy(Layer):
    """a · x + y with one a for each channel (Hu et al. 2017): (a (N, C) or (N, C, 1, 1), x, y (N, C, H, W)) → shape of x."""

    bottoms = (3, 3)
    keeps_output = False

    def setup(self, factor: Shape, x: Shape, y: Shape) -> None:
        if x != y:
            raise self.error(f"second and third bottom of shapes {x} and {y}", "they must have the same shape")
        if factor[:2] != x[:2] or any(extent != 1 for extent in factor[2:]):
            raise self.error(f"factors of shape {factor} for a bottom of shape {x}", f"there must be one for each of {x[:2]}")

    def top_shapes(self, factor: Shape, x: Shape, y: Shape) -> list[Shape]:
        return [x]

    def forward(self, factor: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return torch.addcmul(y, factor.reshape(factor.shape[:2] + (1,) * (x.dim() - 2)), x)


@register("Permute")
class Permute(Layer):
    """Transpose: axis i of the top is axis order[i] of the bottom; axes not listed follow in their order."""

    def setup(self, shape: Shape) -> None:
        order = list(self.param.permute_param.order)
        if len(set(order)) < len(order) or any(axis >= len(shape) for axis in order):
            raise self.error(
                f"order {', '.join(map(str, order))}", f"each axis of the bottom (0 to {len(shape) - 1}) may be listed once"
            )
        self.order = order + [axis for axis in range(len(shape)) if axis not in order]

    def top_shapes(self, shape: Shape) -> list[Shape]:
        return [tuple(shape[axis] for axis in self.order)]

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


@register("Normalize", "norm_param")
class Normalize(Layer):
    """y = scale · x / √(Σ x² + eps), summed over the channels at each position, or over the whole image (ParseNet); shape of x.

    Blob: the scales (C,), or () with channel_shared; initially 1.
    happynear/caffe-windows has another layer of this name, which normalize_param or softmax_param's normalize_type tells: without
    scale, y = x / √(Σ x² + 1e-6), or x / (Σ |x| + 1e-6) with normalize_type "L1", summed over the channels at each position; an
    optional second top (N, 1, H, W) has what x is divided by, and with bp_norm passes its gradient on.
    """

    tops = (1, 2)
    keeps_shape = True
    rescales = True

    def __new__(cls, param: caffe_pb2.LayerParameter, *_arguments: Any) -> Normalize:
        return super().__new__(_UnscaledNormalize if cls.is_happynears(param) else cls)

    @staticmethod
    def is_happynears(param: caffe_pb2.LayerParameter) -> bool:
        """Whether a layer is happynear's, which learns nothing."""
        return param.HasField("normalize_param") or param.softmax_param.HasField("normalize_type")

    @classmethod
    def blob_specs(cls, param: caffe_pb2.LayerParameter) -> tuple[BlobSpec, ...]:
        return () if cls.is_happynears(param) else (WEIGHT,)

    def setup(self, shape: Shape) -> None:
        if len(self.param.top) > 1:
            raise self.error("2 tops", "the second needs normalize_param { normalize_type: … }")
        p = self.param.norm_param
        if not 2 <= len(shape) <= 4:
            raise self.error(f"a bottom of shape {shape}", "Normalize takes 2 to 4 axes (N, C, H, W)")
        filler = p.scale_filler if p.HasField("scale_filler") else caffe_pb2.FillerParameter(type="constant", value=1)
        self.add_blob(() if p.channel_shared else (shape[1],), filler)
        self.over = list(range(1, len(shape))) if p.across_spatial else [1]
        self.broadcast_shape = (-1,) + (1,) * (len(shape) - 2)

    def forward(self, x: Tensor) -> Tops:
        (scale,) = self.parameters()
        norm = (x.square().sum(self.over, keepdim=True) + self.param.norm_param.eps).sqrt()
        return x / norm * scale.reshape(self.broadcast_shape)


class _UnscaledNormalize(Normalize):
    """happynear's Normalize."""

    def setup(self, shape: Shape) -> None:
        p = self.param.normalize_param if self.param.HasField("normalize_param") else self.param.softmax_param
        self.kind = p.normalize_type
        if self.kind not in ("L1", "L2"):
            raise self.error(f'normalize_type "{self.kind}"', "there are L1 and L2")
        if len(shape) < 2:
            raise self.error(f"a bottom of shape {shape}", "Normalize needs a channel axis, the second")

    def top_shapes(self, shape: Shape) -> list[Shape]:
        return [shape, (shape[0], 1, *shape[2:])][: len(self.param.top)]

    def forward(self, x: Tensor) -> Tops:
        norm = (x.square().sum(1, keepdim=True) + 1e-06).sqrt() if self.kind == "L2" else x.abs().sum(1, keepdim=True) + 1e-06
        return (x / norm, norm if self.param.normalize_param.bp_norm else norm.detach())[: len(self.param.top)]


@register("BN")
class BN(Layer):
    """Batch normalisation of two forks: y = slope · (x - mean) / √(variance + eps) + bias for each channel; shape of x.

    yjxiong's: mean and variance are the batch's in training, and their running averages in testing, or in both phases if frozen.
    Blobs, each (1, C): slope, bias, running mean, running variance; the last two are not learned.
    SegNet's (scale_filler, shift_filler or bn_mode is given): the batch's in both phases, with eps 1e-9, or with bn_mode:
    INFERENCE y = scale · x + shift. Blobs, each (1, C, 1, 1): scale, shift. Optional further tops: the batch's mean and variance.
    ChenglongChen/caffe-windows' (SegNet's with moving_average, decay or var_eps): as yjxiong's, with decay for momentum, var_eps
    for eps and, unless moving_average, the batch's statistics in testing too. moving_average: false does that to yjxiong's as
    well.
    """

    tops = (1, 3)
    keeps_output = False
    is_channelwise = True
    rescales = True
    normalizes_batch = True
    statistics_setting = "frozen"

    @staticmethod
    def is_segnets(param: caffe_pb2.LayerParameter) -> bool:
        """Whether a layer is SegNet's, which stores no statistics."""
        given = param.bn_param.HasField
        return any(map(given, ("scale_filler", "shift_filler", "bn_mode"))) and not BN.is_chens(param)

    @staticmethod
    def is_chens(param: caffe_pb2.LayerParameter) -> bool:
        """Whether a layer is ChenglongChen's, SegNet's with averages."""
        given = param.bn_param.HasField
        averaging = any(map(given, ("moving_average", "decay", "var_eps")))
        return averaging and not given("slope_filler") and not given("bias_filler")

    @classmethod
    def blob_specs(cls, param: caffe_pb2.LayerParameter) -> tuple[BlobSpec, ...]:
        if cls.is_segnets(param):
            return WEIGHT, BIAS
        return WEIGHT, BIAS, BlobSpec("running_mean", learned=False), BlobSpec("running_var", learned=False)

    @classmethod
    def tests_by_batch(cls, param: caffe_pb2.LayerParameter) -> bool:
        p = param.bn_param
        if cls.is_segnets(param):
            return p.bn_mode != caffe_pb2.BNParameter.INFERENCE
        return not p.moving_average and (cls.is_chens(param) or p.HasField("moving_average"))

    @classmethod
    def epsilon(cls, param: caffe_pb2.LayerParameter) -> float:
        """What is added to the stored variance."""
        return param.bn_param.var_eps if cls.is_chens(param) else param.bn_param.eps

    def setup(self, shape: Shape) -> None:
        p = self.param.bn_param
        if len(shape) < 2:
            raise self.error(f"a bottom of shape {shape}", "BN needs a channel axis, the second")
        self.segnets = self.is_segnets(self.param)
        if self.segnets:
            self.batch_statistics = self.tests_by_batch(self.param)
            for filler in (p.scale_filler, p.shift_filler):
                self.add_blob((1, shape[1], 1, 1), filler)
            return
        if len(self.param.top) > 1:
            raise self.error(f"{len(self.param.top)} tops", "further tops need scale_filler and shift_filler")
        variance = caffe_pb2.FillerParameter(type="constant", value=float(p.frozen))
        chens = self.is_chens(self.param)
        learned = (p.scale_filler, p.shift_filler) if chens else (p.slope_filler, p.bias_filler)
        for filler in (*learned, caffe_pb2.FillerParameter(), variance):
            self.add_blob((1, shape[1], 1, 1) if chens else (1, shape[1]), filler)
        self.kept = p.decay if chens else p.momentum
        self.batch_statistics = not p.frozen and (self.phase == caffe_pb2.TRAIN or self.tests_by_batch(self.param))
        stop_learning(self.param, *range(0 if p.frozen else 2, 4))

    def batch_dependence(self) -> str:
        return "batch statistics are of each process's own batch" if self.batch_statistics else ""

    def top_shapes(self, shape: Shape) -> list[Shape]:
        return [shape, *[(1, shape[1], 1, 1)] * (len(self.param.top) - 1)]

    def forward(self, x: Tensor) -> Tops:
        factor, term = (blob.reshape(-1) for blob in self.parameters()[:2])
        if self.segnets:
            return self.forward_segnet(x, factor, term)
        if not self.batch_statistics:
            mean, variance = (blob.tensor.reshape(-1) for blob in self.blobs[2:])
            return functional.batch_norm(x, mean, variance, factor, term, eps=self.epsilon(self.param))
        y, mean, variance = normalize_batch(x, factor, term, self.epsilon(self.param))
        if self.phase == caffe_pb2.TRAIN:
            for blob, value in zip(self.blobs[2:], (mean, variance), strict=True):
                blob.tensor.mul_(self.kept).add_(value.view(blob.shape), alpha=1 - self.kept)
        return y

    def forward_segnet(self, x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
        """The tops of SegNet's form: y[, mean[, variance]]."""
        if self.batch_statistics:
            y, mean, variance = normalize_batch(x, scale, shift, 1e-9)
        else:
            along = (-1,) + (1,) * (x.dim() - 2)
            y = torch.addcmul(shift.view(along), x, scale.view(along))
            mean, variance = x.new_zeros(2, x.shape[1])
        return (y, mean.view(1, -1, 1, 1), variance.view(1, -1, 1, 1))[: len(self.param.top)]

"""What forks added for the blocks of later nets: ReLU6, DepthwiseConvolution, ShuffleChannel, Axpy, Permute, Normalize, BN."""

from __future__ import annotations

import torch
from torch.nn import functional

from caffe.engine.layer import BIAS, WEIGHT, BlobSpec, Layer, register
from caffe.layer_types.activation import Elementwise
from caffe.layer_types.vision import Convolution
from caffe.proto import caffe_pb2


@register("ReLU6", "relu_param")
class ReLU6(Elementwise):
    """y = x from 0 to 6, 0 below (negative_slope · x where that is given) and 6 above (MobileNet); shape of x."""

    def forward(self, x):
        slope = self.param.relu_param.negative_slope
        if slope:
            return functional.leaky_relu(x, slope).clamp_max(6)
        return functional.relu6(x, inplace=self.overwrites)


@register("DepthwiseConvolution")
class DepthwiseConvolution(Convolution):
    """A Convolution with as many groups as channels: (N, C, H, W) × (O, 1, k_h, k_w) → (N, O, H', W'); O is a multiple of C.

    convolution_param: as Convolution's; `group` need not be given.
    """

    begins_layout = False
    is_classifier = False

    def setup(self, *shapes):
        p = self.param.convolution_param
        p.group = shapes[0][self.axis(p.axis, len(shapes[0]))]
        super().setup(*shapes)


@register("ConvolutionDepthwise")
class ConvolutionDepthwise(DepthwiseConvolution):
    """DepthwiseConvolution by the name that another fork gave it."""


@register("ShuffleChannel")
class ShuffleChannel(Layer):
    """Channels dealt out anew: channel i of group g comes to place i · group + g (Zhang et al. 2017); shape of x."""

    keeps_shape = True

    def setup(self, shape):
        self.group = self.param.shuffle_channel_param.group
        if len(shape) < 2 or self.group < 1 or shape[1] % self.group:
            raise self.error(f"group {self.group} for a bottom of shape {shape}", "the groups must divide its channels evenly")

    def forward(self, x):
        return x.unflatten(1, (self.group, -1)).transpose(1, 2).flatten(1, 2)


@register("Axpy")
class Axpy(Layer):
    """a · x + y with one a for each channel (Hu et al. 2017): (a (N, C) or (N, C, 1, 1), x, y (N, C, H, W)) → shape of x."""

    bottoms = (3, 3)
    keeps_output = False

    def setup(self, factor, x, y):
        if x != y:
            raise self.error(f"second and third bottom of shapes {x} and {y}", "they have the same")
        if factor[:2] != x[:2] or any(extent != 1 for extent in factor[2:]):
            raise self.error(f"factors of shape {factor} for a bottom of shape {x}", f"there is one for each of {x[:2]}")

    def top_shapes(self, factor, x, y):
        return [x]

    def forward(self, factor, x, y):
        return torch.addcmul(y, factor.reshape(factor.shape[:2] + (1,) * (x.dim() - 2)), x)


@register("Permute")
class Permute(Layer):
    """Axes in another order: axis i of the top is axis order[i] of the bottom; axes that are not named follow as they come."""

    def setup(self, shape):
        order = list(self.param.permute_param.order)
        if len(set(order)) < len(order) or any(axis >= len(shape) for axis in order):
            raise self.error(
                f"order {', '.join(map(str, order))}", f"each axis of the bottom (0 to {len(shape) - 1}) comes at most once"
            )
        self.order = order + [axis for axis in range(len(shape)) if axis not in order]

    def top_shapes(self, shape):
        return [tuple(shape[axis] for axis in self.order)]

    def forward(self, x):
        return x.permute(self.order)


@register("Normalize", "norm_param")
class Normalize(Layer):
    """y = scale · x / √(Σ x² + eps), the sum over the channels of a position or over the whole image (ParseNet); shape of x.

    Blob: the scales (C,), or () with channel_shared; 1 at first.
    """

    learns = (WEIGHT,)
    keeps_shape = True
    rescales = True

    def setup(self, shape):
        p = self.param.norm_param
        if not 2 <= len(shape) <= 4:
            raise self.error(f"a bottom of shape {shape}", "Normalize wants 2 to 4 axes (N, C, H, W)")
        filler = p.scale_filler if p.HasField("scale_filler") else caffe_pb2.FillerParameter(type="constant", value=1)
        self.add_blob(() if p.channel_shared else (shape[1],), filler)
        self.over = list(range(1, len(shape))) if p.across_spatial else [1]
        self.placed = (-1,) + (1,) * (len(shape) - 2)

    def forward(self, x):
        (scale,) = self.parameters()
        norm = (x.square().sum(self.over, keepdim=True) + self.param.norm_param.eps).sqrt()
        return x / norm * scale.reshape(self.placed)


@register("BN")
class BN(Layer):
    """Batch normalisation of two forks: y = slope · (x - mean) / √(variance + eps) + bias for each channel; shape of x.

    yjxiong's: mean and variance are the batch's in training, and averages of them are kept, which serve in testing, or always
    where it is frozen. Blobs, each (1, C): slope, bias, average mean, average variance; the last two are not learned.
    SegNet's (scale_filler, shift_filler or bn_mode is given): the batch's in both phases, with eps 1e-9, or with bn_mode:
    INFERENCE y = scale · x + shift. Blobs, each (1, C, 1, 1): scale, shift. Batch's mean and variance as further tops.
    """

    tops = (1, 3)
    keeps_output = False
    is_channelwise = True
    rescales = True
    normalizes_batch = True
    statistics_setting = "frozen"

    @staticmethod
    def is_segnets(param) -> bool:
        """Whether a layer is SegNet's, which stores no statistics."""
        return any(param.bn_param.HasField(field) for field in ("scale_filler", "shift_filler", "bn_mode"))

    @classmethod
    def blob_specs(cls, param):
        if cls.is_segnets(param):
            return WEIGHT, BIAS
        return WEIGHT, BIAS, BlobSpec("running_mean", learned=False), BlobSpec("running_var", learned=False)

    @classmethod
    def tests_by_batch(cls, param):
        return cls.is_segnets(param) and param.bn_param.bn_mode != caffe_pb2.BNParameter.INFERENCE

    @classmethod
    def epsilon(cls, param):
        """What is added to the stored variance."""
        return param.bn_param.eps

    def setup(self, shape):
        p = self.param.bn_param
        if len(shape) < 2:
            raise self.error(f"a bottom of shape {shape}", "BN wants a channel axis, the second")
        self.segnets = self.is_segnets(self.param)
        if self.segnets:
            for filler in (p.scale_filler, p.shift_filler):
                self.add_blob((1, shape[1], 1, 1), filler)
            return
        if len(self.param.top) > 1:
            raise self.error(f"{len(self.param.top)} tops", "further ones are for scale_filler and shift_filler")
        variance = caffe_pb2.FillerParameter(type="constant", value=float(p.frozen))
        for filler in (p.slope_filler, p.bias_filler, caffe_pb2.FillerParameter(), variance):
            self.add_blob((1, shape[1]), filler)
        self.by_averages = p.frozen or self.phase == caffe_pb2.TEST
        for index in range(4):
            spec = self.param.param[index] if index < len(self.param.param) else self.param.param.add()
            if index > 1 or p.frozen:
                spec.lr_mult = spec.decay_mult = 0

    def batch_dependence(self):
        inference = self.param.bn_param.bn_mode == caffe_pb2.BNParameter.INFERENCE
        by_averages = inference if self.segnets else self.by_averages
        return "" if by_averages else "batch statistics are of each process's own batch"

    def top_shapes(self, shape):
        return [shape, *[(1, shape[1], 1, 1)] * (len(self.param.top) - 1)]

    def forward(self, x):
        factor, term = (blob.reshape(-1) for blob in self.parameters()[:2])
        p = self.param.bn_param
        if self.segnets:
            return self.of_segnet(x, factor, term)
        if self.by_averages:
            mean, variance = (blob.tensor.reshape(-1) for blob in self.blobs[2:])
            return functional.batch_norm(x, mean, variance, factor, term, eps=p.eps)
        y, mean, variance = _by_batch(x, factor, term, p.eps)
        for blob, value in zip(self.blobs[2:], (mean, variance), strict=True):
            blob.tensor.mul_(p.momentum).add_(value.view(1, -1), alpha=1 - p.momentum)
        return y

    def of_segnet(self, x, scale, shift):
        """y, and as many of mean and variance as there are tops for."""
        if self.param.bn_param.bn_mode == caffe_pb2.BNParameter.INFERENCE:
            along = (-1,) + (1,) * (x.dim() - 2)
            y = torch.addcmul(shift.view(along), x, scale.view(along))
            mean, variance = x.new_zeros(2, x.shape[1])
        else:
            y, mean, variance = _by_batch(x, scale, shift, 1e-9)
        return (y, mean.view(1, -1, 1, 1), variance.view(1, -1, 1, 1))[: len(self.param.top)]


def _by_batch(x, factor, term, eps):
    """x standardised by its batch, scaled and shifted; its mean and its (biased) variance, (C,)."""
    channels = x.shape[1]
    count = x.numel() // max(1, channels)
    mean, variance = x.new_zeros(channels), x.new_zeros(channels)
    # With momentum 1, what PyTorch keeps is the batch's mean and its unbiased variance.
    y = torch.batch_norm(x, factor, term, mean, variance, True, 1.0, eps, torch.backends.cudnn.enabled)
    return y, mean, (variance * ((count - 1) / max(1, count))).nan_to_num_()

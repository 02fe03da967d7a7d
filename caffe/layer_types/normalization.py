"""Normalisation layers, and the affine layers that follow them: BatchNorm, Scale, Bias, MVN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from caffe.engine import machine
from caffe.engine.fusion import over_channels
from caffe.engine.layer import BIAS, WEIGHT, BlobSpec, Layer, Shape, register
from caffe.engine.running import Added
from caffe.proto import caffe_pb2


def stop_learning(param: caffe_pb2.LayerParameter, *blobs: int) -> None:
    """Set the lr_mult and decay_mult of the blobs of these indices to 0."""
    for index in blobs:
        while len(param.param) <= index:
            param.param.add()
        param.param[index].lr_mult = param.param[index].decay_mult = 0


def normalize_batch(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float, biased: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """x normalised by the batch's statistics, then scaled and shifted; and the batch's mean and variance, both (C,).

    biased  whether the variance returned divides by the number of values, rather than that number less 1
    """
    channels = x.shape[1]
    count = x.numel() // max(1, channels)
    mean, variance = x.new_zeros(2, channels, dtype=machine.sum_type(x))
    # With momentum 1, PyTorch's running statistics are the batch's mean and unbiased variance.
    y = torch.batch_norm(x, scale, shift, mean, variance, True, 1.0, eps, torch.backends.cudnn.enabled)
    if biased:
        variance = (variance * ((count - 1) / max(1, count))).nan_to_num_()
    elif count == 1:
        variance = torch.zeros_like(variance)
    return y, mean, variance


@register("BatchNorm")
class BatchNorm(Layer, is_capturable=True, takes_bfloat16=True):
    """y = (x - mean) / √(variance + eps) for each channel (Ioffe and Szegedy 2015); shape of x.

    In training mean and variance are the batch's, and are added to running sums that decay by moving_average_fraction; in
    testing, or with use_global_stats, they are those sums, divided by the third blob.
    Blobs: sum of means (C,), sum of unbiased variances (C,), sum of the weights of both (1,). None of them is learned.
    """

    keeps_shape = True
    keeps_output = False
    is_channelwise = True
    rescales = True
    normalizes_batch = True
    statistics_setting = "use_global_stats"
    takes_affine = True

    def __new__(cls, param: caffe_pb2.LayerParameter, *_arguments: Any) -> BatchNorm:
        return super().__new__(_ScaledBatchNorm if cls.is_scaled(param) else cls)

    @staticmethod
    def is_scaled(param: caffe_pb2.LayerParameter) -> bool:
        """Whether a layer is NVIDIA's, with a scale and a bias."""
        p = param.batch_norm_param
        return bool(p.scale_bias) or p.HasField("scale_filler") or p.HasField("bias_filler")

    @classmethod
    def blob_specs(cls, param: caffe_pb2.LayerParameter) -> tuple[BlobSpec, ...]:
        sums = (BlobSpec(name, learned=False) for name in ("running_mean", "running_var", "running_weight"))
        return (*sums, WEIGHT, BIAS) if cls.is_scaled(param) else tuple(sums)

    @classmethod
    def stores_sums(cls, param: caffe_pb2.LayerParameter) -> bool:
        return not cls.is_scaled(param)

    @classmethod
    def tests_by_batch(cls, param: caffe_pb2.LayerParameter) -> bool:
        p = param.batch_norm_param
        return p.HasField("use_global_stats") and not p.use_global_stats

    @classmethod
    def choose_statistics(cls, param: caffe_pb2.LayerParameter, stored: bool | None) -> None:
        if stored is None:
            param.batch_norm_param.ClearField("use_global_stats")
        else:
            param.batch_norm_param.use_global_stats = stored

    @classmethod
    def epsilon(cls, param: caffe_pb2.LayerParameter) -> float:
        """What is added to the variance."""
        return max(param.batch_norm_param.eps, 1e-5) if cls.is_scaled(param) else param.batch_norm_param.eps

    def advice_for_blobs(self, count: int) -> str:
        scaled = "give the net's layer batch_norm_param { scale_bias: true }"
        return scaled if count == 5 else super().advice_for_blobs(count)

    @property
    def batch_statistics(self) -> bool:
        """Whether mean and variance are the batch's."""
        p = self.param.batch_norm_param
        return not p.use_global_stats if p.HasField("use_global_stats") else self.phase == caffe_pb2.TRAIN

    def setup(self, shape: Shape) -> None:
        channels = shape[1] if len(shape) > 1 else 1
        for size in (channels, channels, 1):
            self.add_blob((size,), caffe_pb2.FillerParameter())
        self.one = torch.ones(1, device=self.device)
        for index, spec in enumerate(self.param.param):
            if spec.lr_mult:
                raise self.error(
                    f"lr_mult {spec.lr_mult:g} for parameter {index}", "its blobs are not learned", "give lr_mult: 0, or none"
                )
        for _ in range(len(self.param.param), 3):
            self.param.param.add(lr_mult=0)

    def per_channel(self) -> tuple[Tensor, Tensor] | None:
        if self.batch_statistics:
            return None
        mean, variance, weight = (blob.tensor.double() for blob in self.blobs)
        scale = torch.where(weight == 0, weight, 1 / weight)
        factor = (variance * scale + self.param.batch_norm_param.eps).rsqrt()
        return factor, -mean * scale * factor

    def batch_dependence(self) -> str:
        return "batch statistics are of each process's own batch" if self.batch_statistics else ""

    def forward(self, x: Tensor) -> Tensor:
        return self.then_affine(x, None, None)

    def then_affine(self, x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        p = self.param.batch_norm_param
        if x.dim() == 1:
            return self.then_affine(x[:, None], scale, shift)[:, 0]
        if not self.batch_statistics:
            mean, variance, weight = (blob.tensor for blob in self.blobs)
            inverse = torch.where(weight == 0, weight, 1 / weight)
            mean, variance = mean * inverse, variance * inverse
            return functional.batch_norm(x, mean, variance, scale, shift, training=False, eps=p.eps)
        y, mean, variance = normalize_batch(x, scale, shift, p.eps, biased=False)
        self.added = Added(self.parameters(), [mean, variance, self.one], p.moving_average_fraction)
        return y

    def normalised(self, x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        return normalize_batch(x, scale, shift, self.param.batch_norm_param.eps, biased=False)[0]


class _ScaledBatchNorm(BatchNorm, takes_bfloat16=True):
    """BatchNorm of NVIDIA's fork with scale_bias: y = scale · (x - mean) / √(variance + eps) + bias; shape of x.

    Running averages are of the mean and of the biased variance + eps; the first two batches replace them.
    Blobs: running mean (C,), running variance (C,), 1 (1,), scale (C,), bias (C,). The last two are learned; unlike NVIDIA's,
    with the lr_mult and decay_mult of their `param`, so that they can be frozen.
    """

    passes = 0
    takes_affine = False

    def setup(self, shape: Shape) -> None:
        p = self.param.batch_norm_param
        channels = shape[1] if len(shape) > 1 else 1
        self.eps = self.epsilon(self.param)
        zero, one = (caffe_pb2.FillerParameter(type="constant", value=value) for value in (0, 1))
        fillers = zero, zero, one, p.scale_filler if p.HasField("scale_filler") else one, p.bias_filler
        for size, filler in zip((channels, channels, 1, channels, channels), fillers, strict=True):
            self.add_blob((size,), filler)
        stop_learning(self.param, 0, 1, 2)

    def per_channel(self) -> tuple[Tensor, Tensor] | None:
        if self.batch_statistics:
            return None
        mean, variance, _, scale, bias = (blob.tensor.double() for blob in self.blobs)
        factor = scale * (variance + self.eps).rsqrt()
        return factor, bias - mean * factor

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 1:
            return self.forward(x[:, None])[:, 0]
        scale, bias = self.parameters()[3:]
        averages = running_mean, running_variance = self.blobs[0].tensor, self.blobs[1].tensor
        if not self.batch_statistics:
            return functional.batch_norm(x, running_mean, running_variance, scale, bias, eps=self.eps)
        y, mean, variance = normalize_batch(x, scale, bias, self.eps)
        with torch.no_grad():
            kept = self.param.batch_norm_param.moving_average_fraction if self.passes > 1 else 0.0
            for average, value in zip(averages, (mean, variance + self.eps), strict=True):
                average.mul_(kept).add_(value, alpha=1 - kept)
        self.passes += 1
        return y


class _AlongAxes(Layer):
    """Base of Scale and Bias: a second operand, a bottom or learned, with the axes `axis`, axis + 1, … of the first bottom."""

    bottoms = (1, 2)
    keeps_shape = True
    keeps_output = False
    is_channelwise = True
    is_affine = True

    initial = 0.0
    """Initial value of the learned operand if no filler is given."""

    def setup(self, first: Shape, second: Shape | None = None) -> None:
        """Declare the learned operand if there is no second bottom, and find the shape that broadcasts."""
        p = self.settings_of(self.param)
        axis = self.axis(p.axis, len(first)) if first else 0
        if second is None:
            if p.num_axes < -1 or axis + p.num_axes > len(first):
                raise self.error(
                    f"axis {axis} and num_axes {p.num_axes} for a bottom of shape {first}",
                    f"num_axes is -1 (all that follow) or up to {len(first) - axis}",
                )
            second = first[axis:] if p.num_axes == -1 else first[axis : axis + p.num_axes]
            default = caffe_pb2.FillerParameter(type="constant", value=self.initial)
            self.add_blob(second, p.filler if p.HasField("filler") else default)
        if first[axis : axis + len(second)] != second:
            raise self.error(
                f"bottoms of shapes {first} and {second}", f"the second must equal the first's axes from axis {axis} on"
            )
        self.trailing = (1,) * (len(first) - axis - len(second))
        self.is_per_channel = len(self.param.bottom) == 1 and len(second) == 1 and axis == 1

    def expand(self, factor: Tensor) -> Tensor:
        """`factor` in the shape that broadcasts over the first bottom."""
        return factor.reshape(factor.shape + self.trailing) if self.trailing else factor


@register("Scale")
class Scale(_AlongAxes, is_capturable=True):
    """y = s · x, with bias_term + b; s is the second bottom, or learned; shape of x.

    s has the shape of `num_axes` axes of x from `axis` on (-1: all of them), and is broadcast over the others.
    """

    rescales = True
    initial = 1.0

    @classmethod
    def blob_specs(cls, param: caffe_pb2.LayerParameter) -> tuple[BlobSpec, ...]:
        return (WEIGHT,) * (len(param.bottom) < 2) + (BIAS,) * param.scale_param.bias_term

    def setup(self, first: Shape, second: Shape | None = None) -> None:
        super().setup(first, second)
        p = self.param.scale_param
        if p.bias_term:
            self.add_blob(self.blobs[0].shape if second is None else second, p.bias_filler)
        self.takes_relu = self.is_per_channel

    def per_channel(self) -> tuple[Tensor, Tensor | None] | None:
        if not self.is_per_channel:
            return None
        factor, *term = (blob.tensor for blob in self.blobs)
        return factor, term[0] if term else None

    def forward(self, x: Tensor, *factors: Tensor) -> Tensor:
        if self.is_per_channel and machine.has_kernels(x.device):
            return self._by_kernel(x, relu=False)
        parameters = self.parameters()
        factor = factors[0] if factors else parameters.pop(0)
        if parameters:
            return torch.addcmul(self.expand(parameters[0]), x, self.expand(factor))
        return x * self.expand(factor)

    def then_relu(self, x: Tensor) -> Tensor:
        return self._by_kernel(x, relu=True)

    def _by_kernel(self, x: Tensor, relu: bool) -> Tensor:
        factor, *term = self.parameters()
        y: Tensor = _Scaled.apply(x, factor, term[0] if term else None, relu)
        return y


class _Scaled(torch.autograd.Function):
    """factor · x + term for each channel of x, (N, C, …), and with `relu` a ReLU: by a kernel of a GPU.

    Factors and terms are float32; x, rounded once, may be bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, term: Tensor | None, relu: bool) -> Tensor:
        y = machine.by_kernel("chains.scale", _scaled, x, factor, term, relu)
        ctx.save_for_backward(x, y if relu else x, factor)
        ctx.given = term is not None, relu
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y, factor = ctx.saved_tensors
        has_term, relu = ctx.given
        given = x, y, gradient, factor, has_term, relu
        of_x, of_factor, of_term = machine.by_kernel("chains.scale_backward", _scaled_backward, *given)
        return of_x, of_factor, of_term if has_term else None, None


def _scaled(x: Tensor, factor: Tensor, term: Tensor | None, relu: bool) -> Tensor:
    y = x * over_channels(factor, x) if term is None else torch.addcmul(over_channels(term, x), x, over_channels(factor, x))
    return (torch.relu_(y) if relu else y).to(x.dtype)


def _scaled_backward(
    x: Tensor, y: Tensor, gradient: Tensor, factor: Tensor, has_term: bool, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    passed = (torch.ops.aten.threshold_backward(gradient, y, 0) if relu else gradient).to(factor.dtype)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    of_term = passed.sum(axes) if has_term else torch.zeros_like(factor)
    return (passed * over_channels(factor, x)).to(x.dtype), (passed * x).sum(axes), of_term


@register("Bias")
class Bias(_AlongAxes, is_capturable=True):
    """y = x + b; b is the second bottom, or learned, with axes like Scale's factor; shape of x."""

    @classmethod
    def blob_specs(cls, param: caffe_pb2.LayerParameter) -> tuple[BlobSpec, ...]:
        return (BIAS,) * (len(param.bottom) < 2)

    def per_channel(self) -> tuple[None, Tensor] | None:
        return (None, self.blobs[0].tensor) if self.is_per_channel else None

    def forward(self, x: Tensor, *terms: Tensor) -> Tensor:
        return x + self.expand(terms[0] if terms else self.parameters()[0])


class _Standardised(torch.autograd.Function):
    """(rows - mean) / (√variance + eps); gradients of constant rows are finite, as in Caffe."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, eps: float) -> Tensor:
        centred = rows - rows.mean(1, keepdim=True)
        deviation = centred.square().mean(1, keepdim=True).sqrt_().add_(eps)
        y = centred.div_(deviation)
        ctx.save_for_backward(y, deviation)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        y, deviation = ctx.saved_tensors
        through = gradient - gradient.mean(1, keepdim=True) - y * (gradient * y).mean(1, keepdim=True)
        return through.div_(deviation), None


@register("MVN")
class MVN(Layer, is_capturable=True):
    """Mean-variance normalisation: (x - mean) / (standard deviation + eps) of each channel of each image; shape of x.

    across_channels: one mean and deviation for all channels of an image. normalize_variance: false only subtracts the mean.
    """

    keeps_shape = True
    rescales = True

    def setup(self, shape: Shape) -> None:
        if len(shape) < 2:
            raise self.error(f"a bottom of shape {shape}", "MVN takes axes for images and channels")

    def forward(self, x: Tensor) -> Tensor:
        p = self.param.mvn_param
        rows = x.reshape(x.shape[0], -1) if p.across_channels else x.reshape(x.shape[0] * x.shape[1], -1)
        y = _Standardised.apply(rows, p.eps) if p.normalize_variance else rows - rows.mean(1, keepdim=True)
        return y.view(x.shape)

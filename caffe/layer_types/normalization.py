"""Layers that bring values to a common scale: LRN, BatchNorm, Scale, Bias, MVN."""

from __future__ import annotations

import torch
from torch.nn import functional

from caffe.engine.layer import BIAS, WEIGHT, BlobSpec, Layer, register
from caffe.proto import caffe_pb2


def _window_sum(x: torch.Tensor, size: int) -> torch.Tensor:
    """Sum over `size` neighbouring channels, as many on either side."""
    half = size // 2
    total = x.clone()
    for shift in range(1, min(half, x.shape[1] - 1) + 1):
        total[:, shift:] += x[:, :-shift]
        total[:, :-shift] += x[:, shift:]
    return total


def _power(x: torch.Tensor, exponent: float) -> torch.Tensor:
    if exponent == -0.75:  # the published nets' beta: two square roots are several times faster than a power
        root = x.rsqrt()
        return root * root.sqrt()
    return x.pow(exponent)


class _AcrossChannels(torch.autograd.Function):
    """y = x · s^-beta with s = k + alpha / n · (window sum of x²); keeps x and s only."""

    @staticmethod
    def forward(ctx, x, size, alpha, beta, k):
        scale = _window_sum(x * x, size).mul_(alpha / size).add_(k)
        ctx.save_for_backward(x, scale)
        ctx.constants = size, alpha, beta
        return x * _power(scale, -beta)

    @staticmethod
    def backward(ctx, gradient):
        x, scale = ctx.saved_tensors
        size, alpha, beta = ctx.constants
        direct = gradient * _power(scale, -beta)
        through = _window_sum((direct * x).div_(scale), size)
        return (
            direct.addcmul_(through.mul_(x), torch.ones((), device=x.device), value=-2 * alpha * beta / size),
            None,
            None,
            None,
            None,
        )


@register("LRN")
class LRN(Layer):
    """Local response normalisation (Krizhevsky et al. 2012): y = x / (k + alpha / n · Σ x²)^beta, shape of x.

    The sum runs over `local_size` channels, or over a square window within the channel, where k is 1.
    """

    keeps_shape = True
    rescales = True

    def setup(self, shape):
        p = self.param.lrn_param
        if p.local_size % 2 == 0:
            raise self.error(f"local_size {p.local_size}", "it must be odd")
        if len(shape) != 4:
            raise self.error(f"a bottom of shape {shape}", "LRN wants 4 axes (N, C, H, W)")

    def forward(self, x):
        p = self.param.lrn_param
        if p.norm_region == caffe_pb2.LRNParameter.ACROSS_CHANNELS:
            return _AcrossChannels.apply(x, p.local_size, p.alpha, p.beta, p.k)
        mean = functional.avg_pool2d(x * x, p.local_size, 1, p.local_size // 2)
        return x * (1 + p.alpha * mean) ** -p.beta


@register("BatchNorm")
class BatchNorm(Layer):
    """y = (x - mean) / √(variance + eps) for each channel (Ioffe and Szegedy 2015); shape of x.

    In training mean and variance are the batch's, and sums of them that decay by moving_average_fraction are kept; in testing,
    or with use_global_stats, they are those sums, divided by the third blob.
    Blobs: sum of means (C,), sum of unbiased variances (C,), sum of the weights of both (1,). None of them is learned.
    """

    keeps_shape = True
    keeps_output = False
    is_channelwise = True
    rescales = True
    normalizes_batch = True
    statistics_setting = "use_global_stats"

    def __new__(cls, param, *_arguments):
        return super().__new__(_ScaledBatchNorm if cls.is_scaled(param) else cls)

    @staticmethod
    def is_scaled(param) -> bool:
        """Whether a layer is NVIDIA's, with a scale and a bias."""
        p = param.batch_norm_param
        return p.scale_bias or p.HasField("scale_filler") or p.HasField("bias_filler")

    @classmethod
    def blob_specs(cls, param):
        sums = (BlobSpec(name, learned=False) for name in ("running_mean", "running_var", "running_weight"))
        return (*sums, WEIGHT, BIAS) if cls.is_scaled(param) else tuple(sums)

    @classmethod
    def stores_sums(cls, param):
        return not cls.is_scaled(param)

    @classmethod
    def tests_by_batch(cls, param):
        p = param.batch_norm_param
        return p.HasField("use_global_stats") and not p.use_global_stats

    @classmethod
    def choose_statistics(cls, param, stored):
        if stored is None:
            param.batch_norm_param.ClearField("use_global_stats")
        else:
            param.batch_norm_param.use_global_stats = stored

    @classmethod
    def epsilon(cls, param):
        """What is added to the variance."""
        return max(param.batch_norm_param.eps, 1e-5) if cls.is_scaled(param) else param.batch_norm_param.eps

    def advice_for_blobs(self, count):
        scaled = "give the net's layer batch_norm_param { scale_bias: true }"
        return scaled if count == 5 else super().advice_for_blobs(count)

    def by_averages(self) -> bool:
        """Whether mean and variance are those that were kept."""
        p = self.param.batch_norm_param
        return p.use_global_stats if p.HasField("use_global_stats") else self.phase == caffe_pb2.TEST

    def setup(self, shape):
        self.batch_statistics = not self.by_averages()
        channels = shape[1] if len(shape) > 1 else 1
        for size in (channels, channels, 1):
            self.add_blob((size,), caffe_pb2.FillerParameter())
        for index, spec in enumerate(self.param.param):
            if spec.lr_mult:
                raise self.error(
                    f"lr_mult {spec.lr_mult:g} for parameter {index}", "BatchNorm's are not learned", "give lr_mult: 0, or none"
                )
        for _ in range(len(self.param.param), 3):
            self.param.param.add(lr_mult=0)

    def batch_dependence(self):
        return "batch statistics are of each process's own batch" if self.batch_statistics else ""

    def forward(self, x):
        p = self.param.batch_norm_param
        columns = x if x.dim() > 1 else x[:, None]
        sums = [blob.tensor for blob in self.blobs]
        if not self.batch_statistics:
            mean, variance, weight = sums
            scale = torch.where(weight == 0, weight, 1 / weight)
            y = functional.batch_norm(columns, mean * scale, variance * scale, training=False, eps=p.eps)
            return y.view(x.shape)
        channels = columns.shape[1]
        count = columns.numel() // max(1, channels)
        mean, variance = columns.new_zeros(channels), columns.new_zeros(channels)
        # With momentum 1, what PyTorch keeps is the batch's mean and its unbiased variance.
        y = torch.batch_norm(columns, None, None, mean, variance, True, 1.0, p.eps, torch.backends.cudnn.enabled)
        with torch.no_grad():
            if count == 1:
                variance = torch.zeros_like(variance)
            for total, value in zip(sums, (mean, variance, 1.0), strict=True):
                total.mul_(p.moving_average_fraction).add_(value)
        return y.view(x.shape)


class _ScaledBatchNorm(BatchNorm):
    """BatchNorm as NVIDIA's fork has it with scale_bias: y = scale · (x - mean) / √(variance + eps) + bias; shape of x.

    Averages of mean and variance + eps are kept, the variance by the number of values; the first two batches replace them.
    Blobs: average mean (C,), average variance (C,), 1 (1,), scale (C,), bias (C,). The last two are learned; unlike NVIDIA's, at
    the lr_mult and decay_mult that their `param` gives, so that they can be frozen.
    """

    passes = 0

    def setup(self, shape):
        p = self.param.batch_norm_param
        self.batch_statistics = not self.by_averages()
        channels = shape[1] if len(shape) > 1 else 1
        one = caffe_pb2.FillerParameter(type="constant", value=1)
        self.eps = self.epsilon(self.param)
        for size, filler in (
            (channels, caffe_pb2.FillerParameter()),
            (channels, caffe_pb2.FillerParameter()),
            (1, one),
            (channels, p.scale_filler if p.HasField("scale_filler") else one),
            (channels, p.bias_filler),
        ):
            self.add_blob((size,), filler)
        for index in range(3):
            spec = self.param.param[index] if index < len(self.param.param) else self.param.param.add()
            spec.lr_mult = spec.decay_mult = 0

    def forward(self, x):
        columns = x if x.dim() > 1 else x[:, None]
        scale, bias = self.parameters()[3:]
        averages = [blob.tensor for blob in self.blobs[:2]]
        if not self.batch_statistics:
            return functional.batch_norm(columns, *averages, scale, bias, eps=self.eps).view(x.shape)
        count = columns.numel() // max(1, columns.shape[1])
        mean, variance = (torch.zeros_like(average) for average in averages)
        y = torch.batch_norm(columns, scale, bias, mean, variance, True, 1.0, self.eps, torch.backends.cudnn.enabled)
        with torch.no_grad():
            kept = self.param.batch_norm_param.moving_average_fraction if self.passes > 1 else 0.0
            variance = (variance * ((count - 1) / max(1, count))).nan_to_num_() + self.eps
            for average, value in zip(averages, (mean, variance), strict=True):
                average.mul_(kept).add_(value, alpha=1 - kept)
        self.passes += 1
        return y.view(x.shape)


class _AlongAxes(Layer):
    """What Scale and Bias share: a second operand, a bottom or learned, that lies along axes `axis`, axis + 1, … of the first."""

    bottoms = (1, 2)
    keeps_shape = True
    keeps_output = False
    is_channelwise = True
    is_affine = True

    def place(self, parameters, shapes, filler: caffe_pb2.FillerParameter) -> None:
        """Declare the learned factor if there is no second bottom, and find the shape in which either is applied."""
        first = shapes[0]
        axis = self.axis(parameters.axis, len(first)) if first else 0
        if len(shapes) > 1:
            # A scalar goes with any axis.
            along = shapes[1]
        else:
            if parameters.num_axes < -1 or (parameters.num_axes >= 0 and axis + parameters.num_axes > len(first)):
                raise self.error(
                    f"axis {axis} and num_axes {parameters.num_axes} for a bottom of shape {first}",
                    f"num_axes is -1 (all that follow) or up to {len(first) - axis}",
                )
            along = first[axis:] if parameters.num_axes == -1 else first[axis : axis + parameters.num_axes]
            self.add_blob(along, filler)
        if first[axis : axis + len(along)] != along:
            raise self.error(
                f"bottoms of shapes {first} and {along}", f"the second is as the first from axis {axis} on, as far as it goes"
            )
        self.trailing = (1,) * (len(first) - axis - len(along))

    def placed(self, factor: torch.Tensor) -> torch.Tensor:
        """`factor` in the shape that broadcasts over the first bottom."""
        return factor.reshape(factor.shape + self.trailing)


@register("Scale")
class Scale(_AlongAxes):
    """y = s · x, with bias_term + b; s is the second bottom, or learned; shape of x.

    s has the shape of `num_axes` axes of x from `axis` on (-1: all of them), and is applied alike over the others.
    """

    rescales = True

    @classmethod
    def blob_specs(cls, param):
        return (WEIGHT,) * (len(param.bottom) < 2) + (BIAS,) * param.scale_param.bias_term

    def setup(self, *shapes):
        p = self.param.scale_param
        filler = p.filler if p.HasField("filler") else caffe_pb2.FillerParameter(type="constant", value=1)
        self.place(p, shapes, filler)
        if p.bias_term:
            self.add_blob(shapes[1] if len(shapes) > 1 else self.blobs[0].shape, p.bias_filler)

    def forward(self, x, *factors):
        parameters = self.parameters()
        factor = factors[0] if factors else parameters.pop(0)
        if parameters:
            return torch.addcmul(self.placed(parameters[0]), x, self.placed(factor))
        return x * self.placed(factor)


@register("Bias")
class Bias(_AlongAxes):
    """y = x + b; b is the second bottom, or learned, and lies along axes as Scale's factor does; shape of x."""

    @classmethod
    def blob_specs(cls, param):
        return (BIAS,) * (len(param.bottom) < 2)

    def setup(self, *shapes):
        p = self.param.bias_param
        self.place(p, shapes, p.filler)

    def forward(self, x, *terms):
        return x + self.placed(terms[0] if terms else self.parameters()[0])


class _Standardised(torch.autograd.Function):
    """Rows less their mean, divided by √variance + eps; finite gradients where a row is constant, as Caffe has them."""

    @staticmethod
    def forward(ctx, rows, eps):
        centred = rows - rows.mean(1, keepdim=True)
        deviation = centred.square().mean(1, keepdim=True).sqrt_().add_(eps)
        y = centred.div_(deviation)
        ctx.save_for_backward(y, deviation)
        return y

    @staticmethod
    def backward(ctx, gradient):
        y, deviation = ctx.saved_tensors
        through = gradient - gradient.mean(1, keepdim=True) - y * (gradient * y).mean(1, keepdim=True)
        return through.div_(deviation), None


@register("MVN")
class MVN(Layer):
    """Each image's channels less their mean, divided by their standard deviation + eps; shape of x.

    across_channels: one mean and deviation for all channels of an image. normalize_variance: false only subtracts the mean.
    """

    keeps_shape = True
    rescales = True

    def setup(self, shape):
        if len(shape) < 2:
            raise self.error(f"a bottom of shape {shape}", "MVN wants axes for images and channels")

    def forward(self, x):
        p = self.param.mvn_param
        rows = x.reshape(x.shape[0], -1) if p.across_channels else x.reshape(x.shape[0] * x.shape[1], -1)
        y = _Standardised.apply(rows, p.eps) if p.normalize_variance else rows - rows.mean(1, keepdim=True)
        return y.view(x.shape)

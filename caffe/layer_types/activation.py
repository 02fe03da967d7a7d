"""Element-wise layers: ReLU, PReLU, ELU, Sigmoid, TanH, Swish, BNLL, AbsVal, Clip, Exp, Log, Power, Threshold."""

import torch
from torch import Tensor
from torch.nn import functional

from caffe.engine.layer import WEIGHT, Layer, Shape, register
from caffe.numerics import scalars
from caffe.proto import caffe_pb2


class Elementwise(Layer):
    """y = f(x) for each value of one bottom; shape of x."""

    keeps_shape = True
    is_elementwise = True


@register("ReLU")
class ReLU(Elementwise, is_capturable=True, takes_bfloat16=True):
    """y = x where x > 0, else negative_slope · x; at most 6 with relu6 (Synopsys' fork); shape of x."""

    def setup(self, *shapes: Shape) -> None:
        p = self.param.relu_param
        self.slope, self.relu6 = p.negative_slope, p.relu6
        self.activation = ("leaky_relu", (self.slope,)) if self.slope else ("relu", ())
        if self.relu6:
            self.activation = None if self.slope else ("hardtanh", (0.0, 6.0))

    def forward(self, x: Tensor) -> Tensor:
        if self.relu6:
            return functional.leaky_relu(x, self.slope).clamp_max(6) if self.slope else functional.relu6(x)
        if self.slope:
            return functional.leaky_relu(x, self.slope)
        return torch.relu_(x) if self.overwrites else torch.relu(x)


@register("PReLU")
class PReLU(Layer, is_capturable=True):
    """y = x where x > 0, else a · x with a slope a learned for each channel, or one for all (He et al. 2015); shape of x.

    Blob: the slopes (C,), or () with channel_shared; initially 0.25.
    """

    learns = (WEIGHT,)
    keeps_shape = True
    is_channelwise = True

    def setup(self, shape: Shape) -> None:
        p = self.param.prelu_param
        if len(shape) < 2:
            raise self.error(f"a bottom of shape {shape}", "PReLU needs a channel axis, the second")
        filler = p.filler if p.HasField("filler") else caffe_pb2.FillerParameter(type="constant", value=0.25)
        self.add_blob(() if p.channel_shared else (shape[1],), filler)

    def forward(self, x: Tensor) -> Tensor:
        (slope,) = self.parameters()
        return functional.prelu(x, slope.reshape(-1))


@register("ELU")
class ELU(Elementwise, is_capturable=True):
    """y = x where x > 0, else alpha (e^x - 1) (Clevert et al. 2015); shape of x."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.elu(x, self.param.elu_param.alpha)


@register("Sigmoid")
class Sigmoid(Elementwise, is_capturable=True):
    """y = 1 / (1 + e^-x); shape of x."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


@register("TanH")
class TanH(Elementwise, is_capturable=True):
    """y = tanh x; shape of x."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


@register("Swish")
class Swish(Elementwise, is_capturable=True):
    """y = x / (1 + e^(-beta x)) (Ramachandran et al. 2017); shape of x."""

    def forward(self, x: Tensor) -> Tensor:
        beta = self.param.swish_param.beta
        return functional.silu(x) if beta == 1 else x * torch.sigmoid(beta * x)


@register("BNLL")
class BNLL(Elementwise, is_capturable=True):
    """Binomial normal log likelihood: y = log(1 + e^x); shape of x."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.softplus(x)


@register("AbsVal")
class AbsVal(Elementwise, is_capturable=True):
    """y = |x|; shape of x."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


@register("Clip")
class Clip(Elementwise, is_capturable=True):
    """y = x, clamped to min and max; shape of x."""

    def setup(self, shape: Shape) -> None:
        p = self.param.clip_param
        for bound in ("min", "max"):
            if not p.HasField(bound):
                raise self.error(f"no {bound}", do=f"give clip_param {{ {bound}: … }}")
        if p.min > p.max:
            raise self.error(f"min {p.min:g} and max {p.max:g}", "min must not be larger than max")

    def forward(self, x: Tensor) -> Tensor:
        p = self.param.clip_param
        return x.clamp(p.min, p.max)


@register("Threshold")
class Threshold(Elementwise, is_capturable=True):
    """y = 1 where x > threshold, else 0; shape of x. No gradient."""

    differentiable_bottoms = ()

    def forward(self, x: Tensor) -> Tensor:
        return (x > self.param.threshold_param.threshold).to(x.dtype)


def _log_base(layer: Layer, base: float) -> float:
    """Natural logarithm of a base; -1 means e."""
    if base == -1:
        return 1.0
    if base <= 0:
        raise layer.error(f"base {base:g}", "it must be larger than 0, or -1 for e")
    return scalars.log(base)


@register("Exp")
class Exp(Elementwise, is_capturable=True):
    """y = base ^ (shift + scale · x), where base -1 is e; shape of x."""

    def setup(self, shape: Shape) -> None:
        p = self.param.exp_param
        log_base = _log_base(self, p.base)
        self.inner, self.outer = log_base * p.scale, scalars.exp(log_base * p.shift)

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(self.inner * x) * self.outer


@register("Log")
class Log(Elementwise, is_capturable=True):
    """y = log of (shift + scale · x) to a base, where base -1 is e; shape of x."""

    def setup(self, shape: Shape) -> None:
        self.log_base = _log_base(self, self.param.log_param.base)
        if self.log_base == 0:
            raise self.error("base 1", "there is no logarithm to that base")

    def forward(self, x: Tensor) -> Tensor:
        p = self.param.log_param
        return torch.log(p.scale * x + p.shift) / self.log_base


@register("Power")
class Power(Elementwise, is_capturable=True):
    """y = (shift + scale · x) ^ power; shape of x.

    Caffe: where power · scale is 0 the output is constant and the gradient 0, whatever x is.
    """

    rescales = True

    def forward(self, x: Tensor) -> Tensor:
        p = self.param.power_param
        if p.power * p.scale == 0:
            constant = torch.full_like(x, scalars.power(p.shift, p.power))
            return constant + x.detach() * 0 if x.requires_grad else constant
        y = x * p.scale if p.scale != 1 else x
        y = y + p.shift if p.shift != 0 else y
        return y**p.power if p.power != 1 else y.view_as(y)

"""Layers that work value by value: ReLU, Sigmoid, TanH, Power."""

from __future__ import annotations

import torch
from torch.nn import functional

from caffe.layer import Layer, register


@register("ReLU")
class ReLU(Layer):
    """y = x where x > 0, else negative_slope · x; shape of x."""

    bottoms = (1, 1)

    def forward(self, x):
        slope = self.param.relu_param.negative_slope
        if slope:
            return functional.leaky_relu(x, slope)
        return torch.relu_(x) if self.overwrites else torch.relu(x)


@register("Sigmoid")
class Sigmoid(Layer):
    """y = 1 / (1 + e^-x); shape of x."""

    bottoms = (1, 1)

    def forward(self, x):
        return torch.sigmoid(x)


@register("TanH")
class TanH(Layer):
    """y = tanh x; shape of x."""

    bottoms = (1, 1)

    def forward(self, x):
        return torch.tanh(x)


@register("Power")
class Power(Layer):
    """y = (shift + scale · x) ^ power; shape of x.

    Caffe: where power · scale is 0 the output is constant and the gradient 0, whatever x is.
    """

    bottoms = (1, 1)

    def forward(self, x):
        p = self.param.power_param
        if p.power * p.scale == 0:
            return (
                torch.full_like(x, p.shift**p.power) + x.detach() * 0 if x.requires_grad else torch.full_like(x, p.shift**p.power)
            )
        y = x * p.scale if p.scale != 1 else x
        y = y + p.shift if p.shift != 0 else y
        return y**p.power if p.power != 1 else y.view_as(y)

"""exp, log and powers from single float64 operations, so that no processor's library decides their last bits.

Arguments and results are float64; relative errors are below 1e-15 unless stated. Each operation stands alone, as some processors
fuse a product and a sum.
"""

import math

import torch
from torch import Tensor

from caffe.numerics.exact import power_of_two
from caffe.numerics.scalars import ATANH, EXPONENTIAL, LOG2_HIGH, LOG2_LOW, LOG2E


def polynomial(x: Tensor, coefficients: list[float]) -> Tensor:
    """Horner's scheme, lowest coefficient first."""
    y = torch.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        y = y.mul_(x).add_(coefficient)
    return y


def exp(x: Tensor) -> Tensor:
    """e^x: 0 below -745, infinite above 709.78."""
    inside = x.clamp(-740.0, 709.75)
    k = (inside * LOG2E).round_()
    rest = (inside - k * LOG2_HIGH) - k * LOG2_LOW
    y = polynomial(rest, EXPONENTIAL)
    half = (k / 2).floor().to(torch.int64)  # in two steps, as 2^k alone may be no normal number
    y = y * power_of_two(half) * power_of_two(k.to(torch.int64) - half)
    y = torch.where(x < -740.0, 0.0, torch.where(x > 709.75, math.inf, y))
    return torch.where(x.isnan(), math.nan, y)


def log(x: Tensor) -> Tensor:
    """log x for normal numbers; -infinity for 0, NaN below."""
    bits = x.view(torch.int64)
    k = (bits >> 52) - 1023
    m = ((bits & ((1 << 52) - 1)) | (1023 << 52)).view(torch.float64)
    large = m > math.sqrt(2)
    m, k = torch.where(large, m / 2, m), (k + large).double()
    s = (m - 1) / (m + 1)
    y = polynomial(s * s, ATANH) * s
    y = k * LOG2_HIGH + (k * LOG2_LOW + y)
    y = torch.where(x == 0, -math.inf, torch.where(x == math.inf, math.inf, y))
    return torch.where((x < 0) | x.isnan(), math.nan, y)


def log1p(x: Tensor) -> Tensor:
    """log(1 + x) for x from 0 to 1."""
    s = x / (x + 2)
    return polynomial(s * s, ATANH) * s


def expm1(x: Tensor) -> Tensor:
    """e^x - 1, with a relative error below 1e-10."""
    return torch.where(x.abs() < 1e-5, x + x * x / 2, exp(x) - 1)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    return torch.ones_like(x) / (exp(-x) + 1)


def tanh(x: Tensor) -> Tensor:
    """tanh x, with a relative error below 1e-10."""
    e = expm1(x.abs() * -2)
    return -e / (e + 2) * x.sign()


def power(x: Tensor, exponent: float) -> Tensor:
    """x^exponent: multiples of a quarter up to 4 by products and square roots, others as e^(exponent · log x).

    The relative error is below 1e-15 · (1 + |exponent · log x|).
    """
    quarters = exponent * 4
    if quarters == int(quarters) and abs(exponent) <= 4:
        whole, rest = divmod(abs(int(quarters)), 4)
        root = torch.sqrt(x)
        factors = [x] * whole + [root] * (rest // 2) + [torch.sqrt(root)] * (rest % 2)
        y = torch.ones_like(x)
        for factor in factors:
            y = y * factor
        return torch.ones_like(y) / y if exponent < 0 else y
    y = exp(log(x.abs()) * exponent)
    zero = math.inf if exponent < 0 else 0.0
    of_negative = math.nan if exponent != int(exponent) else -y if exponent % 2 else y
    y = torch.where(x < 0, of_negative, y)
    return torch.where(x == 0, zero, y)

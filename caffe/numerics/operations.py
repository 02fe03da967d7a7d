"""PyTorch's operations in reproducible arithmetic: those computed by us, those that round once on every machine, all others refused.

`Reproducible` is a dispatch mode: layers, autograd and solvers call PyTorch as always, and each operation that reaches its kernels
comes by here. Nothing of it depends on a layer's type.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from caffe.errors import Error
from caffe.numerics import convolution, elementary, pooling
from caffe.numerics.exact import as_integers, from_integers, product, rounded, settled, total

OURS: dict[str, Callable[..., Any]] = {}
"""Operations by name, without the `_` of those in place, and their implementations."""


def ours(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the implementation of operations."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        OURS.update(dict.fromkeys(names, function))
        return function

    return register


def in_double(x: Any) -> Any:
    """float32 numbers as float64; a number as it is."""
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def _like(value: Tensor, *sources: Any) -> Tensor:
    """float64 results as float32, unless one of the sources is a float64 array."""
    wide = any(isinstance(x, Tensor) and x.dtype == torch.float64 and x.dim() for x in sources)
    return value if wide else rounded(value)


# ---- element by element


def _binary(name: str, a: Any, b: Any, alpha: float = 1, **rounding: Any) -> Tensor:
    wide, other = in_double(a), in_double(b)
    if name in ("add", "sub", "rsub") and alpha != 1:
        wide, other = (wide * alpha, other) if name == "rsub" else (wide, other * alpha)
    if name == "div" and not isinstance(b, Tensor):
        other = torch.full([1] * a.dim(), float(b), dtype=torch.float64, device=a.device)
    result = getattr(torch, name)(wide, other, **rounding)
    return _like(result, a, b) if result.is_floating_point() else result


for _name in ("add", "sub", "rsub", "mul", "div"):
    OURS[_name] = functools.partial(_binary, _name)


@ours("addcmul")
def _addcmul(x: Tensor, a: Tensor, b: Tensor, value: float = 1) -> Tensor:
    return _like(in_double(x) + in_double(a) * in_double(b) * value, x)


@ours("addcdiv")
def _addcdiv(x: Tensor, a: Tensor, b: Tensor, value: float = 1) -> Tensor:
    return _like(in_double(x) + in_double(a) * value / in_double(b), x)


@ours("pow")
def _pow(x: Tensor, exponent: Any) -> Tensor:
    if isinstance(exponent, Tensor) or not isinstance(x, Tensor):
        raise _Refused
    if exponent == 2:
        wide = in_double(x)
        return _like(wide * wide, x)
    return _like(elementary.power(in_double(x), float(exponent)), x)


def _function(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: _like(function(in_double(x)), x)


OURS |= {
    "exp": _function(elementary.exp),
    "log": _function(elementary.log),
    "sqrt": _function(torch.sqrt),
    "rsqrt": _function(lambda x: torch.ones_like(x) / torch.sqrt(x)),
    "reciprocal": _function(lambda x: torch.ones_like(x) / x),
    "sigmoid": _function(elementary.sigmoid),
    "tanh": _function(elementary.tanh),
    "silu": _function(lambda x: x * elementary.sigmoid(x)),
}


@ours("sigmoid_backward")
def _sigmoid_backward(gradient: Tensor, y: Tensor) -> Tensor:
    g, y64 = in_double(gradient), in_double(y)
    return _like(g * ((1 - y64) * y64), gradient)


@ours("tanh_backward")
def _tanh_backward(gradient: Tensor, y: Tensor) -> Tensor:
    g, y64 = in_double(gradient), in_double(y)
    return _like(g * (1 - y64 * y64), gradient)


@ours("silu_backward")
def _silu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    wide = in_double(x)
    y = elementary.sigmoid(wide)
    return _like(in_double(gradient) * (y * (wide * (1 - y) + 1)), gradient)


@ours("softplus")
def _softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    wide = in_double(x) * beta
    y = (wide.clamp_min(0) + elementary.log1p(elementary.exp(-wide.abs()))) / torch.full([1] * x.dim(), float(beta)).to(wide)
    return _like(torch.where(wide > threshold, in_double(x), y), x)


@ours("softplus_backward")
def _softplus_backward(gradient: Tensor, x: Tensor, beta: float, threshold: float) -> Tensor:
    wide, g = in_double(x) * beta, in_double(gradient)
    return _like(torch.where(wide > threshold, g, g * elementary.sigmoid(wide)), gradient)


@ours("elu")
def _elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    wide = in_double(x)
    return _like(torch.where(wide > 0, wide * scale, elementary.expm1(wide * input_scale) * (alpha * scale)), x)


@ours("elu_backward")
def _elu_backward(gradient: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool, x: Tensor) -> Tensor:
    wide, g = in_double(x), in_double(gradient)
    slope = wide + alpha * scale if is_result else elementary.exp(wide * input_scale) * (alpha * scale)
    return _like(torch.where(wide > 0, g * scale, g * (slope * input_scale)), gradient)


@ours("leaky_relu")
def _leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    return _like(torch.where(x > 0, in_double(x), in_double(x) * negative_slope), x)


@ours("leaky_relu_backward")
def _leaky_relu_backward(gradient: Tensor, x: Tensor, negative_slope: float, is_result: bool) -> Tensor:
    return _like(torch.where(x > 0, in_double(gradient), in_double(gradient) * negative_slope), gradient)


@ours("_prelu_kernel")
def _prelu(x: Tensor, weight: Tensor) -> Tensor:
    return _like(torch.where(x > 0, in_double(x), in_double(x) * in_double(weight)), x)


@ours("_prelu_kernel_backward")
def _prelu_backward(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    wide, g = in_double(x), in_double(gradient)
    of_input = torch.where(wide > 0, g, g * in_double(weight))
    return _like(of_input, x), _like(torch.where(wide > 0, 0.0, g * wide), x)


# ---- sums


@ours("sum")
def _sum(x: Tensor, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    if not x.is_floating_point():
        return torch.sum(x, dim, keepdim, dtype=dtype) if dim is not None else torch.sum(x, dtype=dtype)
    sums = total(x, tuple(dim) if dim else tuple(range(x.dim())), keepdim) if x.dim() else x.double()
    return sums if dtype == torch.float64 else _like(sums, x)


@ours("mean")
def _mean(x: Tensor, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    axes = tuple(dim) if dim else tuple(range(x.dim()))
    count = math.prod(x.shape[axis] for axis in axes)
    sums = total(x, axes, keepdim) if x.dim() else x.double()
    return _like(sums / torch.full([1] * sums.dim(), float(count), dtype=torch.float64, device=x.device), x)


# ---- products


@ours("mm", "bmm")
def _product(a: Tensor, b: Tensor) -> Tensor:
    return product(a, b)


@ours("mv")
def _mv(a: Tensor, b: Tensor) -> Tensor:
    return product(a, b[:, None])[:, 0]


@ours("dot")
def _dot(a: Tensor, b: Tensor) -> Tensor:
    return product(a[None], b[:, None])[0, 0]


@ours("addmm", "baddbmm")
def _addmm(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return rounded(x.double() * beta + product(a, b).double() * alpha)


@ours("convolution")
def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, transposed: bool, output_padding: Any,
    groups: int,
) -> Tensor:
    g = _geometry(weight, stride, padding, dilation, groups)
    if transposed:
        axes = zip(x.shape[2:], g.kernel, g.stride, g.padding, g.dilation, output_padding, strict=True)
        size = [(n - 1) * s - 2 * p + d * (k - 1) + 1 + more for n, k, s, p, d, more in axes]
        y = convolution.input_gradient(g, x, weight, size)
    else:
        y = convolution.forward(g, x, weight)
    return y if bias is None else settled(y + bias.view(-1, *[1] * len(g.kernel)))


@ours("convolution_backward")
def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    g = _geometry(weight, stride, padding, dilation, groups)
    of_input = of_weight = of_bias = None
    if output_mask[0]:
        of_input = convolution.forward(g, gradient, weight) if transposed else convolution.input_gradient(g, gradient, weight, x.shape[2:])
    if output_mask[1]:
        pair = (x, gradient) if transposed else (gradient, x)
        of_weight = convolution.weight_gradient(g, *pair, weight.shape)
    if output_mask[2]:
        of_bias = rounded(total(gradient, (0, *range(2, gradient.dim()))))
    return of_input, of_weight, of_bias


def _geometry(weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> convolution.Geometry:
    axes = weight.dim() - 2
    each = (tuple(value) * axes if len(value) == 1 else tuple(value) for value in (stride, padding, dilation))
    return convolution.Geometry(tuple(weight.shape[2:]), *each, groups)


# ---- softmax


@ours("_softmax")
def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    wide = x.double()
    e = elementary.exp(wide - wide.amax(dim, keepdim=True))
    return rounded(e / total(e, dim, keepdim=True))


@ours("_log_softmax")
def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    wide = x.double()
    shifted = wide - wide.amax(dim, keepdim=True)
    return rounded(shifted - elementary.log(total(elementary.exp(shifted), dim, keepdim=True)))


@ours("_softmax_backward_data")
def _softmax_backward(gradient: Tensor, y: Tensor, dim: int, input_dtype: torch.dtype) -> Tensor:
    g, y64 = gradient.double(), y.double()
    return rounded(y64 * (g - total(g * y64, dim, keepdim=True)))


@ours("_log_softmax_backward_data")
def _log_softmax_backward(gradient: Tensor, y: Tensor, dim: int, input_dtype: torch.dtype) -> Tensor:
    g = gradient.double()
    return rounded(g - elementary.exp(y.double()) * total(g, dim, keepdim=True))


# ---- batch normalisation


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.double().view(1, -1, *[1] * (x.dim() - 2))


@ours("native_batch_norm")
def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None, training: bool,
    momentum: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    axes, count = (0, *range(2, x.dim())), x.numel() // x.shape[1]
    wide = x.double()
    if training:
        n = torch.full((1,), float(count), dtype=torch.float64, device=x.device)
        mean = total(wide, axes) / n
        centred = wide - _by_channel(mean, x)
        variance = total(centred * centred, axes) / n
        for running, value in ((running_mean, mean), (running_var, variance * (count / max(count - 1, 1)))):
            if running is not None:
                running.copy_(rounded(running.double() * (1 - momentum) + value * momentum))
    else:
        assert running_mean is not None and running_var is not None
        mean, variance = running_mean.double(), running_var.double()
        centred = wide - _by_channel(mean, x)
    scale = torch.ones_like(variance) / torch.sqrt(variance + eps)
    y = centred * _by_channel(scale, x)
    if weight is not None:
        y = y * _by_channel(weight, x)
    if bias is not None:
        y = y + _by_channel(bias, x)
    saved = (rounded(mean), rounded(scale)) if training else (x.new_empty(0), x.new_empty(0))
    return rounded(y), *saved


@ours("native_batch_norm_backward")
def _batch_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    save_mean: Tensor | None, save_invstd: Tensor | None, train: bool, eps: float, output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    axes, count = (0, *range(2, x.dim())), x.numel() // x.shape[1]
    if train:
        mean, scale = save_mean.double(), save_invstd.double()
    else:
        mean = running_mean.double()
        scale = torch.ones_like(mean) / torch.sqrt(running_var.double() + eps)
    g = gradient.double()
    normal = (x.double() - _by_channel(mean, x)) * _by_channel(scale, x)
    of_bias, of_weight = total(g, axes), total(g * normal, axes)
    factor = scale if weight is None else scale * weight.double()
    if train:
        n = torch.full((1,), float(count), dtype=torch.float64, device=x.device)
        g = g - _by_channel(of_bias / n, x) - normal * _by_channel(of_weight / n, x)
    of_input = rounded(g * _by_channel(factor, x)) if output_mask[0] else None
    return of_input, rounded(of_weight) if output_mask[1] else None, rounded(of_bias) if output_mask[2] else None


# ---- scattered sums


def _added(x: Tensor, source: Tensor, add: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """x plus sums of a source's numbers at some places, which `add(target, source)` adds: as integers, exact in any order.

    Error: 2^-62 of the source's number of values times its largest magnitude.
    """
    if not source.numel():
        return x.clone()
    whole, unit = as_integers(source, tuple(range(source.dim())), source.numel())
    sums = from_integers(add(torch.zeros(x.shape, dtype=torch.int64, device=x.device), whole), unit.reshape(()))
    return _like(in_double(x) + sums, x)


@ours("scatter_add")
def _scatter_add(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    return _added(x, source, lambda target, whole: target.scatter_add(dim, index, whole))


@ours("index_add")
def _index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    source = source if alpha == 1 else _binary("mul", source, alpha)
    return _added(x, source, lambda target, whole: target.index_add(dim, index, whole))


@ours("index_put")
def _index_put(x: Tensor, indices: Any, values: Tensor, accumulate: bool = False) -> Tensor:
    if not accumulate:
        return torch.index_put(x, indices, values)
    return _added(x, values, lambda target, whole: torch.index_put(target, indices, whole, True))


@ours("embedding_dense_backward")
def _embedding_backward(gradient: Tensor, indices: Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool) -> Tensor:
    if scale_grad_by_freq or padding_idx >= 0:
        raise _Refused
    rows = gradient.reshape(-1, gradient.shape[-1])
    return _index_add(gradient.new_zeros(num_weights, gradient.shape[-1]), 0, indices.reshape(-1), rows)


@ours("col2im")
def _col2im(x: Tensor, output_size: Any, kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> Tensor:
    g = convolution.Geometry(*map(tuple, (kernel_size, stride, padding, dilation)), 1)
    images = x if x.dim() == 3 else x[None]
    y = rounded(g.fold(images.double().movedim(0, 1), len(images), output_size))
    return y if x.dim() == 3 else y[0]


@ours("scatter")
def _scatter(x: Tensor, dim: int, index: Tensor, source: Any, *, reduce: str | None = None) -> Tensor:
    if reduce is None:
        return torch.scatter(x, dim, index, source)
    if reduce != "add":
        raise _Refused
    source = source if isinstance(source, Tensor) else torch.full(index.shape, float(source), device=x.device)
    return _scatter_add(x, dim, index, source)


# ---- pooling

OURS |= {
    "avg_pool2d": pooling.mean,
    "avg_pool2d_backward": pooling.mean_backward,
    "max_pool2d_with_indices_backward": pooling.maximum_backward,
}

# ---- as they are

EXACT_ANYWHERE = frozenset(
    ["_local_scalar_dense", "_reshape_alias", "_to_copy", "_unsafe_view", "abs", "alias", "amax", "amin", "arange", "argmax", "argmin", "as_strided", "bitwise_and", "bitwise_not", "bitwise_or", "cat", "ceil", "clamp", "clamp_max", "clamp_min", "clone", "constant_pad_nd", "copy", "detach", "empty", "empty_like", "empty_strided", "eq", "equal", "expand", "fill", "flip", "floor", "full", "full_like", "gather", "ge", "gt", "index", "index_select", "is_nonzero", "isfinite", "isinf", "isnan", "le", "lift_fresh", "im2col", "embedding", "logical_and", "logical_not", "logical_or", "lt", "masked_fill", "masked_select", "max", "max_pool2d_with_indices", "maximum", "min", "minimum", "ne", "neg", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros", "nonzero", "ones", "ones_like", "permute", "relu", "repeat", "round", "scalar_tensor", "select", "select_backward", "sgn", "sign", "slice", "slice_backward", "sort", "split", "split_with_sizes", "squeeze", "stack", "t", "threshold_backward", "topk", "transpose", "trunc", "unbind", "unfold", "unsqueeze", "view", "where", "zero", "zeros", "zeros_like"]
)
"""Operations that copy, compare or choose, and round nothing."""


class NotReproducibleError(Error):
    """An operation that has no implementation whose result is the same on every machine."""


class _Refused(Exception):
    pass


class Reproducible(TorchDispatchMode):
    """While it is active, in this thread and in the backward passes that it begins, PyTorch computes reproducibly."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        base = name.removesuffix("_") if not name.startswith("__") else name
        if base.startswith("_foreach_"):
            return _each(func, base.removeprefix("_foreach_"), name.endswith("_"), args, kwargs)
        if base in EXACT_ANYWHERE or _is_of_integers(args):
            return func(*args, **kwargs)
        if base not in OURS:
            raise self._refused(func)
        try:
            result = OURS[base](*args, **kwargs)
        except _Refused:
            raise self._refused(func) from None
        return args[0].copy_(result) if name.endswith("_") else result

    @staticmethod
    def _refused(func: Any) -> NotReproducibleError:
        return NotReproducibleError("numerics: reproducible", f"PyTorch's {func} is not the same on every machine", do="use numerics: fp32")


def _is_of_integers(args: tuple[Any, ...]) -> bool:
    """Whether an operation takes arrays of integers, or truth values, only."""
    arrays = [arg for arg in args if isinstance(arg, Tensor)]
    return bool(arrays) and not any(array.is_floating_point() for array in arrays)


def _each(func: Any, base: str, in_place: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation on lists of tensors, tensor by tensor."""
    count = len(args[0])
    results = []
    for index in range(count):
        mine = [arg[index] if isinstance(arg, (list, tuple)) else arg for arg in args]
        result = mine[0].sign() if base == "sign" else OURS[base](*mine, **kwargs)
        results.append(mine[0].copy_(result) if in_place else result)
    return None if in_place else results

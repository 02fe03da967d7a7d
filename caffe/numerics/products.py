"""PyTorch's matrix products and convolutions, by exact partial sums."""

from collections.abc import Sequence

from torch import Tensor

from caffe.numerics import convolution
from caffe.numerics.convolution import Geometry
from caffe.numerics.exact import product, rounded, settled, total
from caffe.numerics.registry import in_double, ours


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
    y = product(a, b).double() * alpha
    return rounded(in_double(x) * beta + y if beta else y)  # as in PyTorch, NaN in x does not count then


@ours("convolution")
def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    transposed: bool, output_padding: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    g = Geometry.of(weight, stride, padding, dilation, groups=groups)
    if transposed:
        axes = zip(x.shape[2:], g.kernel, g.stride, g.padding, g.dilation, output_padding, strict=True)
        size = [(n - 1) * s - 2 * p + d * (k - 1) + 1 + more for n, k, s, p, d, more in axes]
        y = convolution.input_gradient(g, x, weight, size)
        return y if bias is None else settled(y + bias.view(-1, *[1] * len(g.kernel)))
    return convolution.forward(g, x, weight, bias)


@ours("convolution_backward")
def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias_sizes: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int, output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    g = Geometry.of(weight, stride, padding, dilation, groups=groups)
    of_input = of_weight = of_bias = None
    if output_mask[0] and transposed:
        of_input = convolution.forward(g, gradient, weight)
    elif output_mask[0]:
        of_input = convolution.input_gradient(g, gradient, weight, x.shape[2:])
    if output_mask[1]:
        pair = (x, gradient) if transposed else (gradient, x)
        of_weight = convolution.weight_gradient(g, *pair, weight.shape)
    if output_mask[2]:
        of_bias = rounded(total(gradient, (0, *range(2, gradient.dim()))))
    return of_input, of_weight, of_bias

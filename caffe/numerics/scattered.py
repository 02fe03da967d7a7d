"""PyTorch's sums at places that indices give, where the order of terms is up to the device: added as integers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from caffe.numerics.convolution import Geometry
from caffe.numerics.elementwise import binary
from caffe.numerics.exact import added, rounded
from caffe.numerics.registry import RefusedError, in_double, like, ours


def _added(x: Tensor, source: Tensor, add: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """x plus sums of a source's numbers at some places, which `add(target, source)` adds, in any order."""
    if not source.numel():
        return x.clone()

    def add_to_zeros(terms: Tensor) -> Tensor:
        return add(torch.zeros(x.shape, dtype=terms.dtype, device=x.device), terms)

    return like(in_double(x) + added(source, tuple(range(source.dim())), source.numel(), add_to_zeros, twice=True), x)


@ours("scatter_add")
def _scatter_add(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    return _added(x, source, lambda target, terms: target.scatter_add(dim, index, terms))


@ours("index_add")
def _index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    source = source if alpha == 1 else binary("mul", source, alpha)
    return _added(x, source, lambda target, terms: target.index_add(dim, index, terms))


@ours("index_put")
def _index_put(x: Tensor, indices: Any, values: Tensor, accumulate: bool = False) -> Tensor:
    aten: Any = torch.ops.aten  # whose indices may be None: a whole axis
    if not accumulate:
        result: Tensor = aten.index_put(x, indices, values)
        return result
    values = values.expand(aten.index(x, indices).shape)
    return _added(x, values, lambda target, terms: aten.index_put(target, indices, terms, True))


@ours("unfold_backward")
def _unfold_backward(gradient: Tensor, input_sizes: Any, dim: int, size: int, step: int) -> Tensor:
    places = torch.arange(gradient.shape[dim], device=gradient.device)[:, None] * step
    index = (places + torch.arange(size, device=gradient.device)).reshape(-1)
    windows = gradient.movedim(-1, dim % len(input_sizes) + 1).flatten(dim % len(input_sizes), dim % len(input_sizes) + 1)
    return _index_add(gradient.new_zeros(input_sizes), dim, index, windows)


@ours("embedding_dense_backward")
def _embedding_backward(
    gradient: Tensor, indices: Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> Tensor:
    if scale_grad_by_freq or padding_idx >= 0:
        raise RefusedError
    rows = gradient.reshape(-1, gradient.shape[-1])
    return _index_add(gradient.new_zeros(num_weights, gradient.shape[-1]), 0, indices.reshape(-1), rows)


@ours("col2im")
def _col2im(x: Tensor, output_size: Any, kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> Tensor:
    g = Geometry(tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation), 1)
    images = x if x.dim() == 3 else x[None]
    y = rounded(g.fold(in_double(images).movedim(0, 1), len(images), output_size))
    return y if x.dim() == 3 else y[0]


@ours("scatter")
def _scatter(x: Tensor, dim: int, index: Tensor, source: Any, *, reduce: str | None = None) -> Tensor:
    if reduce is None:
        return torch.scatter(x, dim, index, source)
    if reduce != "add":
        raise RefusedError
    source = source if isinstance(source, Tensor) else torch.full(index.shape, float(source), device=x.device)
    return _scatter_add(x, dim, index, source)

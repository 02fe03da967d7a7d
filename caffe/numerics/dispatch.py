"""PyTorch in reproducible arithmetic: operations that are ours, those that are the same on every machine, all others refused.

`Reproducible` is a dispatch mode: layers, autograd and solvers call PyTorch as always, and each operation that reaches a kernel
comes by here. Nothing depends on a layer's type.
"""

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.utils._python_dispatch import TorchDispatchMode

from caffe.errors import Error
from caffe.numerics.exact import settled
from caffe.numerics.registry import OURS, RefusedError

for _module in ("chosen", "elementwise", "products", "reductions", "scattered", "pooling", "resampling"):
    importlib.import_module(f"caffe.numerics.{_module}")  # they register their operations

EXACT_ANYWHERE = frozenset(
    """
    _local_scalar_dense _pin_memory _reshape_alias _to_copy _unsafe_view abs alias all amax amin any argmax argmin as_strided
    bitwise_and bitwise_not bitwise_or cat ceil clamp clamp_max clamp_min clone constant_pad_nd copy detach diagonal
    embedding empty empty_like empty_strided eq equal expand fill flip floor fmod frexp full full_like gather ge gt
    hardshrink hardshrink_backward hardtanh hardtanh_backward im2col index index_fill index_select is_nonzero
    is_pinned isfinite isin isinf isnan le lift_fresh logical_and logical_not logical_or lt masked_fill masked_scatter
    masked_select max max_pool2d_with_indices min nan_to_num ne new_empty new_empty_strided new_full new_ones
    new_zeros nonzero ones ones_like permute record_stream reflection_pad2d relu repeat roll scalar_tensor select select_backward
    sgn sign slice slice_backward split split_with_sizes squeeze stack t take threshold_backward transpose tril
    triu trunc unbind unfold unsqueeze upsample_nearest2d view where zero zeros zeros_like
    """.split()  # noqa: SIM905, it is a page otherwise
)
"""Operations that copy, compare or choose, and round nothing."""
NAMES = {"norm": "linalg_vector_norm"}
"""What operations on lists call other than those on one tensor."""


class NotReproducibleError(Error):
    """An operation that has no implementation whose result is the same on every machine."""


class Reproducible(TorchDispatchMode):  # type: ignore[no-untyped-call] # PyTorch lacks the types
    """While it is active, in this thread and in the backward passes that it begins, PyTorch computes reproducibly."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False, as nothing here is compiled: to hide the mode from its compiler, PyTorch would import that compiler at the first
        operation, which takes half as long as the import of PyTorch itself, and call it at each."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        base = name.removesuffix("_") if not name.startswith("__") else name
        try:
            if base.startswith("_foreach_"):
                return _each(base.removeprefix("_foreach_"), name.endswith("_"), args, kwargs)
            if func.namespace == "c10d":  # processes exchange tensors
                return func(*args, **kwargs)
            result = _one(base, func, args, kwargs)
        except RefusedError:
            found = f"PyTorch's {func} is not the same on every machine"
            raise NotReproducibleError("numerics: reproducible", found, do="use numerics: fp32") from None
        return _put(args[0], result) if name.endswith("_") and result is not args[0] else result


def _one(base: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an operation, by `func` if that is the same everywhere; raises RefusedError."""
    if base in EXACT_ANYWHERE:
        result = func(*args, **kwargs)
        return settled(result) if base == "_to_copy" and _narrows(args[0], result) else result
    arrays = [arg for arg in args if isinstance(arg, Tensor)]
    if base not in ("sort", "topk") and arrays and not any(array.is_floating_point() for array in arrays):
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        args = tuple(arg.float() if isinstance(arg, Tensor) else arg for arg in args)  # a quotient, exp, …
    if base not in OURS or "out" in kwargs or any(array.dtype in (torch.float16, torch.bfloat16) for array in arrays):
        raise RefusedError
    result = OURS[base](*args, **kwargs)
    first = result[0] if isinstance(result, tuple) else result
    if first is not None and first.dtype == torch.float32 and any(a.dtype == torch.float64 and a.dim() for a in arrays):
        raise RefusedError  # an implementation for float32 alone
    return result


def _put(target: Tensor, result: Any) -> Tensor:
    """Overwrite a tensor by the result of an operation in place."""
    return target.copy_(settled(result.float()) if _narrows(result, target) else result)


def _narrows(source: Tensor, result: Tensor) -> bool:
    """Whether a copy rounds: some processors flush subnormal results, others do not."""
    return source.dtype == torch.float64 and result.dtype == torch.float32


def _each(base: str, in_place: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation on lists of tensors, tensor by tensor."""
    base = NAMES.get(base, base)
    func = getattr(torch.ops.aten, base)
    results = []
    for index in range(len(args[0])):
        mine = tuple(arg[index] if isinstance(arg, (list, tuple)) else arg for arg in args)
        result = _one(base, func, mine, kwargs)
        results.append(_put(mine[0], result) if in_place else result)
    if in_place:
        increment_version(args[0])  # which PyTorch leaves to the kernels of operations on lists
        return None
    return results

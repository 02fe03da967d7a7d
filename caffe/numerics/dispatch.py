"""PyTorch in reproducible arithmetic: operations that are ours, those that are the same on every machine, all others refused.

`Reproducible` is a dispatch mode: layers, autograd and solvers call PyTorch as always, and each operation that reaches a kernel
comes by here. Nothing depends on a layer's type.
"""

import importlib
from typing import Any

from torch import Tensor
from torch.autograd.graph import increment_version
from torch.utils._python_dispatch import TorchDispatchMode

from caffe.errors import Error
from caffe.numerics.registry import OURS, RefusedError

for _module in ("elementwise", "products", "reductions", "scattered", "pooling", "resampling"):
    importlib.import_module(f"caffe.numerics.{_module}")  # they register their operations

EXACT_ANYWHERE = frozenset(
    """
    _local_scalar_dense _reshape_alias _to_copy _unsafe_view abs alias all amax amin any arange argmax argmin as_strided
    bitwise_and bitwise_not bitwise_or cat ceil clamp clamp_max clamp_min clone constant_pad_nd copy detach diagonal
    embedding empty empty_like empty_strided eq equal expand fill flip floor fmod frexp full full_like gather ge gt
    hardshrink hardshrink_backward hardtanh hardtanh_backward im2col index index_copy index_fill index_select is_nonzero
    isfinite isin isinf isnan le lift_fresh logical_and logical_not logical_or lt masked_fill masked_scatter masked_select
    max max_pool2d_with_indices maximum min minimum nan_to_num ne neg new_empty new_empty_strided new_full new_ones
    new_zeros nonzero ones ones_like permute reflection_pad2d relu repeat roll round scalar_tensor select select_backward
    sgn sign slice slice_backward sort split split_with_sizes squeeze stack t take threshold_backward topk transpose tril
    triu trunc unbind unfold unsqueeze upsample_nearest2d view where zero zeros zeros_like
    """.split()  # noqa: SIM905, it is a page otherwise
)
"""Operations that copy, compare or choose, and round nothing."""


class NotReproducibleError(Error):
    """An operation that has no implementation whose result is the same on every machine."""


class Reproducible(TorchDispatchMode):  # type: ignore[no-untyped-call] # PyTorch lacks the types
    """While it is active, in this thread and in the backward passes that it begins, PyTorch computes reproducibly."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        base = name.removesuffix("_") if not name.startswith("__") else name
        if base.startswith("_foreach_"):
            return _each(func, base.removeprefix("_foreach_"), name.endswith("_"), args, kwargs)
        if base in EXACT_ANYWHERE or func.namespace == "c10d" or _is_of_integers(args):  # c10d: processes exchange tensors
            return func(*args, **kwargs)
        if base not in OURS:
            raise self._refused(func)
        try:
            result = OURS[base](*args, **kwargs)
        except RefusedError:
            raise self._refused(func) from None
        return args[0].copy_(result) if name.endswith("_") else result

    @staticmethod
    def _refused(func: Any) -> NotReproducibleError:
        found = f"PyTorch's {func} is not the same on every machine"
        return NotReproducibleError("numerics: reproducible", found, do="use numerics: fp32")


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
    if in_place:
        increment_version(args[0])  # which PyTorch leaves to the kernels of operations on lists
        return None
    return results

"""Numerics, a choice between exactness and speed that holds while nets compute: `reproducible`, `fp32` or `fast`."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import backends
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from caffe.numerics.dispatch import Reproducible

_SMALLEST = sys.float_info.min
_ON_GPU: tuple[Any, ...] = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)  # type: ignore[attr-defined] # made at run time
_ON_CPU: tuple[Any, ...] = tuple(getattr(backends.mkldnn, name) for name in ("matmul", "conv"))
"""What PyTorch may compute with fewer bits than float32 has: as TF32 on GPUs, as bfloat16 on processors that have it."""
_filling: Any = torch.utils.deterministic
_active = threading.local()


def is_computing() -> bool:
    """Whether this thread is in a scope already, its own or that of the pass whose gradients it computes."""
    return getattr(_active, "is_inside", False) or any(
        isinstance(each, Reproducible) for each in _get_current_dispatch_mode_stack()
    )


class computing:
    """A block in which PyTorch computes in one of NUMERICS; nothing changes within another one.

    Numbers below 1.2e-38 are taken as 0. Softmax probabilities of well separated classes and the histories of dead units become
    such numbers, for which processors take a hundred times longer: from some initial weights, LeNet trained ten times slower
    than from others.
    """

    def __init__(self, numerics: str):
        self._numerics = numerics
        self._is_inside = False
        self._stack: contextlib.ExitStack | None = None

    def __enter__(self) -> None:
        self._is_inside = is_computing()
        if self._is_inside:
            return
        self._flushed = _SMALLEST * 0.5 == 0.0
        _active.is_inside = True
        torch.set_flush_denormal(True)
        try:
            if self._numerics != "fp32" or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                self._stack = contextlib.ExitStack()
                if self._numerics == "reproducible":
                    self._stack.enter_context(Reproducible())  # type: ignore[no-untyped-call] # PyTorch lacks the types
                self._stack.enter_context(_settings(self._numerics))
        except BaseException:
            self._leave()
            raise

    def __exit__(self, *error: Any) -> None:
        if not self._is_inside:
            self._leave()

    def _leave(self) -> None:
        try:
            if self._stack is not None:
                self._stack.close()
        finally:
            torch.set_flush_denormal(self._flushed)
            _active.is_inside = False


@contextlib.contextmanager
def _settings(numerics: str) -> Iterator[None]:
    """Full precision and deterministic algorithms, or what is fastest."""
    fast = numerics == "fast"
    has_cudnn = backends.cudnn.enabled
    precisions = [each.fp32_precision for each in _ON_GPU + _ON_CPU]
    algorithms = backends.cudnn.benchmark, backends.cudnn.deterministic
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = _filling.fill_uninitialized_memory  # which would write all memory twice
    _filling.fill_uninitialized_memory = False
    older = _older_settings()
    if older is not None:
        _allow_tf32(fast, fast)
    for names, name in ((_ON_GPU, "tf32"), (_ON_CPU, "bf16")):
        for each in names:
            each.fp32_precision = name if fast else "ieee"
    backends.cudnn.benchmark, backends.cudnn.deterministic = fast, not fast
    backends.cudnn.enabled = has_cudnn and numerics != "reproducible"  # whose batch_norm would be cuDNN's
    _set_deterministic(not fast, True)
    try:
        yield
    finally:
        if older is not None:
            _allow_tf32(*older)
        for each, precision in zip(_ON_GPU + _ON_CPU, precisions, strict=True):
            each.fp32_precision = precision
        backends.cudnn.benchmark, backends.cudnn.deterministic = algorithms
        backends.cudnn.enabled = has_cudnn
        _set_deterministic(*deterministic)
        _filling.fill_uninitialized_memory = filled


def _older_settings() -> tuple[bool, bool] | None:
    """Whether cuDNN and cuBLAS may use TF32, by PyTorch's older settings; None if a user has set others by the newer ones."""
    try:
        return torch._C._get_cudnn_allow_tf32(), torch._C._get_cublas_allow_tf32()
    except RuntimeError:
        return None


def _allow_tf32(cudnn: bool, cublas: bool) -> None:
    """The older settings, which say the same: PyTorch refuses to read them if they contradict the newer."""
    torch._C._set_cudnn_allow_tf32(cudnn)
    torch._C._set_cublas_allow_tf32(cublas)


def _set_deterministic(enabled: bool, warn_only: bool) -> None:
    """torch.use_deterministic_algorithms, which takes 3 ms, as it also sets the compiler's options."""
    torch._C._set_deterministic_algorithms(enabled, warn_only=warn_only)

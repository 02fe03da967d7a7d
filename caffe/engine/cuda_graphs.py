"""Operations captured as a CUDA graph, which a GPU repeats as one without Python: what all users of graphs share."""

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from caffe.errors import Error

FIRST = 3
"""How often something is computed before it is captured: cuDNN chooses its algorithms, and memory is known to suffice."""
TRIES = 5
"""How often it is captured, if parameters move or other things change: up to five times until a layout is chosen."""
WORTH = 100
"""Replays after which it may be captured as often again: they have saved more time than that takes."""
LARGEST_SHARE = 1 / 3
"""Part of a GPU's memory that a process may take to capture something: a graph keeps its memory when it does not run."""
SWITCH = "CAFFE_CUDA_GRAPHS"
"""Environment variable; 0 turns this off."""

_WAITING = frozenset(
    "_local_scalar_dense _unique2 bincount equal is_nonzero masked_select nonzero unique_consecutive unique_dim".split()  # noqa: SIM905
)
"""Operations whose result the host has to wait for."""

failed: dict[torch.device, object] = {}
"""GPUs on which a capture has failed, and the graph: PyTorch's allocator still asks it what it captures."""


def are_used(device: torch.device) -> bool:
    """Whether graphs are captured on a device at all."""
    return device.type == "cuda" and os.environ.get(SWITCH) != "0"


def may_capture(device: torch.device) -> bool:
    """Whether a graph may be captured now: none has failed on the GPU, and the process has used a small part of its memory."""
    return device not in failed and has_room(device)


def has_room(device: torch.device) -> bool:
    """Whether the process has used a small part of a GPU's memory."""
    return torch.cuda.max_memory_allocated(device) < LARGEST_SHARE * torch.cuda.get_device_properties(device).total_memory


@contextlib.contextmanager
def captured_in(graph: torch.cuda.CUDAGraph, device: torch.device) -> Iterator[None]:
    """A block whose operations a graph repeats.

    It has its own memory: that of tensors which live on between the graphs is then not used again by the second. Other threads
    may allocate memory meanwhile, as those that read ahead do.
    """
    pool = torch.cuda.graph_pool_handle()
    capture = torch.cuda.graph(graph, pool=pool, stream=_stream(device), capture_error_mode="thread_local")
    try:
        # PyTorch leaves the capture's stream as the current one, if a capture ends by an error.
        with torch.cuda.stream(torch.cuda.current_stream(device)), capture:
            yield
    except BaseException:
        failed[device] = graph
        _free(graph, device, pool)
        raise


def _free(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any) -> None:
    """Free the memory of a capture that has ended by an error, which may have left PyTorch's allocator in it."""
    with contextlib.suppress(AttributeError, RuntimeError, TypeError):
        torch._C._cuda_endAllocateToPool(device.index, pool)  # RuntimeError if it was not left there
        torch._C._cuda_releasePool(device.index, pool)
    with contextlib.suppress(RuntimeError):
        graph.reset()


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream in which a GPU's graphs are captured; PyTorch's own is of the first GPU that captures."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call] # PyTorch lacks the types
    """Raises RuntimeError for operations that wait for the GPU: in a capture, they would leave PyTorch's allocator in its memory.

    CUDA's own check is of the whole process, with the threads that read ahead.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if any(each.is_cuda for each in given):
            copies = name in ("copy_", "_to_copy") and not _is_late(args, kwargs)
            chooses = name.strip("_").startswith("index") and any(each.dtype in (torch.bool, torch.uint8) for each in given[1:])
            if name in _WAITING or chooses or copies:
                raise RuntimeError(f"{name} waits for the GPU")
        return func(*args, **kwargs)


def _is_late(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a copy stays on its device, or is not waited for."""
    source = args[1] if len(args) > 1 else args[0]
    target = args[0].device if len(args) > 1 else torch.device(kwargs.get("device") or source.device)
    return target.type == source.device.type or bool(kwargs.get("non_blocking") or args[2:3] == (True,))


def reason(error: BaseException) -> str:
    """Why something was not captured: the error that names a layer, if there is one among those that led to each other."""
    chain = [error]
    while chain[-1].__context__ is not None:
        chain.append(chain[-1].__context__)
    named = next((each for each in chain if isinstance(each, Error)), chain[-1])
    return (str(named) or type(named).__name__).splitlines()[0]

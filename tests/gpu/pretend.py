"""A pretend CUDA device on a CPU build of PyTorch: the CPU's arithmetic, and CUDA's rules about which tensors meet.

    with pretend.gpus(2):
        caffe.set_mode_gpu()
        …

Each storage carries the device that it pretends to be on. As with CUDA, an operation on tensors of different devices raises
RuntimeError, and NumPy reads no tensor of a GPU. Copies between host and device are counted by direction. A CUDA graph repeats
the operations that were captured on their memory, and nothing else; capturing computes nothing, and waiting is then an error. An
operation of a stream on what another has written, without having waited for it, is an error, too. What this cannot show: kernels,
their times and their roundings, the memory of a card, NCCL.
"""

import contextlib
import functools
import runpy
import sys
import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.autograd
from torch import Tensor
from torch._decomp.decompositions import _upsample_linear_vec as _decomposed
from torch.autograd.graph import increment_version
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves

from caffe.engine import cuda_graphs
from caffe.numerics.dispatch import Reproducible

CPU = torch.device("cpu")
COPIES = {"copy_", "_to_copy", "copy"}
"""Operations that may have operands on two devices."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
"""Operations whose indices may be on the host."""
GROUPING = ("stack", "cat", "_foreach", "batch_norm", "convolution", "mm", "scatter", "gather", "index_add")
"""Operations that take not even a single number from the host."""

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim", "bincount"}
"""Operations whose result the host has to wait for."""

copied: Counter[str] = Counter()
"""Number of copies, "to host" and "to device"."""
waited: Counter[str] = Counter()
"""Number of operations for which the host would wait until the GPU has done all that it was given."""
_tags: dict[int, "_Tag"] = {}
_pruning = threading.Lock()
_pools: list[object] = []
"""Memory of graphs."""
_local = threading.local()
_device_of = torch.Tensor.device.__get__  # type: ignore[attr-defined]
_is_cuda = torch.Tensor.is_cuda.__get__  # type: ignore[attr-defined]
_is_cpu = torch.Tensor.is_cpu.__get__  # type: ignore[attr-defined]


class Stream:
    """A CUDA stream: counts its operations, and knows up to which operation of each other stream it has waited."""

    def __init__(self, device: Any = None) -> None:
        self.count = 0
        self.seen: dict[Stream, int] = {}

    def wait_event(self, event: "Event") -> None:
        """Order what follows after what the event has recorded."""
        for stream, count in event.seen.items():
            self.seen[stream] = max(count, self.seen.get(stream, 0))

    def wait_stream(self, stream: "Stream") -> None:
        """Order what follows after all that another stream was given."""
        event = Event()
        event.record(stream)
        self.wait_event(event)

    def has_seen(self, stream: "Stream", count: int) -> bool:
        """Whether what follows is ordered after an operation of a stream."""
        return stream is self or self.seen.get(stream, 0) >= count


class Event:
    """A CUDA event: what a stream has done, and has waited for, when it was recorded."""

    def __init__(self, **_: Any) -> None:
        self.seen: dict[Stream, int] = {}
        self.time = 0.0

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or current_stream()
        self.seen = {**stream.seen, stream: stream.count}
        self.time = time.perf_counter()

    def elapsed_time(self, later: "Event") -> float:
        """Milliseconds until another."""
        return (later.time - self.time) * 1000

    def synchronize(self) -> None:
        pass


DEFAULT = Stream()
"""The stream of threads that choose none."""


def current_stream(device: Any = None) -> Stream:
    return getattr(_local, "stream", None) or DEFAULT


@dataclass
class _Tag:
    """What is known of a storage on a GPU: the stream that has allocated it, others that use it, and who has written it last."""

    reference: StorageWeakRef
    device: torch.device
    home: Stream
    written: tuple[Stream, int]
    used_in: set[Stream] = field(default_factory=set)


def _tag(tensor: Tensor) -> _Tag | None:
    tag = _tags.get(tensor.untyped_storage()._cdata)
    return tag if tag and not tag.reference.expired() else None


def device_of(tensor: Tensor) -> torch.device:
    """Where a tensor pretends to be."""
    tag = _tag(tensor)
    return tag.device if tag else CPU


def _order(func: Any, args: tuple[Any, ...], given: list[Tensor]) -> None:
    """Check that the current stream has waited for what it reads or overwrites, and note what it writes."""
    stream = current_stream()
    stream.count += 1
    for tag in filter(None, map(_tag, given)):
        if not stream.has_seen(*tag.written):
            raise RuntimeError(f"{func} uses a tensor that another stream has written, and has not waited for it")
        if tag.home is not DEFAULT and tag.home is not stream and stream not in tag.used_in:
            raise RuntimeError(f"{func} uses memory of another stream, which may use it again: record_stream is missing")
    for tag in filter(None, map(_tag, _written(func, args))):
        tag.written = stream, stream.count


def _written(func: Any, args: tuple[Any, ...]) -> list[Tensor]:
    """The tensors that an operation changes in place."""
    pairs = zip(func._schema.arguments, args, strict=False)
    return _tensors([value for argument, value in pairs if argument.alias_info is not None and argument.alias_info.is_write])


def _place(tensor: Tensor, device: torch.device) -> Tensor:
    storage = tensor.untyped_storage()
    _tags.pop(storage._cdata, None)
    if device.type == "cuda":
        if len(_tags) > 20_000:
            with _pruning:  # what one thread drops may at once be another's new storage
                for key in [key for key, tag in _tags.copy().items() if tag.reference.expired()]:
                    del _tags[key]
        stream = current_stream()
        _tags[storage._cdata] = _Tag(StorageWeakRef(storage), device, stream, (stream, stream.count))
    return tensor


def _tensors(*values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _device(value: Any) -> torch.device | None:
    """A device given as text, number or torch.device; None for other values."""
    if isinstance(value, bool) or not isinstance(value, (int, str, torch.device)):
        return None
    try:
        device = torch.device("cuda", value) if isinstance(value, int) else torch.device(value)
    except RuntimeError:  # text that is no device
        return None
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


class Graph:
    """A CUDA graph: the operations that were captured, with the tensors that they read and write."""

    def __init__(self) -> None:
        self._operations: list[tuple[Callable[[], Any], list[Tensor]]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._made: set[int] = set()

    @contextlib.contextmanager
    def captured(self, pool: object = None) -> Iterator[None]:
        """Capture the operations of this thread in a block."""
        if pool in _pools:
            raise NotImplementedError("graphs that share memory: which of it the second uses again is not known here")
        _pools.append(pool)
        try:
            with _set(graph=self):
                yield
        except RuntimeError as error:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture") from error
        with _below_autograd():
            for tensor, values in self._before.values():
                tensor.copy_(values)
            for _, results in self._operations:
                for result in results:
                    result.fill_(float("nan") if result.is_floating_point() else 0)
        self._before.clear()

    def note_given(self, func: Any, args: tuple[Any, ...]) -> None:
        """Keep the values that an operation is about to change, which capturing leaves as they are."""
        for tensor in _written(func, args):
            key = tensor.untyped_storage()._cdata
            if key not in self._made and key not in self._before:
                whole = torch.as_strided(tensor, (tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0)
                self._before[key] = whole, whole.clone()

    def note(self, operation: Callable[[], Any], results: list[Tensor]) -> None:
        """Capture an operation, and those of its results whose memory it has made."""
        self._made.update(result.untyped_storage()._cdata for result in results)
        self._operations.append((operation, results))

    def reset(self) -> None:
        """Free the memory."""
        self._operations.clear()

    def replay(self) -> None:
        """Repeat the operations."""
        with _below_autograd():
            for operation, results in self._operations:
                made = {each.untyped_storage()._cdata for each in results}
                if not made:
                    operation()
                    continue
                new = _tensors(operation())
                for result, values in zip(results, new[-len(results) :], strict=True):
                    result.copy_(values)


@contextlib.contextmanager
def _below_autograd() -> Iterator[None]:
    """Let operations reach their kernels alone: no mode sees them, and no tensor counts that it was changed."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)
    no_autograd, no_count = torch._C._AutoDispatchBelowAutograd(), torch._C._ExcludeDispatchKeyGuard(keys)
    with torch._C.DisableTorchFunction(), _disable_current_modes(), no_autograd, no_count:
        yield


def _refuse_in_graph(operation: str) -> None:
    """Raise what CUDA raises for what a graph cannot contain."""
    if getattr(_local, "graph", None) is not None:
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({operation})")


def _note_copy(target: torch.device, non_blocking: bool) -> None:
    """Count a copy, and whether its thread waits for it; those that read ahead may."""
    if not non_blocking:
        _refuse_in_graph("a copy that is waited for")
    name = "to host" if target == CPU else "to device"
    copied[name] += 1
    waited[f"copy {name}"] += not non_blocking and threading.current_thread() is threading.main_thread()


class _Operations(TorchDispatchMode):
    """Checks where each operation's tensors are, and places its results."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        given = _tensors(args, kwargs)
        name = func._schema.name.partition("::")[2]
        on_gpu = {device_of(tensor) for tensor in given} - {CPU}
        if on_gpu and name not in COPIES:
            self._check(str(func), name, given, on_gpu)
        if name in ("_pin_memory", "is_pinned"):
            return args[0] if name == "_pin_memory" else False
        if name == "record_stream":
            if tag := _tag(args[0]):
                tag.used_in.add(current_stream())
            return None
        if on_gpu and name in WAITING:
            _refuse_in_graph(name)
            waited[name] += 1
        _order(func, args, given)
        storages = {tensor.untyped_storage()._cdata for tensor in given}
        graph = getattr(_local, "graph", None)
        if graph is not None:
            graph.note_given(func, args)
        with torch._C.DisableTorchFunction() if func.namespace == "caffe_kernels" else contextlib.nullcontext():
            result = func(*args, **kwargs)  # Triton's interpreter computes on a processor
        made = [tensor for tensor in _tensors(result) if tensor.untyped_storage()._cdata not in storages]
        if graph is not None:
            graph.note(functools.partial(func, *args, **kwargs), made)
        if name.startswith("_foreach_") and name.endswith("_"):
            increment_version(args[0])  # as CUDA's kernels do
        if name in COPIES and given:
            device = device_of(given[0])
            if name == "copy_" and device != device_of(given[1]):
                _note_copy(device, bool(kwargs.get("non_blocking") or args[2:3] == (True,)))
        elif on_gpu:
            device = next(iter(on_gpu))
        else:
            # Zeros that autograd makes for a gradient nobody gave.
            is_autograd = not given and torch._C._current_graph_task_id() != -1 and not getattr(_local, "inside", 0)
            device = torch.device("cuda", torch.cuda.current_device()) if is_autograd else CPU
        for tensor in made:
            _place(tensor, getattr(_local, "target", None) or device)
        return result

    @staticmethod
    def _check(operation: str, name: str, given: list[Tensor], on_gpu: set[torch.device]) -> None:
        on_host = [tensor for tensor in given if device_of(tensor) == CPU]
        indexes = name in INDEXING and device_of(given[0]) != CPU
        strays = [tensor for tensor in on_host if tensor.dim() or any(part in name for part in GROUPING)]
        if len(on_gpu) > 1 or (strays and not indexes):
            found = ", ".join(f"{device_of(tensor)}{tuple(tensor.shape)}" for tensor in given)
            raise RuntimeError(f"Expected all tensors to be on the same device, but {operation} got {found}")


@contextlib.contextmanager
def _set(**values: Any) -> Iterator[None]:
    before = {name: getattr(_local, name, None) for name in values}
    vars(_local).update(values)
    try:
        yield
    finally:
        vars(_local).update(before)


class _Functions(TorchFunctionMode):
    """Answers for a tensor's device, moves tensors, and makes new ones on the device they ask for."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (_device_of, _is_cuda, _is_cpu):
            device = device_of(args[0])
            return device if func == _device_of else (device.type == "cuda") == (func == _is_cuda)
        if func in (torch.Tensor.numpy, torch.Tensor.__array__) and device_of(args[0]) != CPU:
            raise TypeError(f"can't convert {device_of(args[0])} device type tensor to numpy. Use Tensor.cpu() to copy it first")
        with _set(inside=(getattr(_local, "inside", 0) or 0) + 1):
            if func is torch.Tensor.pin_memory or kwargs.get("pin_memory"):
                _refuse_in_graph("pinned memory")
            if func is torch.Tensor.pin_memory:
                if device_of(args[0]) != CPU:
                    raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
                torch.ops.aten.is_pinned.default(args[0])
                return torch.ops.aten._pin_memory.default(args[0])
            if func in (torch.batch_norm, functional.batch_norm) and device_of(args[0]) != CPU:
                self._refuse_cudnn(func, args)
            is_resized = func is functional.interpolate and device_of(args[0]) != CPU and kwargs["mode"] == "bilinear"
            if is_resized and torch.are_deterministic_algorithms_enabled():  # what PyTorch does for other devices than the CPU
                with self:  # its own tensors are to be on the device too
                    return _decomposed(args[0], kwargs["size"], kwargs["align_corners"], None)
            if func is torch.Tensor.cpu:
                return self._moved(args[0], CPU)
            if func is torch.Tensor.cuda:
                return self._moved(args[0], torch.device("cuda", torch.cuda.current_device()))
            if func is torch.Tensor.to:
                return self._to(*args, **kwargs)
            # Operations that autograd or a dispatch mode calls have PyTorch's own idea of where their tensors are.
            kwargs.pop("pin_memory", None)
            device = None if isinstance(func, torch._ops.OpOverload) else _device(kwargs.get("device"))
            if device is None:
                return func(*args, **kwargs)
            kwargs["device"] = CPU
            if func in (torch.tensor, torch.as_tensor) and device.type == "cuda":
                _refuse_in_graph("a tensor of numbers on the host")
            with _set(target=device):
                result = func(*args, **kwargs)
            if func is torch.as_tensor and isinstance(args[0], Tensor):
                return self._moved(result, device)
            return _place(result, device) if isinstance(result, Tensor) else result

    @staticmethod
    def _refuse_cudnn(func: Any, args: tuple[Any, ...]) -> None:
        """In `reproducible`, refuse what on CUDA is cuDNN's batch_norm, not PyTorch's."""
        x, *rest = args
        affine, is_cudnn = (rest[:2], args[8]) if func is torch.batch_norm else (rest[2:4], torch.backends.cudnn.enabled)
        is_active = any(isinstance(each, Reproducible) for each in _get_current_dispatch_mode_stack())
        if is_active and is_cudnn and x.dim() > 2 and len(affine) == 2 and all(each is not None for each in affine):
            raise RuntimeError("cudnn_batch_norm is not the same on every machine")

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        target, rest = device_of(tensor), []
        non_blocking = bool(kwargs.pop("non_blocking", False))
        for value in (*args, kwargs.pop("device", None)):
            if isinstance(value, Tensor):
                target = device_of(value)
                rest.append(value.dtype)
            elif isinstance(value, (str, torch.device)):
                target = _device(value) or CPU
            elif value is not None:
                rest.append(value)
        here = torch.Tensor.to(tensor, *rest, **kwargs) if rest or kwargs else tensor
        return self._moved(here, target, non_blocking)

    @staticmethod
    def _moved(tensor: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
        if device_of(tensor) == device:
            return tensor
        _note_copy(device, non_blocking)
        with _set(target=device):
            return tensor.clone()


@contextlib.contextmanager
def _modes() -> Iterator[None]:
    with _Functions(), _Operations():
        yield


@contextlib.contextmanager
def gpus(count: int = 1) -> Iterator[None]:
    """Pretend that the machine has GPUs while the block runs, in its threads and backward passes too."""
    current = [0]

    def set_device(device: Any) -> None:
        current[0] = (_device(device) or CPU).index or 0

    def in_modes(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with _modes():
                return function(*args, **kwargs)

        return call

    def in_functions(function: Callable[..., Any]) -> Callable[..., Any]:
        """PyTorch leaves function modes for autograd's engine and for dispatch modes."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with _Functions():
                return function(*args, **kwargs)

        return call

    def in_dispatch(dispatch: Callable[..., Any]) -> Callable[..., Any]:
        """Autograd's own copies, into another type, name the device that it has seen, the processor; they stay on theirs."""

        inside = in_functions(dispatch)

        def call(mode: Any, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
            kwargs = dict(kwargs or {})
            if func is torch.ops.aten._to_copy.default and torch._C._current_graph_task_id() != -1:
                kwargs.pop("device", None)
            return inside(mode, func, types, args, kwargs)

        return call

    def properties(device: Any = 0) -> types.SimpleNamespace:
        number = (_device(device) or CPU).index or 0
        return types.SimpleNamespace(name=f"Pretend {number}", uuid=f"pretend-{number}", total_memory=1 << 34, major=9, minor=0)

    def record_stream(tensor: Tensor, stream: Stream) -> None:
        torch.ops.aten.record_stream.default(tensor, torch.Stream("cpu"))

    replaced = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: count,
        "set_device": set_device,
        "current_device": lambda: current[0],
        "synchronize": lambda *_: None,
        "current_stream": current_stream,
        "Stream": Stream,
        "Event": Event,
        "get_device_name": lambda device=0: f"Pretend {device}",
        "get_device_properties": properties,
        "get_rng_state": lambda device=0: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device=0: None,
        "CUDAGraph": Graph,
        "graph": lambda graph, pool=None, **_: graph.captured(pool or object()),
        "graph_pool_handle": object,
        "is_current_stream_capturing": lambda: getattr(_local, "graph", None) is not None,
        "stream": lambda stream: _set(stream=stream),
        "max_memory_allocated": lambda device=0: 1 << 30,
        "mem_get_info": lambda device=0: (1 << 29, 1 << 34),
        "reset_peak_memory_stats": lambda device=0: None,
        "memory_reserved": lambda device=0: 15 << 30,
    }
    with contextlib.ExitStack() as stack:
        for name, value in replaced.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch.Tensor, "record_stream", record_stream))
        stack.enter_context(
            mock.patch.object(torch.autograd, "_engine_run_backward", in_functions(torch.autograd._engine_run_backward))
        )
        stack.enter_context(mock.patch.object(threading.Thread, "run", in_modes(threading.Thread.run)))
        for looks in (Reproducible, cuda_graphs.NoWaiting):
            stack.enter_context(mock.patch.object(looks, "__torch_dispatch__", in_dispatch(looks.__torch_dispatch__)))
        stack.enter_context(_modes())
        copied.clear()
        waited.clear()
        yield


if __name__ == "__main__":
    # python -m tests.gpu.pretend MODULE ARGUMENTS…: run a module with a pretend GPU.
    from tests.gpu import pretend  # the one module that has the tags, not this second copy of it

    sys.argv = sys.argv[1:]
    with pretend.gpus():
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

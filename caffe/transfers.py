"""Copies between the host and a GPU that neither waits for, and what enters a net's pass from the host.

A plain copy waits until the GPU has done all that it was given before; meanwhile nobody gives it more to do.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Make = Callable[[], Tensors]

_take: ContextVar[Callable[[Make], Tensors] | None] = ContextVar("take", default=None)


def upload(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, where it may be already."""
    on_gpu = device.type == "cuda" and not value.is_cuda
    return value.pin_memory().to(device, non_blocking=True) if on_gpu else value.to(device)


class LateCopy:
    """A copy on the host of a tensor as it is now, for later.

    One that was asked for after the forward pass has arrived long before the backward pass, which was started since, has ended.
    """

    def __init__(self, value: Tensor):
        self._arrived: torch.cuda.Event | None = None
        if value.is_cuda:
            self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value.copy_(value.detach(), non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(value.device))
        else:
            self._value = value.detach().clone()

    def wait(self) -> Tensor:
        """The copy, once it has arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._value


class Sent:
    """Tensors that a side stream has made, for the stream that computes."""

    def __init__(self, values: Iterable[np.ndarray | Tensor], device: torch.device):
        self._values = tuple(upload(torch.as_tensor(value), device) for value in values)
        self._device = device
        self._made: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._made = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._made.record(torch.cuda.current_stream(device))

    def received(self) -> Tensors:
        """The tensors; the current stream, not the host, waits until they are there."""
        if self._made is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(self._made)
            for value in self._values:
                value.record_stream(stream)  # their memory is not used again before it has computed
        return self._values


class SideStream:
    """Where a thread gives a GPU its copies and transformations of batches, beside what the GPU computes; nothing on a CPU."""

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(device))  # which has made what the batches are transformed with

    def working(self) -> contextlib.AbstractContextManager[object]:
        """A block whose operations on the GPU are in this stream."""
        return torch.cuda.stream(self._stream) if self._stream is not None else contextlib.nullcontext()


def from_outside(make: Make) -> Tensors:
    """What `make` gives a pass from outside its net, as tensors on the net's device: a batch, the choices of a Dropout.

    It must hold everything that is different in each pass and is not in a blob: where passes are captured as a CUDA graph, `make`
    is called before each replay, and the graph reads its values from memory that stays.
    """
    take = _take.get()
    return take(make) if take else make()


def array_from_outside(make: Callable[[], np.ndarray], device: torch.device) -> Tensor:
    """An array that `make` draws anew for each pass, on a device."""
    (value,) = from_outside(lambda: (upload(torch.from_numpy(make()), device),))
    return value


class Inputs:
    """What enters a net's pass from outside, in the order in which the layers ask for it, in memory that stays."""

    def __init__(self) -> None:
        self._makers: list[Make] = []
        self._kept: list[Tensors] = []

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """Make what a pass in this block asks for, and remember how it was made."""

        def take(make: Make) -> Tensors:
            made = make()
            self._makers.append(make)
            self._kept.append(tuple(value.detach().clone() for value in made))
            return made

        with _taking(take):
            yield

    @contextlib.contextmanager
    def given(self, values: Iterable[Tensors] | None = None) -> Iterator[None]:
        """Give a pass in this block the values kept, or others; what is not among them is made."""
        rest = iter(self._kept if values is None else values)
        with _taking(lambda make: given if (given := next(rest, None)) is not None else make()):
            yield

    def refill(self) -> list[Tensors]:
        """Make everything anew in the memory that stays. Or, if something has another shape than before, leave that memory as it
        is, and return the values up to that one.
        """
        made: list[Tensors] = []
        for make, kept in zip(self._makers, self._kept, strict=True):
            made.append(make())
            if any(old.shape != new.shape or old.dtype != new.dtype for old, new in zip(kept, made[-1], strict=True)):
                return made
        for kept, new in zip(self._kept, made, strict=True):
            for old, value in zip(kept, new, strict=True):
                old.copy_(value.detach())
        return []


@contextlib.contextmanager
def _taking(take: Callable[[Make], Tensors]) -> Iterator[None]:
    before = _take.set(take)
    try:
        yield
    finally:
        _take.reset(before)

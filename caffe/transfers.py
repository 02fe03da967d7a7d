"""Copies between the host and a GPU that neither waits for, and what enters a net's pass from the host.

A plain copy waits until the GPU has done all that it was given before; meanwhile nobody gives it more to do.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Values = tuple[Tensor, ...]
Make = Callable[[], Values]


class _Pass(NamedTuple):
    """A pass whose inputs are not simply made: what `from_outside` does in it, and whether it is captured instead of computed."""

    take: Callable[[Make], Values]
    is_captured: bool = False


_pass: ContextVar[_Pass | None] = ContextVar("pass", default=None)


def upload(value: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device."""
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)


class Sent:
    """Tensors that a side stream has made, for the stream that computes."""

    def __init__(self, values: Iterable[np.ndarray | Tensor], device: torch.device):
        self._values = tuple(upload(torch.as_tensor(value), device) for value in values)
        self._device = device
        self._made: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._made = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._made.record(torch.cuda.current_stream(device))

    def received(self) -> Values:
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


def from_outside(make: Make) -> Values:
    """What `make` gives a pass from outside its net, as tensors on the net's device: a batch, the choices of a Dropout.

    It must hold everything that is different in each pass and is not in a blob: where passes are captured as a CUDA graph, `make`
    is called before each replay, and the graph reads its values from memory that stays.
    """
    current = _pass.get()
    return current.take(make) if current else make()


class Inputs:
    """What enters a net's pass from outside, in the order in which the layers ask for it, in memory that stays."""

    def __init__(self) -> None:
        self._makers: list[Make] = []
        self._kept: list[Values] = []

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """Make what a pass in this block asks for, and remember how it was made."""

        def take(make: Make) -> Values:
            made = make()
            self._makers.append(make)
            self._kept.append(tuple(value.detach().clone() for value in made))
            return made

        with _entering(_Pass(take)):
            yield

    @contextlib.contextmanager
    def given(self, values: Iterable[Values] | None = None, is_captured: bool = False) -> Iterator[None]:
        """Give a pass in this block the values kept, or others."""
        rest = iter(self._kept if values is None else values)
        with _entering(_Pass(lambda make: next(rest), is_captured)):
            yield

    def refill(self) -> list[Values] | None:
        """Make everything anew. None; or, if the shapes are others than before, the new values, and those kept stay."""
        made = [make() for make in self._makers]
        pairs = [pair for kept, new in zip(self._kept, made, strict=True) for pair in zip(kept, new, strict=True)]
        if any(kept.shape != new.shape or kept.dtype != new.dtype for kept, new in pairs):
            return made
        for kept, new in pairs:
            kept.copy_(new.detach())
        return None


@contextlib.contextmanager
def _entering(new: _Pass) -> Iterator[None]:
    before = _pass.set(new)
    try:
        yield
    finally:
        _pass.reset(before)


class LateCopy:
    """A copy on the host of a tensor as it is now, for later.

    One that was asked for after the forward pass has arrived long before the backward pass, which was started since, has ended.
    In a pass that is captured there are no values yet: nothing is copied, and `source` is what each replay's copies are of.
    """

    def __init__(self, value: Tensor):
        self.source = value.detach()
        self._arrived: torch.cuda.Event | None = None
        current = _pass.get()
        if current and current.is_captured:
            return
        if value.is_cuda:
            self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value.copy_(self.source, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(value.device))
        else:
            self._value = self.source.clone()

    def wait(self) -> Tensor:
        """The copy, once it has arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._value

"""Side: the values or the gradient of a blob, as a tensor for the engine and a NumPy view for the caller."""

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional


@dataclass
class Later:
    """Values that are computed when somebody looks at them, and become float32 then."""

    shape: tuple[int, ...]
    compute: Callable[[], torch.Tensor]


class Side:
    """One array of a blob: a tensor that the engine puts and takes, and a NumPy view that stays alive.

    Before the first `look`, the tensor is the engine's result in any memory layout. The first look makes a contiguous array, into
    which every new value is copied from then on: a view shows later results, and the engine uses what is written into it. On a
    GPU the view is a `HostCopy`.
    """

    def __init__(self, tensor: torch.Tensor | None = None):
        self._tensor = tensor
        self.seen = False
        self.forgotten = False
        """Whether values were released before any look."""
        self._host: HostCopy | None = None
        self._later: Later | None = None

    def put_later(self, later: Later) -> None:
        """Replace the values by ones that are computed when they are needed: now, if somebody has a view of them."""
        if self.seen:
            self.put(later.compute().float())
        else:
            self._tensor, self._later, self.forgotten = None, later, False

    def _settle(self) -> None:
        if self._later is not None:
            later, self._later = self._later, None
            self._tensor = later.compute().float()

    def put(self, tensor: torch.Tensor | None) -> None:
        """Replace the values; None is zeros, for which no memory is used before a look."""
        self._later = None
        if self._tensor is None or not self.seen:
            self._tensor = tensor
            self.forgotten = False
            if self._host is None:
                return
        elif tensor is None:
            self._tensor.zero_()
        elif self._tensor.shape == tensor.shape:
            self._tensor.copy_(tensor.detach())
        else:
            self._tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
            self._host = None
        if self._host is not None:
            self._host.show()

    def release(self) -> None:
        """Free the memory of values that have no view, for what is computed next."""
        if not self.seen and (self._tensor is not None or self._later is not None):
            self._tensor = self._later = None
            self.forgotten = True

    def fetch(self) -> None:
        """Take back what has been written into the copy on the host."""
        if self._host is not None and not self._host.fetch():
            self._host = None

    def take(self) -> torch.Tensor | None:
        """The values as the engine uses them; None if they are zeros without memory."""
        self.fetch()
        self._settle()
        return self._tensor if self._tensor is None else self._tensor.detach()

    def look(self, shape: tuple[int, ...], device: torch.device) -> np.ndarray:
        """A writable NumPy view, row-major."""
        self._settle()
        if self._tensor is None:
            self._tensor = torch.zeros(shape, device=device)
        if not self.seen:
            self._tensor = self._tensor.detach().contiguous()
            self.seen = True
        if not self._tensor.is_cuda:
            return self._tensor.numpy()
        self.fetch()
        if self._host is None or self._host.tensor is not self._tensor:
            self._host = HostCopy(self._tensor)
        return self._host.look()

    def reshape(self, shape: tuple[int, ...]) -> None:
        """Give the values another shape, as `resized` does, in new memory: earlier views do not follow."""
        tensor = self.take()
        if tensor is not None:
            self._tensor = resized(tensor, shape)
            self.seen = self.forgotten = False
            self._host = None


class HostCopy:
    """A GPU tensor's values on the host, for a NumPy view that somebody may hold.

    As in Caffe's synced memory, either the GPU's values are the newest or the host's, but both are noticed rather than declared:
    the GPU's by PyTorch's count of changes, the host's by comparison with what was copied last. Once nobody holds the view, and
    what was written has been fetched, the copy is given up.
    """

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor
        self._host = tensor.detach().cpu()
        self._copied = self._host.clone()
        self._version = tensor._version
        self._view: weakref.ref[np.ndarray] | None = None

    @property
    def is_held(self) -> bool:
        """Whether somebody has the view, or a part of it."""
        return self._view is not None and self._view() is not None

    def look(self) -> np.ndarray:
        """The view, with the tensor's values."""
        self.show()
        view = self._view() if self._view is not None else None
        if view is None:
            view = self._host.numpy()
            self._view = weakref.ref(view)
        _held.add(self)
        return view

    @property
    def is_written(self) -> bool:
        """Whether the view has other bits than were copied to it."""
        return not torch.equal(self._host.view(torch.int32), self._copied.view(torch.int32))

    def fetch(self) -> bool:
        """Copy to the GPU what has been written into the view; whether it is still held."""
        if self.is_written:
            self.tensor.copy_(self._host)
            self._copied.copy_(self._host)
            self._version = self.tensor._version
        if not self.is_held:
            _held.discard(self)
        return self.is_held

    def show(self) -> None:
        """Copy the tensor's values to the view, if they have changed."""
        if self.tensor._version != self._version:
            self._host.copy_(self.tensor.detach())
            self._copied.copy_(self._host)
            self._version = self.tensor._version


_held: "weakref.WeakSet[HostCopy]" = weakref.WeakSet()


def show_held_views() -> None:
    """Let the views that are held show what a pass or an update has changed in place on a GPU."""
    if not _held:
        return
    for copy in list(_held):
        if copy.is_held:
            copy.show()
        elif not copy.is_written:
            _held.discard(copy)


def resized(values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The first values, row by row, in a new tensor of another shape; further ones are 0."""
    return functional.pad(values.flatten(), (0, math.prod(shape) - values.numel())).view(shape)

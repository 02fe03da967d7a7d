"""Side: the values or the gradient of a blob, as a tensor for the engine and a NumPy view for the caller."""

import math

import numpy as np
import torch
from torch.nn import functional


class Side:
    """One array of a blob: a tensor that the engine puts and takes, and a NumPy view that stays alive.

    Before the first `look`, the tensor is the engine's result in any memory layout. The first look makes a contiguous array, into
    which every new value is copied from then on: a view shows later results, and the engine uses what is written into it. On a
    GPU the array is a copy on the host, which the engine takes back before its next use, as Caffe's synced memory does.
    """

    def __init__(self, tensor: torch.Tensor | None = None):
        self._tensor = tensor
        self.seen = False
        self.forgotten = False
        """Whether values were released before any look."""
        self._host: torch.Tensor | None = None

    def put(self, tensor: torch.Tensor | None) -> None:
        """Replace the values; None is zeros, for which no memory is used before a look."""
        if self._tensor is None or not self.seen:
            self._tensor = tensor
            self.forgotten = False
        elif tensor is None:
            self._tensor.zero_()
        elif self._tensor.shape == tensor.shape:
            self._tensor.copy_(tensor.detach())
        else:
            self._tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
        self._host = None

    def release(self) -> None:
        """Free the memory of values that have no view, for what is computed next."""
        if not self.seen and self._tensor is not None:
            self._tensor = None
            self.forgotten = True

    def fetch(self) -> None:
        """Take back what has been written into the copy on the host."""
        if self._tensor is not None and self._host is not None:
            self._tensor.copy_(self._host)
            self._host = None

    def take(self) -> torch.Tensor | None:
        """The values as the engine uses them; None if they are zeros without memory."""
        self.fetch()
        return self._tensor if self._tensor is None else self._tensor.detach()

    def look(self, shape: tuple[int, ...], device: torch.device) -> np.ndarray:
        """A writable NumPy view, row-major."""
        if self._tensor is None:
            self._tensor = torch.zeros(shape, device=device)
        if not self.seen:
            self._tensor = self._tensor.detach().contiguous()
            self.seen = True
        if self._tensor.is_cuda:
            if self._host is None:
                self._host = self._tensor.cpu()
            return self._host.numpy()
        return self._tensor.numpy()

    def reshape(self, shape: tuple[int, ...]) -> None:
        """Give the values another shape, as `resized` does, in new memory: earlier views do not follow."""
        tensor = self.take()
        if tensor is not None:
            self._tensor = resized(tensor, shape)
            self.seen = self.forgotten = False


def resized(values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The first values, row by row, in a new tensor of another shape; further ones are 0."""
    return functional.pad(values.flatten(), (0, math.prod(shape) - values.numel())).view(shape)

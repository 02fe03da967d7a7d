"""Side: the values or the gradient of a blob, as a tensor of the engine's and a NumPy view of the caller's."""

import numpy as np
import torch


class Side:
    """One array of a blob: a tensor that the engine puts and takes, and a NumPy view that stays alive.

    Until somebody looks, the tensor is whatever the engine computed, in any memory layout. The first look makes a contiguous
    array; from then on every new value is copied into that array, so a view taken once shows later results, and what is
    written into it is what the engine takes. On a GPU the array is a copy on the host: a look fetches it, and the engine takes
    it back before its next use, as Caffe's synced memory does.
    """

    def __init__(self, tensor: torch.Tensor | None):
        self._tensor = tensor
        self.seen = False
        self.forgotten = False
        """Whether there were values that nobody had looked at, and that are gone."""
        self._host: torch.Tensor | None = None

    def put(self, tensor: torch.Tensor | None) -> None:
        """Replace the values; None stands for zeros that nobody has asked for."""
        if not self.seen:
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
        """Forget values that nobody has looked at, so that their memory serves what comes next."""
        if not self.seen and self._tensor is not None:
            self._tensor = None
            self.forgotten = True

    def fetch(self) -> None:
        """Take back what has been written into the copy on the host."""
        if self._host is not None:
            self._tensor.copy_(self._host)
            self._host = None

    def take(self) -> torch.Tensor | None:
        """The values as the engine uses them; None where they are zeros that nobody has asked for."""
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

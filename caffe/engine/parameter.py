"""Parameter: a blob that is learned, a leaf of the autograd graph."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable

import numpy as np
import torch

from caffe.engine.blob import Blob
from caffe.engine.side import Side, resized, show_held_views

_orders = itertools.count()
_filling = threading.Lock()


class Memory:
    """The values and the gradient of a parameter, which others may share: a leaf of the autograd graph and its NumPy views.

    Values are in the engine's preferred memory layout until they are first read from NumPy; from then on they are row-major.
    """

    def __init__(self, leaf: torch.Tensor):
        self.rows_only = False
        """Whether the values stay row-major, as NumPy views and views of another shape need them."""
        self.fill: Callable[[torch.Tensor], None] | None = None
        """What gives the values when they are first asked for."""
        self.replace(leaf)

    @property
    def leaf(self) -> torch.Tensor:
        """The values as a leaf of the autograd graph."""
        if self.fill is not None:
            with _filling:
                if self.fill is not None:
                    self.fill(self._leaf.detach())
                    self.fill = None
        return self._leaf

    def replace(self, leaf: torch.Tensor) -> None:
        """Take other values, without a gradient."""
        self._leaf = leaf
        self.diff = Side()
        self.update: torch.Tensor | None = None
        """What a solver has just subtracted, which `diff` then shows."""
        self._moved()

    def _moved(self) -> None:
        self.data = Side(self._leaf.detach())
        self.order = next(_orders)
        """A new number each time that the values move in memory."""

    def lay_out(self, memory_format: torch.memory_format) -> None:
        """Put the values into a memory layout."""
        self.leaf.data = self.leaf.data.contiguous(memory_format=memory_format)
        self._moved()

    def keep_rows(self) -> None:
        """Make the values row-major for good."""
        self.rows_only = True
        if not self.leaf.is_contiguous():
            self.lay_out(torch.contiguous_format)

    def look(self) -> np.ndarray:
        """The values, writable."""
        self.keep_rows()
        return self.data.look(tuple(self.leaf.shape), self.leaf.device)

    def look_at_diff(self) -> np.ndarray:
        """The gradient, or what a solver has just subtracted; writable."""
        self.keep_rows()
        self.diff._tensor = self.gradient()
        array = self.diff.look(tuple(self.leaf.shape), self.leaf.device)
        self.leaf.grad = self.diff._tensor
        return array

    def gradient(self) -> torch.Tensor | None:
        """The gradient, or what a solver has just subtracted; None if it is 0 and `diff` was never read."""
        self.diff.fetch()
        if self.update is not None:
            self.leaf.grad, self.update = self.update.clone(), None
        return self.leaf.grad

    def set_gradient(self, value: torch.Tensor | None) -> None:
        """Replace the gradient."""
        self.update = None
        if self.diff.seen:
            self.diff.put(value)
        else:
            self.leaf.grad = value

    def show_update(self, update: torch.Tensor) -> None:
        """Let the diff show what a solver has just subtracted, as Caffe does; copied when `diff` is read."""
        if self.diff.seen:
            self.diff.put(update)
        else:
            self.leaf.grad, self.update = None, update


class Parameter(Blob):
    """A blob that is learned. Its tensor is a leaf of the autograd graph, and its gradient accumulates there.

    owner       the parameter whose memory this one shares, or itself
    lr_mult     multiplier of the learning rate; decay_mult, of the weight decay
    """

    def __init__(self, shape: Iterable[int] = (), device: torch.device | None = None):
        super().__init__(shape, device)
        self._memory = Memory(torch.zeros(self._shape, device=self.device, requires_grad=True))
        self.owner = self
        self.lr_mult = 1.0
        self.decay_mult = 1.0
        self.name = ""

    @property
    def memory(self) -> Memory:
        """The values and the gradient, those of the owner."""
        return self.owner._memory

    @property
    def leaf(self) -> torch.Tensor:
        """The values as a leaf of the autograd graph, in the owner's shape."""
        return self.memory.leaf

    @property
    def tensor(self) -> torch.Tensor:
        """The values, outside the autograd graph; assigned ones are copied."""
        return self.graph_tensor().detach()

    @tensor.setter
    def tensor(self, value: torch.Tensor) -> None:
        value = value.broadcast_to(self._shape)
        self.memory.fill = None
        self.tensor.copy_(value)
        show_held_views()

    def fill_later(self, fill: Callable[[torch.Tensor], None]) -> None:
        """Let `fill` overwrite the values when they are first asked for, unless others are assigned before."""
        self.memory.fill = fill

    def learn(self, yes: bool) -> None:
        """Let gradients be computed, or not."""
        self.memory._leaf.requires_grad_(yes)

    @property
    def data(self) -> np.ndarray:
        return self.memory.look().reshape(self._shape)

    @property
    def diff(self) -> np.ndarray:
        """The gradient, accumulated since it was last cleared."""
        return self.memory.look_at_diff().reshape(self._shape)

    @property
    def gradient(self) -> torch.Tensor | None:
        return self.memory.gradient()

    @gradient.setter
    def gradient(self, value: torch.Tensor | None) -> None:
        self.memory.set_gradient(value)

    def peek(self, diff: bool = False) -> np.ndarray:
        if not diff:
            return super().peek()
        # Reading `diff` would change the memory layout, and with it the last digits of a training.
        return self.gradient_or_zeros().cpu().numpy()

    def gradient_or_zeros(self) -> torch.Tensor:
        """The gradient; zeros are created if there is none."""
        gradient = self.gradient
        if gradient is None:
            gradient = self.gradient = torch.zeros_like(self.tensor)
        return gradient

    @property
    def has_gradient(self) -> bool:
        """Whether its gradient matters: it is learned, or, with lr_mult 0, computed nevertheless (force_backward)."""
        return self.lr_mult != 0 or self.leaf.requires_grad

    def graph_tensor(self) -> torch.Tensor:
        """The values as layers use them: the leaf, whose gradient is `diff`."""
        memory = self.owner._memory
        memory.data.fetch()
        leaf = memory.leaf
        return leaf if leaf.shape == self._shape else leaf.view(self._shape)

    def lay_out(self, memory_format: torch.memory_format) -> None:
        """Put the values into the memory layout that the engine prefers, unless they must be row-major or are another's."""
        if self.owner is self and not self.memory.rows_only:
            self.memory.lay_out(memory_format)

    def share(self, owner: Parameter) -> None:
        """Use the memory of `owner`, data and gradient, in this blob's shape."""
        self.owner = owner.owner
        if self.owner.shape != self._shape:
            self.memory.keep_rows()
        self._memory = self.memory

    def _resize(self, shape: tuple[int, ...]) -> None:
        leaf = resized(self.tensor, shape).requires_grad_(self.leaf.requires_grad)
        if self.owner is self:
            self.memory.replace(leaf)
        else:
            self.owner, self._memory = self, Memory(leaf)

"""Parameter: a blob that is learned, a leaf of the autograd graph."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from caffe.engine.blob import Blob, checked_shape
from caffe.engine.side import Side

_orders = itertools.count()


class Parameter(Blob):
    """A blob that is learned. Its tensor is a leaf of the autograd graph, and its gradient accumulates there.

    owner       the parameter whose memory this one shares, or itself
    lr_mult     multiplier of the learning rate; decay_mult, of the weight decay
    """

    def __init__(self, shape=(), device: torch.device | None = None):
        super().__init__(shape, device)
        self.leaf = torch.zeros(self._shape, device=self.device, requires_grad=True)
        self._data = Side(self.leaf.detach())
        self.owner = self
        self.order = next(_orders)
        """Another number each time that the values move in memory."""
        self._rows_only = False
        self._update: torch.Tensor | None = None
        self.lr_mult = 1.0
        self.decay_mult = 1.0
        self.name = ""

    @property
    def tensor(self) -> torch.Tensor:
        """The values, outside the autograd graph."""
        return self.graph_tensor().detach()

    @property
    def data(self) -> np.ndarray:
        """The values."""
        self.owner.keep_rows()
        return self.owner._data.look(self.owner._shape, self.device).reshape(self._shape)

    @property
    def diff(self) -> np.ndarray:
        """The gradient, accumulated since it was last cleared."""
        owner = self.owner
        owner.keep_rows()
        if owner._update is not None:
            owner.leaf.grad, owner._update = owner._update.clone(), None
        owner._diff._tensor = owner.leaf.grad
        array = owner._diff.look(owner._shape, self.device)
        owner.leaf.grad = owner._diff._tensor
        return array.reshape(self._shape)

    @property
    def gradient(self) -> torch.Tensor | None:
        """The gradient as a tensor; None where it is 0 and nobody has looked."""
        self.owner._diff.fetch()
        return self.owner.leaf.grad

    @gradient.setter
    def gradient(self, value: torch.Tensor | None) -> None:
        owner = self.owner
        if owner._diff.seen:
            owner._diff.put(value)
        else:
            owner.leaf.grad = value

    def peek(self, diff=False):
        if not diff:
            return super().peek()
        # A look at `diff` would settle the order in memory, and training end on other last digits.
        update = self.owner._update
        return (self.gradient_or_zeros() if update is None else update.view(self._shape)).cpu().numpy()

    def gradient_or_zeros(self) -> torch.Tensor:
        """The gradient, made as zeros where it is 0 and nobody has looked."""
        gradient = self.gradient
        if gradient is None:
            gradient = self.gradient = torch.zeros_like(self.tensor)
        return gradient

    @property
    def has_gradient(self) -> bool:
        """Whether its gradient matters: it is learned, or, with lr_mult 0, computed all the same (force_backward)."""
        return self.lr_mult != 0 or self.owner.leaf.requires_grad

    def graph_tensor(self) -> torch.Tensor:
        """The values as layers use them: the leaf, whose gradient is `diff`."""
        self.fetch()
        leaf = self.owner.leaf
        return leaf if leaf.shape == self._shape else leaf.view(self._shape)

    def clear_gradient(self) -> None:
        """Set the gradient to 0."""
        self.owner._update = None
        self.gradient = None

    def show_update(self, update: torch.Tensor) -> None:
        """Let `diff` show what a solver has just subtracted, as Caffe does; copied only if somebody looks."""
        owner = self.owner
        if owner._diff.seen:
            owner._diff.put(update)
        else:
            owner.leaf.grad, owner._update = None, update

    def fetch(self) -> None:
        """Take back values that were written into a copy on the host."""
        self.owner._data.fetch()

    def lay_out(self, memory_format: torch.memory_format) -> None:
        """Order the values in memory as the engine prefers, as long as nobody has looked at them."""
        if self.owner is self and not self._rows_only:
            self._order(memory_format)

    def keep_rows(self) -> None:
        """Order the values in memory row by row, for good: what NumPy sees, and what can be seen in another shape."""
        self._rows_only = True
        if not self.leaf.is_contiguous():
            self._order(torch.contiguous_format)

    def _order(self, memory_format: torch.memory_format) -> None:
        self.leaf.data = self.leaf.data.contiguous(memory_format=memory_format)
        self._data = Side(self.leaf.detach())
        self.order = next(_orders)

    def share(self, owner: Parameter) -> None:
        """Use the memory of `owner`, data and gradient, in this blob's shape."""
        self.owner = owner.owner
        if self.owner.shape != self._shape:
            self.owner.keep_rows()
        self.leaf = self.owner.leaf

    def reshape(self, *shape: int) -> None:
        """Change the shape, keeping values as far as the new count allows."""
        shape = checked_shape(shape)
        if shape == self._shape:
            return
        new = torch.zeros(math.prod(shape), device=self.device)
        old = self.tensor.reshape(-1)
        kept = min(new.numel(), old.numel())
        new[:kept] = old[:kept]
        self._shape = shape
        self.owner = self
        self.leaf = new.view(shape).requires_grad_(self.leaf.requires_grad)
        self._data, self._diff = Side(self.leaf.detach()), Side(None)
        self.order = next(_orders)

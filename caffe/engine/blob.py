"""Blob: an array of values and one of their gradients, seen from NumPy and used by PyTorch."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from caffe import glog
from caffe.errors import Error
from caffe.formats.stored import add_array, add_values
from caffe.proto import caffe_pb2

MAX_AXES = 32
_orders = itertools.count()


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


class Blob:
    """Values and gradients of one shape: what flows between layers, and what layers learn.

    `data` and `diff` are float32 NumPy arrays over the engine's memory. Made like `Blob((64, 3, 227, 227))`; values start at 0.
    """

    def __init__(self, shape=(), device: torch.device | None = None):
        self._shape = _checked_shape(shape)
        self.device = device or torch.device("cpu")
        self._data = Side(None)
        self._diff = Side(None)

    # ---- the user's side

    @property
    def data(self) -> np.ndarray:
        """The values."""
        return self._data.look(self._shape, self.device)

    @property
    def diff(self) -> np.ndarray:
        """The gradient of the loss with respect to the values.

        A diff that nobody has looked at is kept until the next forward pass, and not at all in a solver's steps; from the first
        look on it is always kept.
        """
        if self._diff.forgotten:
            glog.warning("blob.hpp:168", f"The diff of a blob of shape {self._shape} was not kept; from now on it will be.")
            self._diff.forgotten = False
        return self._diff.look(self._shape, self.device)

    @property
    def shape(self) -> tuple[int, ...]:
        """Axes, outermost first; batch × channels × height × width for images."""
        return self._shape

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self._shape)

    @property
    def num(self) -> int:
        """First of the four legacy axes."""
        return self._legacy_axis(0)

    @property
    def channels(self) -> int:
        """Second of the four legacy axes; 1 where there are fewer."""
        return self._legacy_axis(1)

    @property
    def height(self) -> int:
        """Third of the four legacy axes; 1 where there are fewer."""
        return self._legacy_axis(2)

    @property
    def width(self) -> int:
        """Fourth of the four legacy axes; 1 where there are fewer."""
        return self._legacy_axis(3)

    def _legacy_axis(self, index: int) -> int:
        if len(self._shape) > 4:
            raise Error("Blob", f"{len(self._shape)} axes", "num, channels, height and width exist for at most 4", "use shape")
        return self._shape[index] if index < len(self._shape) else 1

    def reshape(self, *shape: int) -> None:
        """Change the shape; values are kept as far as the new count allows, and new ones are 0."""
        shape = _checked_shape(shape)
        if shape == self._shape:
            return
        for side in (self._data, self._diff):
            old = side.take()
            if old is not None:
                new = torch.zeros(math.prod(shape), device=self.device)
                kept = min(new.numel(), old.numel())
                new[:kept] = old.reshape(-1)[:kept]
                side.__init__(new.view(shape))
        self._shape = shape

    # ---- the engine's side

    @property
    def tensor(self) -> torch.Tensor:
        """The values as a tensor that shares memory with `data`."""
        tensor = self._data.take()
        if tensor is None:
            tensor = torch.zeros(self._shape, device=self.device)
            self._data.put(tensor)
        return tensor

    @tensor.setter
    def tensor(self, value: torch.Tensor) -> None:
        if value.shape != self._shape:
            self._shape = tuple(value.shape)
        self._data.put(value)

    @property
    def data_side(self) -> Side:
        """What holds the values."""
        return self._data

    @property
    def diff_side(self) -> Side:
        """What holds the gradient; `seen` tells whether somebody has looked at `diff`, and so may look again."""
        return self._diff

    @property
    def gradient(self) -> torch.Tensor | None:
        """The gradient as a tensor; None where it is 0 and nobody has looked."""
        return self._diff.take()

    @gradient.setter
    def gradient(self, value: torch.Tensor | None) -> None:
        self._diff.put(value)

    def to_proto(self, with_diff: bool = False) -> caffe_pb2.BlobProto:
        """BlobProto with `shape` and `data`, and `diff` on request."""
        proto = caffe_pb2.BlobProto()
        add_array(proto, self.peek())
        if with_diff:
            add_values(proto, self.peek(diff=True), diff=True)
        return proto

    def peek(self, diff: bool = False) -> np.ndarray:
        """The values, or the gradient, as they are now: to be read at once, and not written."""
        return self.diff if diff else self.tensor.detach().cpu().numpy()


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
        shape = _checked_shape(shape)
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


def _checked_shape(shape) -> tuple[int, ...]:
    shape = tuple(int(axis) for axis in shape)
    if len(shape) > MAX_AXES:
        raise Error("Blob", f"{len(shape)} axes", f"there can be at most {MAX_AXES}")
    if any(axis < 0 for axis in shape):
        raise Error("Blob", f"shape {shape}", "no axis can be negative")
    if math.prod(shape) > 2**31 - 1:
        raise Error("Blob", f"shape {shape}: {math.prod(shape)} values", "a blob holds at most 2147483647")
    return shape

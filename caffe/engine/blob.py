"""Blob: an array of values and one of their gradients, seen from NumPy and used by PyTorch."""

import math
from collections.abc import Iterable

import numpy as np
import torch

from caffe import events
from caffe.engine.side import Side
from caffe.errors import Error
from caffe.formats.stored import add_array, add_values
from caffe.proto import caffe_pb2

MAX_AXES = 32


class Blob:
    """Values and gradients of one shape: what flows between layers, and what layers learn.

    `data` and `diff` are float32 NumPy arrays over the engine's memory. Made like `Blob((64, 3, 227, 227))`; values start at 0.
    """

    def __init__(self, shape: Iterable[int] = (), device: torch.device | None = None) -> None:
        self._shape = checked_shape(shape)
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
            events.diff_not_kept(self._shape)
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
        shape = checked_shape(shape)
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


def checked_shape(shape: Iterable[int]) -> tuple[int, ...]:
    """The shape as a tuple of integers; an Error where a blob cannot have it."""
    shape = tuple(int(axis) for axis in shape)
    if len(shape) > MAX_AXES:
        raise Error("Blob", f"{len(shape)} axes", f"there can be at most {MAX_AXES}")
    if any(axis < 0 for axis in shape):
        raise Error("Blob", f"shape {shape}", "no axis can be negative")
    if math.prod(shape) > 2**31 - 1:
        raise Error("Blob", f"shape {shape}: {math.prod(shape)} values", "a blob holds at most 2147483647")
    return shape

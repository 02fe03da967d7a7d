"""Blob: an array of values and an array of their gradients, shared by NumPy and PyTorch."""

import math
from collections.abc import Iterable

import numpy as np
import torch

from caffe import events
from caffe.engine.side import Later, Side
from caffe.errors import Error
from caffe.formats.stored import add_array, add_values
from caffe.proto import caffe_pb2

MAX_AXES = 32


class Blob:
    """Values and gradients of the same shape: inputs and outputs of layers, and their parameters.

    `data` and `diff` are float32 NumPy arrays over the engine's memory. `Blob((64, 3, 227, 227))` is filled with zeros.
    """

    def __init__(self, shape: Iterable[int] = (), device: torch.device | None = None) -> None:
        self._shape = checked_shape(shape)
        self.device = device or torch.device("cpu")
        self.data_side = Side()
        self.diff_side = Side()

    # ---- for users

    @property
    def data(self) -> np.ndarray:
        """The values."""
        return self.data_side.look(self._shape, self.device)

    @property
    def diff(self) -> np.ndarray:
        """The gradient of the loss with respect to the values.

        Until `diff` is first read, it is kept until the next forward pass, and not at all in a solver's steps; from then on it
        is always kept.
        """
        if self.diff_side.forgotten:
            events.diff_not_kept(self._shape)
            self.diff_side.forgotten = False
        return self.diff_side.look(self._shape, self.device)

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
        """Second of the four legacy axes; 1 if there are fewer."""
        return self._legacy_axis(1)

    @property
    def height(self) -> int:
        """Third of the four legacy axes; 1 if there are fewer."""
        return self._legacy_axis(2)

    @property
    def width(self) -> int:
        """Fourth of the four legacy axes; 1 if there are fewer."""
        return self._legacy_axis(3)

    def _legacy_axis(self, index: int) -> int:
        if len(self._shape) > 4:
            raise Error("Blob", f"{len(self._shape)} axes", "num, channels, height and width exist for at most 4", "use shape")
        return self._shape[index] if index < len(self._shape) else 1

    def reshape(self, *shape: int) -> None:
        """Change the shape; values are kept as far as the new count allows, and new ones are 0."""
        shape = checked_shape(shape)
        if shape != self._shape:
            self._resize(shape)
            self._shape = shape

    def _resize(self, shape: tuple[int, ...]) -> None:
        self.data_side.reshape(shape)
        self.diff_side.reshape(shape)

    # ---- for the engine

    @property
    def tensor(self) -> torch.Tensor:
        """The values as a tensor that shares memory with `data`."""
        tensor = self.data_side.take()
        if tensor is None:
            tensor = torch.zeros(self._shape, device=self.device)
            self.data_side.put(tensor)
        return tensor

    @tensor.setter
    def tensor(self, value: torch.Tensor) -> None:
        self._shape = tuple(value.shape)
        self.data_side.put(value)

    def put_later(self, values: Later) -> None:
        """Replace the values by ones that are computed when they are needed: now, if somebody has a view of them."""
        self._shape = values.shape
        self.data_side.put_later(values)

    @property
    def gradient(self) -> torch.Tensor | None:
        """The gradient as a tensor; None if it is 0 and `diff` was never read."""
        return self.diff_side.take()

    @gradient.setter
    def gradient(self, value: torch.Tensor | None) -> None:
        self.diff_side.put(value)

    def to_proto(self, with_diff: bool = False) -> caffe_pb2.BlobProto:
        """BlobProto with `shape` and `data`, and `diff` on request."""
        proto = caffe_pb2.BlobProto()
        add_array(proto, self.peek())
        if with_diff:
            add_values(proto, self.peek(diff=True), diff=True)
        return proto

    def peek(self, diff: bool = False) -> np.ndarray:
        """The values, or the gradient, as they are now; to be read at once and not written."""
        return self.diff if diff else self.tensor.cpu().numpy()


def checked_shape(shape: Iterable[int]) -> tuple[int, ...]:
    """The shape as a tuple of integers; an Error if a blob cannot have it."""
    shape = tuple(int(axis) for axis in shape)
    if len(shape) > MAX_AXES:
        raise Error("Blob", f"{len(shape)} axes", f"there can be at most {MAX_AXES}")
    if any(axis < 0 for axis in shape):
        raise Error("Blob", f"shape {shape}", "no axis can be negative")
    if math.prod(shape) > 2**31 - 1:
        raise Error("Blob", f"shape {shape}: {math.prod(shape)} values", "a blob holds at most 2147483647")
    return shape

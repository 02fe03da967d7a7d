"""Layer: the base of all layer types, and the registry that finds them by name."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

import torch

from caffe.engine import fillers
from caffe.engine.blob import Parameter
from caffe.errors import LayerError, nearest
from caffe.proto import caffe_pb2

_TYPES: dict[str, type[Layer]] = {}
Shape = tuple[int, ...]
Tops = torch.Tensor | tuple[torch.Tensor, ...]
"""What a layer's `forward` returns: its only top, or all of them."""


class BlobSpec(NamedTuple):
    """One blob of a layer: its name, as PyTorch names a module's tensors, and whether the solver learns it from its gradient.

    What is not learned is a running statistic: the layer updates it in its forward pass in training.
    """

    name: str
    learned: bool = True


WEIGHT, BIAS = BlobSpec("weight"), BlobSpec("bias")


class Layer:
    """What one `layer { … }` of a net computes.

    A type says in `setup` which parameters it learns, in `top_shapes` how large its tops are, and in `forward` its tops from its
    bottoms, with PyTorch's operations; autograd gives the gradient. It knows nothing of device, precision or memory layout: the
    net's executor decides those.

    param     the layer's LayerParameter
    phase     caffe.TRAIN or caffe.TEST
    blobs     the learned parameters, in Caffe's order
    where     how errors name this layer: file, line and layer
    """

    type = "Layer"
    bottoms: tuple[int, int | None] = (0, None)
    """Least and greatest number of bottoms; None is no limit."""
    tops: tuple[int, int | None] = (1, 1)
    """Least and greatest number of tops."""
    is_loss = False
    """The first top has loss weight 1 unless the prototxt says else, and a layer without tops is given one."""
    differentiable_bottoms: tuple[int, ...] | None = None
    """Bottoms that a gradient can reach; None is all. Labels are not among them."""
    keeps_output = True
    """Whether the gradient is computed from the output, so that a following layer may not overwrite it."""
    keeps_shape = False
    """Whether every top has the shape of the first bottom."""
    is_linear = False
    """Whether the tops are weighted sums of the bottom's values, plus a bias: the layers that a net's depth is counted in."""
    is_source = False
    """Whether it has no bottoms and says its tops' shapes before there are values."""
    is_input = False
    """Whether its tops are the caller's, and stay."""
    overwrites = False
    """Set by the executor on a layer whose top is its bottom and whose `forward` may write into it."""

    def __init__(self, param: caffe_pb2.LayerParameter, phase: int, where: str, device: torch.device):
        self.param = param
        self.phase = phase
        self.where = where
        self.device = device
        self.blobs: list[Parameter] = []

    @classmethod
    def blob_specs(cls, param: caffe_pb2.LayerParameter) -> tuple[BlobSpec, ...] | None:
        """The blobs of a layer of this type, in Caffe's order, as its prototxt determines them; the net need not be built.

        None if only the built layer knows them (Python layers).
        """
        return ()

    @classmethod
    def freeze_statistics(cls, param: caffe_pb2.LayerParameter) -> None:
        """Change `param` so that training uses the stored running statistics and does not update them."""

    def setup(self, *shapes: tuple[int, ...]) -> None:
        """Check the parameters against the bottoms' shapes and declare `blobs`; called once."""

    def top_shapes(self, *shapes: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Shapes of the tops for bottoms of these shapes, which are found to fit together; known before there are values."""
        if self.keeps_shape:
            return [shapes[0]] * len(self.param.top)
        raise NotImplementedError

    def forward(self, *bottoms: torch.Tensor) -> Tops:
        """The tops."""
        raise NotImplementedError

    def batch_dependence(self) -> str:
        """Why gradients depend on which records form a batch, or on chance, as a phrase; "" where they do not.

        A net without such layers learns the same from n processes as from one with iter_size n.
        """
        return ""

    def use_channels_last(self) -> None:
        """Make tops of four axes in that memory layout from now on, where they would be converted into it each time."""

    def close(self) -> None:
        """Stop threads and close files; `forward` starts again."""

    def keep(self, state: caffe_pb2.LayerState) -> None:
        """Write what the layer carries from one iteration to the next, besides `blobs`, for a snapshot."""

    def resume(self, state: caffe_pb2.LayerState) -> None:
        """Go on from what `keep` wrote. ValueError, TypeError or KeyError where that cannot be."""

    def add_blob(self, shape: tuple[int, ...], filler: caffe_pb2.FillerParameter) -> None:
        """Declare one learned parameter, filled as `filler` says."""
        blob = Parameter(shape, self.device)
        fillers.fill(blob.tensor, filler, self.where)
        self.blobs.append(blob)

    def parameters(self) -> list[torch.Tensor]:
        """The learned parameters as tensors of the autograd graph."""
        return [blob.graph_tensor() for blob in self.blobs]

    def error(self, found: str, expected: str = "", do: str = "") -> LayerError:
        """An error that names this layer."""
        return LayerError(self.where, found, expected, do)

    def axis(self, axis: int, axes: int) -> int:
        """A possibly negative axis of something with `axes` axes, as a position from 0."""
        if not -axes <= axis < axes:
            raise self.error(f"axis {axis}", f"its bottom has {axes} axes (-{axes} to {axes - 1})")
        return axis % axes


def register(name: str) -> Callable[[type[Layer]], type[Layer]]:
    """Class decorator: make a layer type known under `name`."""

    def decorate(layer_type: type[Layer]) -> type[Layer]:
        layer_type.type = name
        _TYPES[name] = layer_type
        return layer_type

    return decorate


def known_types() -> dict[str, type[Layer]]:
    """{name: class} of every layer type."""
    _load_types()
    return _TYPES


@functools.cache
def _load_types() -> None:
    """Import all modules of caffe.layer_types: what they register is found there, not listed here."""
    package = importlib.import_module("caffe.layer_types")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)


def layer_type_list() -> list[str]:
    """Names of all layer types, sorted."""
    return sorted(known_types())


def layer_type(name: str, where: str = "") -> type[Layer]:
    """The class of a layer type, whose attributes describe it: `caffe.layer_type("Scale").blob_specs(param)`.

    where  the layer that has the type, as the error names it: file, line and layer
    Raises LayerError, with the nearest known types, if there is no such type.
    """
    types = known_types()
    if name not in types:
        hint = nearest(name, types) or "caffe.layer_type_list() names the known ones"
        raise LayerError(where, f'unknown type "{name}"', do=hint)
    return types[name]


def create(param: caffe_pb2.LayerParameter, phase: int, where: str, device: torch.device) -> Layer:
    """The layer that `param` describes; LayerError for an unknown type."""
    return layer_type(param.type, where)(param, phase, where, device)

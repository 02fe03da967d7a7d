"""Initial values of parameters: Caffe's seven fillers, by name, and gaussian_unitball of happynear/caffe-windows.

`fan_in` is count / first axis and `fan_out` count / second axis, as Caffe counts them, whatever the layer's type.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch

from caffe.engine import mode
from caffe.errors import LayerError
from caffe.numerics import exact
from caffe.numerics.generator import Generator
from caffe.proto import caffe_pb2

NORM = caffe_pb2.FillerParameter
AT_ONCE = 1 << 16
"""Numbers drawn together: few enough for the processor's cache. Even, as normal ones come in pairs."""


def fill(tensor: torch.Tensor, filler: caffe_pb2.FillerParameter, where: str) -> None:
    """Overwrite `tensor` in place as `filler` says; errors name `where`, the layer."""
    if filler.type not in FILLERS:
        raise LayerError(where, f'unknown filler "{filler.type}"', f"there are {', '.join(sorted(FILLERS))}")
    with torch.no_grad():
        FILLERS[filler.type](tensor, filler, where)


class Distribution(NamedTuple):
    """Random numbers that do not depend on each other: uniform between two bounds, or normal with a mean and a deviation."""

    name: Literal["uniform", "normal"]
    first: float
    second: float

    def fill(self, tensor: torch.Tensor, generator: Generator) -> None:
        """Overwrite `tensor` by numbers, drawn some at a time."""
        draw = generator.uniform if self.name == "uniform" else generator.normal
        values = torch.empty(tensor.numel())
        for some in torch.split(values, AT_ONCE):
            some.copy_(exact.rounded(torch.from_numpy(draw(self.first, self.second, len(some)))))
        tensor.copy_(values.view(tensor.shape))

    def integers(self, count: int) -> int:
        """How many integers of a generator `fill` takes for so many numbers."""
        return count if self.name == "uniform" else (count + 1) // 2


def later(shape: tuple[int, ...], filler: caffe_pb2.FillerParameter) -> Callable[[torch.Tensor], None] | None:
    """What fills a large parameter by the random numbers that `fill` would give it now; None for small ones and other fillers.

    To draw CaffeNet's weights takes longer than to read them from a file, after which nobody needs those drawn.
    """
    count = math.prod(shape)
    if filler.type not in _DISTRIBUTIONS or count < AT_ONCE or _is_sparse(filler):
        return None
    distribution = _DISTRIBUTIONS[filler.type](torch.Size(shape), filler)
    return functools.partial(distribution.fill, generator=mode.generator.ahead(distribution.integers(count)))


def constant(tensor: torch.Tensor, filler: caffe_pb2.FillerParameter, where: str) -> None:
    tensor.fill_(filler.value)


def _uniform(shape: torch.Size, filler: caffe_pb2.FillerParameter) -> Distribution:
    return Distribution("uniform", filler.min, filler.max)


def _gaussian(shape: torch.Size, filler: caffe_pb2.FillerParameter) -> Distribution:
    return Distribution("normal", filler.mean, filler.std)


def _xavier(shape: torch.Size, filler: caffe_pb2.FillerParameter) -> Distribution:
    """Glorot and Bengio 2010: uniform with variance 1 / fan."""
    limit = math.sqrt(3 / _fan(shape, filler))
    return Distribution("uniform", -limit, limit)


def _msra(shape: torch.Size, filler: caffe_pb2.FillerParameter) -> Distribution:
    """He et al. 2015: normal with variance 2 / fan."""
    return Distribution("normal", 0, math.sqrt(2 / _fan(shape, filler)))


def _fan(shape: torch.Size, filler: caffe_pb2.FillerParameter) -> float:
    fan_in = shape.numel() / shape[0]
    fan_out = shape.numel() / shape[1] if len(shape) > 1 else shape.numel()
    return {NORM.AVERAGE: (fan_in + fan_out) / 2, NORM.FAN_OUT: fan_out}.get(filler.variance_norm, fan_in)


_DISTRIBUTIONS = {"uniform": _uniform, "gaussian": _gaussian, "xavier": _xavier, "msra": _msra}


def _is_sparse(filler: caffe_pb2.FillerParameter) -> bool:
    return filler.type == "gaussian" and filler.sparse >= 0


def random(tensor: torch.Tensor, filler: caffe_pb2.FillerParameter, where: str) -> None:
    _DISTRIBUTIONS[filler.type](tensor.shape, filler).fill(tensor, mode.generator)
    if _is_sparse(filler):
        # Each output (first axis) keeps `sparse` weights on average.
        keep = min(1.0, filler.sparse / tensor.shape[0])
        kept = torch.from_numpy(mode.generator.chosen(keep, tuple(tensor.shape)))
        tensor.mul_(kept.to(tensor.device))


def positive_unitball(tensor: torch.Tensor, filler: caffe_pb2.FillerParameter, where: str) -> None:
    rows = torch.from_numpy(mode.generator.random((tensor.shape[0], tensor[0].numel())))
    tensor.copy_(exact.rounded(rows / exact.total(rows, 1, keepdim=True)).view(tensor.shape))


def gaussian_unitball(tensor: torch.Tensor, filler: caffe_pb2.FillerParameter, where: str) -> None:
    """Vectors of norm 1, one for each position of the first axis, in all directions alike."""
    rows = torch.from_numpy(mode.generator.normal(0.0, 1.0, (tensor.shape[0], tensor[0].numel())))
    norms = (exact.total(rows * rows, 1, keepdim=True) + 1e-12).sqrt()
    tensor.copy_(exact.rounded(rows / norms).view(tensor.shape))


def bilinear(tensor: torch.Tensor, filler: caffe_pb2.FillerParameter, where: str) -> None:
    """Weights of a deconvolution that upsamples: a separable triangle."""
    if tensor.dim() != 4 or tensor.shape[2] != tensor.shape[3]:
        raise LayerError(where, f"bilinear filler on shape {tuple(tensor.shape)}", "it fills 4 axes with a square kernel")
    size = tensor.shape[3]
    half = math.ceil(size / 2)
    centre = (size - 1) / (2 * half)
    axis = 1 - (torch.arange(size, dtype=torch.float32, device=tensor.device) / half - centre).abs()
    tensor.copy_((axis[:, None] * axis[None, :]).expand_as(tensor))


_OTHERS = constant, positive_unitball, gaussian_unitball, bilinear
FILLERS = dict.fromkeys(_DISTRIBUTIONS, random) | {filler.__name__: filler for filler in _OTHERS}

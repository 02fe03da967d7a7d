"""Initial values of parameters: Caffe's seven fillers, by name, and gaussian_unitball of happynear/caffe-windows.

`fan_in` is count / first axis and `fan_out` count / second axis, as Caffe counts them, whatever the layer's type.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from caffe.engine import mode
from caffe.errors import LayerError
from caffe.numerics import exact
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


def constant(tensor: torch.Tensor, filler: caffe_pb2.FillerParameter, where: str) -> None:
    tensor.fill_(filler.value)


def _drawn(shape: tuple[int, ...], draw: Callable[[int], np.ndarray]) -> torch.Tensor:
    """float32 numbers that `draw` returns, some at a time."""
    values = torch.empty(math.prod(shape))
    for some in torch.split(values, AT_ONCE):
        some.copy_(exact.rounded(torch.from_numpy(draw(len(some)))))
    return values.view(shape)


def _uniform(tensor: torch.Tensor, low: float, high: float) -> None:
    tensor.copy_(_drawn(tensor.shape, lambda count: mode.generator.uniform(low, high, count)))


def _normal(tensor: torch.Tensor, mean: float, deviation: float) -> None:
    tensor.copy_(_drawn(tensor.shape, lambda count: mode.generator.normal(mean, deviation, count)))


def uniform(tensor: torch.Tensor, filler: caffe_pb2.FillerParameter, where: str) -> None:
    _uniform(tensor, filler.min, filler.max)


def gaussian(tensor: torch.Tensor, filler: caffe_pb2.FillerParameter, where: str) -> None:
    _normal(tensor, filler.mean, filler.std)
    if filler.sparse >= 0:
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


def _fan(tensor: torch.Tensor, filler: caffe_pb2.FillerParameter) -> float:
    fan_in = tensor.numel() / tensor.shape[0]
    fan_out = tensor.numel() / tensor.shape[1] if tensor.dim() > 1 else tensor.numel()
    return {NORM.AVERAGE: (fan_in + fan_out) / 2, NORM.FAN_OUT: fan_out}.get(filler.variance_norm, fan_in)


def xavier(tensor: torch.Tensor, filler: caffe_pb2.FillerParameter, where: str) -> None:
    """Glorot and Bengio 2010: uniform with variance 1 / fan."""
    limit = math.sqrt(3 / _fan(tensor, filler))
    _uniform(tensor, -limit, limit)


def msra(tensor: torch.Tensor, filler: caffe_pb2.FillerParameter, where: str) -> None:
    """He et al. 2015: normal with variance 2 / fan."""
    _normal(tensor, 0, math.sqrt(2 / _fan(tensor, filler)))


def bilinear(tensor: torch.Tensor, filler: caffe_pb2.FillerParameter, where: str) -> None:
    """Weights of a deconvolution that upsamples: a separable triangle."""
    if tensor.dim() != 4 or tensor.shape[2] != tensor.shape[3]:
        raise LayerError(where, f"bilinear filler on shape {tuple(tensor.shape)}", "it fills 4 axes with a square kernel")
    size = tensor.shape[3]
    half = math.ceil(size / 2)
    centre = (size - 1) / (2 * half)
    axis = 1 - (torch.arange(size, dtype=torch.float32, device=tensor.device) / half - centre).abs()
    tensor.copy_((axis[:, None] * axis[None, :]).expand_as(tensor))


_ALL = constant, uniform, gaussian, positive_unitball, gaussian_unitball, xavier, msra, bilinear
FILLERS = {filler.__name__: filler for filler in _ALL}

"""Initial values of parameters: Caffe's seven fillers, by name.

`fan_in` is count / first axis and `fan_out` count / second axis, as Caffe counts them, whatever the layer's type.
"""

import math

import torch

from caffe.engine import machine
from caffe.errors import LayerError
from caffe.proto import caffe_pb2

NORM = caffe_pb2.FillerParameter


def fill(tensor: torch.Tensor, filler: caffe_pb2.FillerParameter, where: str) -> None:
    """Overwrite `tensor` in place as `filler` says; errors name `where`, the layer."""
    if filler.type not in FILLERS:
        raise LayerError(where, f'unknown filler "{filler.type}"', f"there are {', '.join(sorted(FILLERS))}")
    with torch.no_grad():
        machine.in_numerics(FILLERS[filler.type])(tensor, filler, where)


def constant(tensor: torch.Tensor, filler: caffe_pb2.FillerParameter, where: str) -> None:
    tensor.fill_(filler.value)


def _in_memory_order(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with its axes in the order of memory, in which PyTorch draws numbers several times faster."""
    return tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 and not tensor.is_contiguous() else tensor


def uniform(tensor: torch.Tensor, filler: caffe_pb2.FillerParameter, where: str) -> None:
    _in_memory_order(tensor).uniform_(filler.min, filler.max)


def gaussian(tensor: torch.Tensor, filler: caffe_pb2.FillerParameter, where: str) -> None:
    _in_memory_order(tensor).normal_(filler.mean, filler.std)
    if filler.sparse >= 0:
        # Each output (first axis) keeps `sparse` weights on average.
        keep = min(1.0, filler.sparse / tensor.shape[0])
        tensor.mul_(torch.empty_like(tensor).bernoulli_(keep))


def positive_unitball(tensor: torch.Tensor, filler: caffe_pb2.FillerParameter, where: str) -> None:
    tensor.uniform_(0, 1)
    rows = tensor.view(tensor.shape[0], -1)
    rows.div_(rows.sum(1, keepdim=True))


def _fan(tensor: torch.Tensor, filler: caffe_pb2.FillerParameter) -> float:
    fan_in = tensor.numel() / tensor.shape[0]
    fan_out = tensor.numel() / tensor.shape[1] if tensor.dim() > 1 else tensor.numel()
    return {NORM.AVERAGE: (fan_in + fan_out) / 2, NORM.FAN_OUT: fan_out}.get(filler.variance_norm, fan_in)


def xavier(tensor: torch.Tensor, filler: caffe_pb2.FillerParameter, where: str) -> None:
    """Glorot and Bengio 2010: uniform with variance 1 / fan."""
    limit = math.sqrt(3 / _fan(tensor, filler))
    tensor.uniform_(-limit, limit)


def msra(tensor: torch.Tensor, filler: caffe_pb2.FillerParameter, where: str) -> None:
    """He et al. 2015: normal with variance 2 / fan."""
    tensor.normal_(0, math.sqrt(2 / _fan(tensor, filler)))


def bilinear(tensor: torch.Tensor, filler: caffe_pb2.FillerParameter, where: str) -> None:
    """Weights of a deconvolution that upsamples: a separable triangle."""
    if tensor.dim() != 4 or tensor.shape[2] != tensor.shape[3]:
        raise LayerError(where, f"bilinear filler on shape {tuple(tensor.shape)}", "it fills 4 axes with a square kernel")
    size = tensor.shape[3]
    half = math.ceil(size / 2)
    centre = (size - 1) / (2 * half)
    axis = 1 - (torch.arange(size, dtype=torch.float32, device=tensor.device) / half - centre).abs()
    tensor.copy_((axis[:, None] * axis[None, :]).expand_as(tensor))


FILLERS = {filler.__name__: filler for filler in (constant, uniform, gaussian, positive_unitball, xavier, msra, bilinear)}

"""A learning rate for each parameter by the norms of its values and its gradient (You et al. 2017): Intel's LARS, NVIDIA's LARC.

As in the solvers of intel/caffe (local_lr_auto) and NVIDIA/caffe (larc), the ratio takes the place of lr_mult, the norms are
those of the gradient before decay, and only SGD has it.
"""

import torch

from caffe.errors import SolverError
from caffe.proto.caffe_pb2 import SolverParameter
from caffe.training import policies
from caffe.training.groups import Tensors

_POLICIES = ("scale", "clip")


def check(p: SolverParameter, path: str) -> None:
    """Raise SolverError, which names `path`, for settings that do not go together."""
    if (p.local_lr_auto or p.larc) and p.type != "SGD":
        raise SolverError(path, f"{_named(p)} with type {p.type}", "only SGD has rates by norms", "leave it out, or use SGD")
    if p.local_lr_auto and p.larc:
        raise SolverError(path, "both local_lr_auto and larc", "only one may be given")
    if p.larc_policy not in _POLICIES:
        raise SolverError(path, f'larc_policy "{p.larc_policy}"', f"there are {', '.join(_POLICIES)}")


def _named(p: SolverParameter) -> str:
    return "larc" if p.larc else "local_lr_auto"


def factors(p: SolverParameter, rate: float, iteration: int, values: Tensors, gradients: Tensors) -> list[float]:
    """What to multiply each gradient by, so that one rate serves all parameters.

    local_lr_auto: local_gw_ratio |w| / (|g| + weight_decay |w|). larc: (1 - momentum) larc_eta |w| / |g|, with larc_policy "clip"
    at most 1 when divided by the rate. 1 where a norm is 0.
    """
    momentum = policies.momentum(p, iteration)
    return [_factor(p, rate, momentum, _norm(value), _norm(gradient)) for value, gradient in zip(values, gradients, strict=True)]


def _factor(p: SolverParameter, rate: float, momentum: float, value: float, gradient: float) -> float:
    ratio = 1.0
    if value and gradient and p.larc:
        ratio = (1 - momentum) * p.larc_eta * value / gradient
    elif value and gradient:
        ratio = p.local_gw_ratio * value / (gradient + p.weight_decay * value)
    if p.larc and p.larc_policy == "clip":
        return min(1.0, ratio / rate) if rate else 1.0
    return ratio


def _norm(tensor: torch.Tensor) -> float:
    return float(tensor.square().sum().sqrt())

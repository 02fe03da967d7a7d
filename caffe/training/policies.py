"""Learning-rate policies: the rate of an iteration, from the solver's parameters alone, as BVLC Caffe computes it.

To add a policy, write its function and list it in POLICIES.
"""

import itertools

from caffe.errors import SolverError
from caffe.numerics import scalars
from caffe.numerics.scalars import power
from caffe.proto.caffe_pb2 import SolverParameter


def fixed(p: SolverParameter, iteration: int) -> float:
    """base_lr."""
    return p.base_lr


def step(p: SolverParameter, iteration: int) -> float:
    """base_lr · gamma^floor(iteration / stepsize)."""
    return p.base_lr * power(p.gamma, steps_reached(p, iteration))


def exp(p: SolverParameter, iteration: int) -> float:
    """base_lr · gamma^iteration."""
    return p.base_lr * power(p.gamma, iteration)


def inv(p: SolverParameter, iteration: int) -> float:
    """base_lr · (1 + gamma · iteration)^-power."""
    return p.base_lr * power(1 + p.gamma * iteration, -p.power)


def multistep(p: SolverParameter, iteration: int) -> float:
    """base_lr · gamma^(number of stepvalues reached)."""
    return p.base_lr * power(p.gamma, steps_reached(p, iteration))


def poly(p: SolverParameter, iteration: int) -> float:
    """base_lr · (1 - iteration / max_iter)^power."""
    return p.base_lr * power(1 - iteration / p.max_iter, p.power)


def sigmoid(p: SolverParameter, iteration: int) -> float:
    """base_lr / (1 + e^(-gamma · (iteration - stepsize)))."""
    return p.base_lr / (1 + scalars.exp(-p.gamma * (iteration - p.stepsize)))


POLICIES = {policy.__name__: policy for policy in (fixed, step, exp, inv, multistep, poly, sigmoid)}


def learning_rate(p: SolverParameter, iteration: int) -> float:
    """The rate of an iteration by lr_policy."""
    return POLICIES[p.lr_policy](p, iteration)


def steps_reached(p: SolverParameter, iteration: int) -> int:
    """Number of rate changes by `step` or `multistep` up to an iteration; 0 for the other policies."""
    if p.lr_policy == "step":
        return iteration // p.stepsize
    if p.lr_policy == "multistep":
        return sum(1 for _ in itertools.takewhile(lambda value: value <= iteration, p.stepvalue))
    return 0


def check_policy(p: SolverParameter, path: str) -> None:
    """Raise SolverError, which names `path`, for an unknown lr_policy or one that lacks a parameter."""
    if p.lr_policy not in POLICIES:
        raise SolverError(path, f'lr_policy "{p.lr_policy}"', f"there are {', '.join(POLICIES)}")
    if p.lr_policy == "step" and p.stepsize < 1:
        raise SolverError(path, 'lr_policy "step" without stepsize', do="give stepsize: iterations between steps")

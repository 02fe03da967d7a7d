"""Learning-rate policies: the rate of an iteration, from the solver's parameters alone, as BVLC Caffe computes it.

To add a policy, write its function and list it in POLICIES.
"""

import itertools
import math

from caffe.engine import mode
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
    """base_lr · (1 - iteration / max_iter)^power; with min_lr (NVIDIA/caffe), (base_lr - min_lr) · (…)^power + min_lr."""
    return (p.base_lr - p.min_lr) * power(1 - iteration / p.max_iter, p.power) + p.min_lr


def sigmoid(p: SolverParameter, iteration: int) -> float:
    """base_lr / (1 + e^(-gamma · (iteration - stepsize)))."""
    return p.base_lr / (1 + scalars.exp(-p.gamma * (iteration - p.stepsize)))


def multifixed(p: SolverParameter, iteration: int) -> float:
    """The stagelr of the first stage whose stageiter is not passed, else the last one (yeahkun/caffe-yolo, intel/caffe)."""
    stage = next((number for number, last in enumerate(p.stageiter) if iteration <= last), len(p.stagelr) - 1)
    return float(p.stagelr[stage])


POLICIES = {policy.__name__: policy for policy in (fixed, step, exp, inv, multistep, poly, sigmoid, multifixed)}


PLATEAU = "plateau"
"""The policy of SSD's fork that follows the loss: base_lr · gamma^(number of plateaus so far)."""


def learning_rate(p: SolverParameter, iteration: int, plateaus: int = 0) -> float:
    """The rate of an iteration: by warmup or rampup in the first ones, then by lr_policy, and not below min_lr.

    plateaus  how often the loss has stopped falling, see Plateau
    """
    if iteration < p.warmup_iter:
        return warmed_up(p, iteration)
    if iteration < p.rampup_interval:
        share = iteration / p.rampup_interval
        rate = p.rampup_lr + (p.base_lr - p.rampup_lr) * share * share
    elif p.lr_policy == PLATEAU:
        rate = p.base_lr * power(p.gamma, plateaus)
    else:
        rate = POLICIES[p.lr_policy](p, iteration)
    return max(rate, p.min_lr) if p.HasField("min_lr") else rate


def warmed_up(p: SolverParameter, iteration: int) -> float:
    """Rate in the first warmup_iter iterations (intel/caffe): from warmup_start_lr to base_lr, linearly."""
    iteration = max(iteration, 0)
    return (iteration * p.base_lr + (p.warmup_iter - iteration) * p.warmup_start_lr) / p.warmup_iter


def momentum(p: SolverParameter, iteration: int) -> float:
    """Momentum of SGD: by momentum_policy (NVIDIA/caffe); by a rate that warms up (intel/caffe); else the given one.

    poly: momentum + (max_momentum - momentum) · (iteration / max_iter)^momentum_power. opt: (1 - √rate / 2)², up to max_momentum
    if that is given. While the rate warms up, the given one is multiplied by how much the rate has grown since the iteration
    before; after a rate of 0 it is not, where Intel's divides by 0.
    """
    if p.momentum_policy == "poly":
        return p.momentum + (p.max_momentum - p.momentum) * power(iteration / p.max_iter, p.momentum_power)
    if p.momentum_policy == "opt":
        best = (1 - math.sqrt(learning_rate(p, iteration)) / 2) ** 2
        return min(best, p.max_momentum) if p.HasField("max_momentum") else best
    before = warmed_up(p, iteration - 1) if iteration < p.warmup_iter else 0
    return p.momentum * (warmed_up(p, iteration) / before) if before else p.momentum


def weight_decay(p: SolverParameter, iteration: int) -> float:
    """weight_decay; by weight_decay_policy "poly" (NVIDIA/caffe) on its way to max_weight_decay, as momentum's."""
    if p.weight_decay_policy == "poly":
        return p.weight_decay + (p.max_weight_decay - p.weight_decay) * power(iteration / p.max_iter, p.weight_decay_power)
    return p.weight_decay


def steps_reached(p: SolverParameter, iteration: int) -> int:
    """Number of rate changes by `step` or `multistep` up to an iteration; 0 for the other policies."""
    if p.lr_policy == "step":
        return iteration // p.stepsize
    if p.lr_policy == "multistep":
        return sum(1 for _ in itertools.takewhile(lambda value: value <= iteration, p.stepvalue))
    return 0


def check_policy(p: SolverParameter, path: str) -> None:
    """Raise SolverError, which names `path`, for unknown policies, or some that lack a parameter."""
    if p.lr_policy not in (*POLICIES, PLATEAU):
        raise SolverError(path, f'lr_policy "{p.lr_policy}"', f"there are {', '.join((*POLICIES, PLATEAU))}")
    if p.lr_policy == PLATEAU and mode.solver_count() > 1:
        raise SolverError(path, 'lr_policy "plateau" with several processes', "each sees a loss of its own", "use multistep")
    if p.lr_policy == "step" and p.stepsize < 1:
        raise SolverError(path, 'lr_policy "step" without stepsize', do="give stepsize: iterations between steps")
    if p.lr_policy == "multifixed" and not len(p.stagelr) == len(p.stageiter) > 0:
        found = f"{len(p.stagelr)} values of stagelr and {len(p.stageiter)} of stageiter"
        raise SolverError(path, found, "give both for each stage")
    if p.min_lr < 0 or (p.lr_policy == "poly" and p.min_lr > p.base_lr):
        raise SolverError(path, f"min_lr {p.min_lr:g}", "it must be at least 0, and with poly at most base_lr")
    _check_momentum_and_decay(p, path)


def _check_momentum_and_decay(p: SolverParameter, path: str) -> None:
    for field, known in (("momentum_policy", ("fixed", "poly", "opt")), ("weight_decay_policy", ("fixed", "poly"))):
        if (policy := getattr(p, field)) not in known:
            raise SolverError(path, f'{field} "{policy}"', f"there are {', '.join(known)}")
        if policy == "poly" and p.max_iter < 1:
            raise SolverError(path, f'{field} "poly" without max_iter', do="give max_iter")
    if p.momentum_policy != "fixed" and (p.type != "SGD" or p.lr_policy == PLATEAU):
        found = f'momentum_policy "{p.momentum_policy}" with type {p.type} and lr_policy "{p.lr_policy}"'
        raise SolverError(path, found, "only SGD has one, and not with plateau", "leave it out")

"""The update rules, each as in BVLC Caffe: the learning rate is inside the history.

In the formulas g is the gradient with decay, r the rate times lr_mult, m the momentum, and h the history.
"""

import math
import os

import torch

from caffe.errors import SolverError
from caffe.formats import prototxt
from caffe.numerics import scalars
from caffe.proto import caffe_pb2
from caffe.training import policies
from caffe.training.groups import Tensors
from caffe.training.solver import Solver
from caffe.training.updates import Rate


class SGDSolver(Solver, is_capturable=True, has_kernel=True):
    """h = m h + r g; subtracts h."""

    type = "SGD"

    def momentum(self) -> float:
        return policies.momentum(self.param, self.iter)

    def update(self, gradients: Tensors, histories: list[Tensors], rate: Rate) -> Tensors:
        torch._foreach_mul_(histories[0], self.momentum())
        _add(histories[0], gradients, rate)
        return histories[0]


class NesterovSolver(Solver, is_capturable=True, has_kernel=True):
    """h' = m h + r g; subtracts (1 + m) h' - m h."""

    type = "Nesterov"

    def update(self, gradients: Tensors, histories: list[Tensors], rate: Rate) -> Tensors:
        momentum = self.momentum()
        updates = torch._foreach_mul(histories[0], -momentum)
        torch._foreach_mul_(histories[0], momentum)
        _add(histories[0], gradients, rate)
        torch._foreach_add_(updates, histories[0], alpha=1 + momentum)
        return updates


class AdaGradSolver(Solver, is_capturable=True, has_kernel=True):
    """h = h + g²; subtracts r g / (√h + delta) (Duchi et al. 2011)."""

    type = "AdaGrad"
    has_momentum = False

    def update(self, gradients: Tensors, histories: list[Tensors], rate: Rate) -> Tensors:
        torch._foreach_addcmul_(histories[0], gradients, gradients)
        return _scaled(gradients, histories[0], self.param.delta, rate)


class RMSPropSolver(Solver, is_capturable=True, has_kernel=True):
    """h = rms_decay h + (1 - rms_decay) g²; subtracts r g / (√h + delta) (Tieleman and Hinton 2012)."""

    type = "RMSProp"
    has_momentum = False

    def _check(self) -> None:
        super()._check()
        if not 0 <= self.param.rms_decay < 1:
            raise SolverError(self.path, f"rms_decay {self.param.rms_decay:g}", "it must be at least 0 and below 1")

    def update(self, gradients: Tensors, histories: list[Tensors], rate: Rate) -> Tensors:
        _mean_square(histories[0], gradients, self.param.rms_decay)
        return _scaled(gradients, histories[0], self.param.delta, rate)


class AdaDeltaSolver(Solver, is_capturable=True, has_kernel=True):
    """h = m h + (1 - m) g²; u = g √((delta + k) / (delta + h)); k = m k + (1 - m) u²; subtracts r u (Zeiler 2012)."""

    type = "AdaDelta"
    histories = 2

    def update(self, gradients: Tensors, histories: list[Tensors], rate: Rate) -> Tensors:
        momentum, delta = self.momentum(), self.param.delta
        of_gradients, of_updates = histories
        _mean_square(of_gradients, gradients, momentum)
        scales = torch._foreach_add(of_updates, delta)
        torch._foreach_div_(scales, torch._foreach_add(of_gradients, delta))
        torch._foreach_sqrt_(scales)
        torch._foreach_mul_(gradients, scales)
        _mean_square(of_updates, gradients, momentum)
        torch._foreach_mul_(gradients, rate)
        return gradients


class AdamSolver(Solver, is_capturable=True, has_kernel=True):
    """h = m h + (1 - m) g; k = m2 k + (1 - m2) g²; subtracts r √(1 - m2^t) / (1 - m^t) · h / (√k + delta) (Kingma and Ba 2015).

    t counts iterations from 1.
    """

    type = "Adam"
    histories = 2

    def update(self, gradients: Tensors, histories: list[Tensors], rate: Rate) -> Tensors:
        first, second = histories
        momentum = self.momentum()
        torch._foreach_mul_(first, momentum)
        torch._foreach_add_(first, gradients, alpha=1 - momentum)
        _mean_square(second, gradients, self.param.momentum2)
        return _scaled(torch._foreach_mul(first, 1.0), second, self.param.delta, rate)

    def rate_factor(self) -> float:
        t = self.iter + 1
        return math.sqrt(1 - scalars.power(self.param.momentum2, t)) / (1 - scalars.power(self.momentum(), t))


def _add(sums: Tensors, values: Tensors, rate: Rate) -> None:
    """sums = sums + rate · values, in place; `values` are changed where the rate is a tensor."""
    if isinstance(rate, float):
        torch._foreach_add_(sums, values, alpha=rate)
    else:
        torch._foreach_mul_(values, rate)
        torch._foreach_add_(sums, values)


def _mean_square(means: Tensors, values: Tensors, momentum: float) -> None:
    """means = momentum · means + (1 - momentum) · values², in place."""
    torch._foreach_mul_(means, momentum)
    torch._foreach_addcmul_(means, values, values, value=1 - momentum)


def _scaled(values: Tensors, squares: Tensors, delta: float, rate: Rate) -> Tensors:
    """rate · values / (√squares + delta), in place."""
    roots = torch._foreach_sqrt(squares)
    torch._foreach_add_(roots, delta)
    torch._foreach_div_(values, roots)
    torch._foreach_mul_(values, rate)
    return values


_TYPES = {solver.type: solver for solver in (SGDSolver, NesterovSolver, AdaGradSolver, RMSPropSolver, AdaDeltaSolver, AdamSolver)}


def get_solver(solver_file: os.PathLike[str] | str, param: caffe_pb2.SolverParameter | None = None) -> Solver:
    """A solver of the type that a solver prototxt names; `param` replaces the content of the file."""
    path = os.fsdecode(solver_file)
    param = param or prototxt.read_solver(path)
    if param.type not in _TYPES:
        raise SolverError(path, f'unknown solver type "{param.type}"', f"there are {', '.join(_TYPES)}")
    return _TYPES[param.type](path, param)

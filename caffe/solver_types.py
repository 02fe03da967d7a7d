"""The update rules, each as BVLC Caffe has it: the learning rate is inside the history.

In the formulas g is the gradient with decay, r the rate times lr_mult, m the momentum, h the history, and the result is what is
subtracted from the parameter.
"""

from __future__ import annotations

from caffe import prototxt
from caffe.errors import SolverError
from caffe.proto import caffe_pb2
from caffe.solver import Solver


class SGDSolver(Solver):
    """h = m h + r g; subtracts h."""

    type = "SGD"

    def update(self, gradient, history, rate):
        return history[0].mul_(self.param.momentum).add_(gradient, alpha=rate)


class NesterovSolver(Solver):
    """h' = m h + r g; subtracts (1 + m) h' - m h."""

    type = "Nesterov"

    def update(self, gradient, history, rate):
        momentum = self.param.momentum
        before = history[0].clone()
        after = history[0].mul_(momentum).add_(gradient, alpha=rate)
        return before.mul_(-momentum).add_(after, alpha=1 + momentum)


class AdaGradSolver(Solver):
    """h = h + g²; subtracts r g / (√h + delta) (Duchi et al. 2011)."""

    type = "AdaGrad"

    def _check(self):
        super()._check()
        if self.param.momentum:
            raise SolverError(self.path, f"momentum {self.param.momentum:g} with AdaGrad", "AdaGrad has none", "leave it out")

    def update(self, gradient, history, rate):
        history[0].addcmul_(gradient, gradient)
        return gradient.div_(history[0].sqrt().add_(self.param.delta)).mul_(rate)


class RMSPropSolver(Solver):
    """h = rms_decay h + (1 - rms_decay) g²; subtracts r g / (√h + delta) (Tieleman and Hinton 2012)."""

    type = "RMSProp"

    def _check(self):
        super()._check()
        if self.param.momentum:
            raise SolverError(self.path, f"momentum {self.param.momentum:g} with RMSProp", "RMSProp has none", "leave it out")
        if not 0 <= self.param.rms_decay < 1:
            raise SolverError(self.path, f"rms_decay {self.param.rms_decay:g}", "it lies between 0 and 1")

    def update(self, gradient, history, rate):
        decay = self.param.rms_decay
        history[0].mul_(decay).addcmul_(gradient, gradient, value=1 - decay)
        return gradient.div_(history[0].sqrt().add_(self.param.delta)).mul_(rate)


class AdaDeltaSolver(Solver):
    """h = m h + (1 - m) g²; u = g √((delta + k) / (delta + h)); k = m k + (1 - m) u²; subtracts r u (Zeiler 2012)."""

    type = "AdaDelta"
    histories = 2

    def update(self, gradient, history, rate):
        momentum, delta = self.param.momentum, self.param.delta
        squares, updates = history
        squares.mul_(momentum).addcmul_(gradient, gradient, value=1 - momentum)
        update = gradient.mul_(updates.add(delta).div_(squares.add(delta)).sqrt_())
        updates.mul_(momentum).addcmul_(update, update, value=1 - momentum)
        return update.mul_(rate)


class AdamSolver(Solver):
    """h = m h + (1 - m) g; k = m2 k + (1 - m2) g²; subtracts r √(1 - m2^t) / (1 - m^t) · h / (√k + delta) (Kingma and Ba 2015).

    t counts iterations from 1.
    """

    type = "Adam"
    histories = 2

    def update(self, gradient, history, rate):
        first, second = history
        momentum, momentum2 = self.param.momentum, self.param.momentum2
        first.mul_(momentum).add_(gradient, alpha=1 - momentum)
        second.mul_(momentum2).addcmul_(gradient, gradient, value=1 - momentum2)
        t = self.iter + 1
        correction = (1 - momentum2**t) ** 0.5 / (1 - momentum**t)
        return first.div(second.sqrt().add_(self.param.delta)).mul_(rate * correction)


_TYPES = {solver.type: solver for solver in (SGDSolver, NesterovSolver, AdaGradSolver, RMSPropSolver, AdaDeltaSolver, AdamSolver)}


def get_solver(solver_file: str, param: caffe_pb2.SolverParameter | None = None) -> Solver:
    """The solver of the type that a solver prototxt names; `param` replaces what stands in the file."""
    param = param or prototxt.read_solver(str(solver_file))
    if param.type not in _TYPES:
        raise SolverError(str(solver_file), f'unknown solver type "{param.type}"', f"there are {', '.join(_TYPES)}")
    return _TYPES[param.type](solver_file, param)

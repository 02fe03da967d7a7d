"""What a solver's update of a group of parameters computes, for the kernel that does it (`caffe.kernels.update`)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """An update rule and its numbers, as in a SolverParameter.

    name    the solver's type: SGD, Nesterov, AdaGrad, RMSProp, AdaDelta or Adam
    scale   factor of all gradients
    decay   factor of the penalty: of the parameters for L2, of their signs for L1
    """

    name: str
    scale: float
    decay: float
    is_l1: bool
    momentum: float
    momentum2: float
    rms_decay: float
    delta: float

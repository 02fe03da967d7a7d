"""What a solver's update of a group of parameters computes, for the kernel that does it (`caffe.kernels.update`)."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

TOGETHER = 4
"""Values that a thread of a GPU reads at once, where their number in each tensor can be divided by it."""


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


def are_plain(values: Iterable[Tensor]) -> bool:
    """Whether the kernel takes parameters, gradients and histories: they are in a row, and float32."""
    return all(each.dtype is torch.float32 and each.is_contiguous() for each in values)

"""A solver's update of a group of parameters as one kernel: parameters, gradients and histories are read and written once.

The rules are those of `caffe.training.solver_types`.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from caffe.kernels.launching import blocks, kernel, launch
from caffe.kernels.rules import TOGETHER, Rule, are_plain
from caffe.transfers import upload

RULES = {"SGD": 0, "Nesterov": 1, "AdaGrad": 2, "RMSProp": 3, "AdaDelta": 4, "Adam": 5}
BLOCK = 2048
ALIGNED = 4 * TOGETHER
"""Bytes that a thread reads at once."""


@triton.jit
def _values(addresses, row, tensors, tensor, IS_ALIGNED: tl.constexpr):
    """Where a tensor's values begin; `addresses` has a row for the parameters, for the gradients, and for each history."""
    values = tl.load(addresses + row * tensors + tensor).to(tl.pointer_type(tl.float32))
    if IS_ALIGNED:
        values = tl.multiple_of(values, 16)
    return values


@triton.jit
def _update(
    addresses, counts, pieces, rate, tensors, scale, decay, first, rest_of_first, second, rest_of_second, delta,
    RULE: tl.constexpr, HAS_SCALE: tl.constexpr, PENALTY: tl.constexpr, IS_ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A piece of one tensor: its tensor's number and its number in it are in `pieces`."""
    tensor = tl.load(pieces + 2 * tl.program_id(0))
    at = tl.load(pieces + 2 * tl.program_id(0) + 1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < tl.load(counts + tensor)
    if IS_ALIGNED:
        there = tl.max_constancy(there, [4])  # so that four values are read at once
    parameters = _values(addresses, 0, tensors, tensor, IS_ALIGNED) + at
    gradients = _values(addresses, 1, tensors, tensor, IS_ALIGNED) + at
    histories = _values(addresses, 2, tensors, tensor, IS_ALIGNED) + at
    parameter = tl.load(parameters, there)
    gradient = tl.load(gradients, there)
    history = tl.load(histories, there)
    r = tl.load(rate)
    if HAS_SCALE:
        gradient *= scale
    if PENALTY == 2:
        gradient += decay * parameter
    elif PENALTY == 1:
        gradient += decay * ((parameter > 0).to(tl.float32) - (parameter < 0).to(tl.float32))
    if RULE == 0:
        history = first * history + r * gradient
        subtracted = history
    elif RULE == 1:
        before = first * history
        history = before + r * gradient
        subtracted = (1.0 + first) * history - before
    elif RULE == 2:
        history += gradient * gradient
        subtracted = r * tl.div_rn(gradient, tl.sqrt_rn(history) + delta)
    elif RULE == 3:
        history = second * history + rest_of_second * (gradient * gradient)
        subtracted = r * tl.div_rn(gradient, tl.sqrt_rn(history) + delta)
    else:
        others = _values(addresses, 3, tensors, tensor, IS_ALIGNED) + at
        other = tl.load(others, there)
        if RULE == 4:
            history = first * history + rest_of_first * (gradient * gradient)
            step = gradient * tl.sqrt_rn(tl.div_rn(other + delta, history + delta))
            other = first * other + rest_of_first * (step * step)
            subtracted = r * step
        else:
            history = first * history + rest_of_first * gradient
            other = second * other + rest_of_second * (gradient * gradient)
            subtracted = r * tl.div_rn(history, tl.sqrt_rn(other) + delta)
        tl.store(others, other, there)
    tl.store(parameters, parameter - subtracted, there)
    tl.store(histories, history, there)
    if RULE != 0:
        tl.store(gradients, subtracted, there)


@kernel(
    "(Tensor(a!)[] values, Tensor addresses, Tensor counts, Tensor pieces, Tensor rate, int rule, float scale, float decay, "
    "int penalty, float first, float second, float delta, bool is_aligned) -> ()",
    lambda values, *_: are_plain(values),
)
def update(
    values: Sequence[Tensor], addresses: Tensor, counts: Tensor, pieces: Tensor, rate: Tensor, rule: int, scale: float,
    decay: float, penalty: int, first: float, second: float, delta: float, is_aligned: bool,
) -> None:  # fmt: skip
    """Change all `values`: parameters, gradients and histories, whose addresses, counts and pieces are on the GPU, too."""
    numbers = scale, decay, first, 1 - first, second, 1 - second, delta
    constants = {"RULE": rule, "HAS_SCALE": scale != 1, "PENALTY": penalty if decay else 0, "IS_ALIGNED": is_aligned}
    given = addresses, counts, pieces, rate, addresses.shape[1], *numbers
    launch(_update, len(pieces), rate, *given, **constants, BLOCK=BLOCK, warps=8)


class Fused:
    """Updates one group's parameters; remembers where they, their gradients and histories lie."""

    def __init__(self, device: torch.device):
        self._device = device
        self._places: list[int] = []
        self._addresses = torch.empty(0)
        self._counts: list[int] = []
        self._pieces: tuple[Tensor, Tensor] | None = None

    def __call__(
        self, rule: Rule, data: Sequence[Tensor], gradients: Sequence[Tensor], histories: Sequence[Sequence[Tensor]], rate: Tensor
    ) -> Sequence[Tensor]:
        """Change parameters and histories, and perhaps gradients; returns what is subtracted. rate is a number on the GPU."""
        values = [*data, *gradients, *(each for history in histories for each in history)]
        places, counts = [each.data_ptr() for each in values], [each.numel() for each in data]
        if self._pieces is None or counts != self._counts:
            self._counts, self._pieces = counts, self._cut(counts)
        if places != self._places:
            self._places, self._addresses = places, upload(torch.tensor(places).view(-1, len(counts)), self._device)
        is_aligned = all(place % ALIGNED == 0 for place in places) and all(count % TOGETHER == 0 for count in counts)
        second = rule.rms_decay if rule.name == "RMSProp" else rule.momentum2
        numbers = RULES[rule.name], rule.scale, rule.decay, 1 if rule.is_l1 else 2, rule.momentum, second, rule.delta
        increment_version(data)
        update.compute(values, self._addresses, *self._pieces, rate, *numbers, is_aligned)
        return histories[0] if rule.name == "SGD" else gradients

    def _cut(self, counts: list[int]) -> tuple[Tensor, Tensor]:
        """Each tensor's number of values, and the pieces of all: a tensor's number, and the piece's number in it; on the GPU."""
        pieces = [(tensor, piece) for tensor, count in enumerate(counts) for piece in range(blocks(count, BLOCK))]
        tables = torch.tensor(counts), torch.tensor(pieces, dtype=torch.int32).view(-1, 2)
        return upload(tables[0], self._device), upload(tables[1], self._device)

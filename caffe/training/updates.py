"""A solver's update of all parameters: computed, or on a GPU replayed as a CUDA graph.

It is some ten operations on all parameters at once, whose starts take the host longer than the GPU takes for those of a small
net. What changes from iteration to iteration, the rates, are numbers on the GPU, which a graph reads.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from caffe import events, kernels
from caffe.engine import cuda_graphs, machine, mode
from caffe.kernels.rules import TOGETHER, Rule, are_plain
from caffe.training.groups import Group, Tensors

Rate = float | Tensor
Change = Callable[[Group, Tensors, Rate], Tensors]


TRIED = 4096
"""Values of each parameter on which a kernel is tried, about: it is another variant where TOGETHER does not divide them."""


@dataclass
class _Captured:
    """An update as a graph, and what that subtracts from the parameters of each group."""

    graph: torch.cuda.CUDAGraph
    updates: list[Tensors]


class Updates:
    """The updates of a solver's groups.

    change  changes a group's parameters and histories by its gradients and a rate; returns what it has subtracted
    rule    what it computes for a group, where a GPU has a kernel for that; else None
    """

    def __init__(self, groups: Sequence[Group], change: Change, device: torch.device, rule: Callable[[Group], Rule | None]):
        self._groups, self._change, self._device, self._rule = groups, change, device, rule
        self._kernels: dict[int, Any] = {}
        """The kernel of each group, by its number."""
        self._tries = cuda_graphs.TRIES if cuda_graphs.are_used(device) else 0
        self._rates: list[Tensor] = []
        self._computed = self._replays = 0
        self._circumstances: list[object] = []
        """What must be the same for a replay."""
        self._captured: _Captured | None = None

    def apply(self, rates: Sequence[float], constants: object) -> None:
        """Change the parameters of all groups, and let their diffs show what was subtracted.

        rates      one for each group
        constants  whatever else `change` reads; None if that is not known, or has to be fetched from the GPU
        """
        for group in self._groups:
            group.arrange()
        gradients = [group.gradients() for group in self._groups]
        if self._device.type == "cuda" and mode.numerics() != "reproducible":
            updates = self._on_gpu(gradients, rates, constants)
        else:
            updates = self._compute(gradients, rates)
        for group, subtracted in zip(self._groups, updates, strict=True):
            group.show_updates(subtracted)

    def _compute(self, gradients: Sequence[Tensors], rates: Sequence[Rate]) -> list[Tensors]:
        given = zip(self._groups, gradients, rates, strict=True)
        return [self._updated(number, *each) for number, each in enumerate(given)]

    def _updated(self, number: int, group: Group, gradients: Tensors, rate: Rate) -> Tensors:
        """Change a group, by a kernel where there is one; returns what is subtracted."""
        rule = self._rule(group) if isinstance(rate, Tensor) and machine.has_kernels(self._device) else None
        # Several GPUs have to change their copies of the parameters by the same operations.
        if rule is None or mode.solver_count() > 1 or not are_plain(_flat([group.data, gradients, *group.histories])):
            return self._change(group, gradients, rate)

        def by_kernel(given: _Given) -> Tensors:
            from caffe.kernels.update import Fused  # which imports Triton

            group, gradients = given
            if number not in self._kernels:
                self._kernels[number] = Fused(self._device)
            subtracted: Tensors = self._kernels[number](rule, group.data, gradients, group.histories, rate)
            return subtracted

        def by_pytorch(given: _Given) -> Tensors:
            return self._change(*given, rate)

        given = group, gradients
        variant = rule.is_l1, rule.decay != 0, rule.scale != 1, [each.numel() % TOGETHER == 0 for each in group.data]
        key = f"update.{rule.name}", self._device, str(variant)
        return kernels.choose(key, given, _drawn, by_kernel, by_pytorch, _results)

    def _on_gpu(self, gradients: Sequence[Tensors], rates: Sequence[float], constants: object) -> list[Tensors]:
        """The update with rates on the GPU, so that its numbers do not depend on whether it is replayed."""
        self._rates = self._rates or [torch.zeros((), device=self._device) for _ in rates]
        for kept, rate in zip(self._rates, rates, strict=True):
            kept.fill_(rate)
        if constants is None or not (self._tries or self._captured):
            return self._compute(gradients, self._rates)
        circumstances = [constants, mode.numerics(), *(group.orders for group in self._groups), _places(gradients)]
        is_same, self._circumstances = circumstances == self._circumstances, circumstances
        if not is_same:
            self._captured = None
        if self._captured:
            self._captured.graph.replay()
            self._replays += 1
            if self._replays % cuda_graphs.WORTH == 0:
                self._tries = cuda_graphs.TRIES
            increment_version([values for group in self._groups for values in group.data])
            return self._captured.updates
        self._computed += 1
        if self._tries and is_same and self._computed > cuda_graphs.FIRST and cuda_graphs.may_capture(self._device):
            return self._capture(gradients)
        return self._compute(gradients, self._rates)

    def _capture(self, gradients: Sequence[Tensors]) -> list[Tensors]:
        """Compute the update, and capture it if a replay gives the same to the bit."""
        self._tries -= 1
        state = [*_flat(gradients), *_flat(values for group in self._groups for values in (group.data, *group.histories))]
        before, after, updates = None, None, None
        try:
            before = _clones(state)
            updates = self._compute(gradients, self._rates)
            after = _clones([*state, *_flat(updates)])
            if _are_same(before, after[: len(state)]):
                return updates  # a graph without operations would give that, too
            _put(before, state)
            with cuda_graphs.NoWaiting():  # type: ignore[no-untyped-call] # PyTorch lacks the types
                self._compute(gradients, self._rates)
            _put(before, state)
            graph = torch.cuda.CUDAGraph()
            with cuda_graphs.captured_in(graph, self._device):
                replayed = self._compute(gradients, self._rates)
            graph.replay()
            if not _are_same([*state, *_flat(replayed)], after):
                raise RuntimeError("replayed, it gives other parameters")
            self._captured = _Captured(graph, replayed)
        except Exception as error:  # computing has not raised it, or raises it again
            self._tries = 0
            events.update_not_captured(cuda_graphs.reason(error))
            replayed = []
        if self._captured:
            return replayed
        if updates is None:
            if before is not None:
                _put(before, state)
            return self._compute(gradients, self._rates)
        if after is not None:
            _put(after[: len(state)], state)
        return updates


_Given = tuple[Group, Tensors]


def _drawn(given: _Given) -> _Given:
    """A part of a group, with other values, and gradients for it: the same each time."""
    group, gradients = given
    random = torch.Generator().manual_seed(kernels.SEED)

    def draw(tensors: Tensors) -> list[Tensor]:
        sizes = [min(each.numel(), TRIED + each.numel() % TOGETHER) for each in tensors]
        return [torch.randn(size, generator=random).to(each.device) for size, each in zip(sizes, tensors, strict=True)]

    histories: list[Tensors] = [[each.abs() for each in draw(history)] for history in group.histories]  # of squares
    return replace(group, data=draw(group.data), histories=histories), draw(gradients)


def _results(given: _Given, subtracted: Tensors) -> list[Tensor]:
    return [*subtracted, *given[0].data, *_flat(given[0].histories)]


def _flat(groups: Iterable[Tensors]) -> list[Tensor]:
    return [each for group in groups for each in group]


def _places(gradients: Sequence[Tensors]) -> list[object]:
    """Where gradients lie in memory, and how."""
    return [(each.data_ptr(), each.stride()) for each in _flat(gradients)]


def _clones(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [each.clone() for each in tensors]


def _put(values: Iterable[Tensor], tensors: Iterable[Tensor]) -> None:
    for value, tensor in zip(values, tensors, strict=True):
        tensor.copy_(value)


def _are_same(first: Iterable[Tensor], second: Iterable[Tensor]) -> bool:
    """Whether all have the same bits, those of NaN too."""
    return all(torch.equal(mine.view(torch.int32), other.view(torch.int32)) for mine, other in zip(first, second, strict=True))

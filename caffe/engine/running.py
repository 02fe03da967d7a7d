"""Running sums of statistics, which all layers of a pass add to at once."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Added:
    """What a layer's forward pass adds to its running sums: each becomes kept · sum + value."""

    sums: list[Tensor]
    values: list[Tensor]
    kept: float


@torch.no_grad()
def add(layers: Iterable[Added]) -> None:
    """Add what the layers of a pass have to add, in two operations; layers that share sums add to them one after the other."""
    sums: list[Tensor] = []
    values: list[Tensor] = []
    kept: list[float] = []
    for each in layers:
        if {total.data_ptr() for total in sums} & {total.data_ptr() for total in each.sums}:
            _add(sums, values, kept)
            sums, values, kept = [], [], []
        sums += each.sums
        values += each.values
        kept += [each.kept] * len(each.sums)
    if sums:
        _add(sums, values, kept)


def _add(sums: list[Tensor], values: list[Tensor], kept: list[float]) -> None:
    torch._foreach_mul_(sums, kept)
    torch._foreach_add_(sums, values)

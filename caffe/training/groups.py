"""The parameters that a solver updates, in groups with equal multipliers, and the history of its update rule."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from caffe import events
from caffe.engine.executor import laid_out_as
from caffe.engine.parameter import Parameter

Tensors = list[torch.Tensor] | tuple[torch.Tensor, ...]


@dataclass
class Group:
    """Parameters with equal multipliers, and their histories.

    `data`, each of `histories` and the result of `gradients()` hold a tensor for each parameter with its axes in the order of
    memory, so that an update is one pass over memory whatever the layout.
    """

    lr_mult: float
    decay_mult: float
    blobs: list[Parameter]
    remembered: list[list[torch.Tensor]]
    data: Tensors = field(default_factory=list)
    histories: list[Tensors] = field(default_factory=list)
    orders: list[int] = field(default_factory=list)
    turned: list[bool] = field(default_factory=list)
    """Which parameters are channels-last."""

    def arrange(self) -> None:
        """Follow parameters whose memory has moved, and take back what was written into copies on the host."""
        for blob in self.blobs:
            blob.memory.data.fetch()
        orders = [blob.memory.order for blob in self.blobs]
        if orders == self.orders:
            return
        self.orders = orders
        self.turned = [not blob.leaf.is_contiguous() for blob in self.blobs]
        for history in self.remembered:
            for memory, blob in zip(history, self.blobs, strict=True):
                memory.data = laid_out_as(memory, blob.tensor)
        self.data = self._in_memory_order(blob.tensor for blob in self.blobs)
        self.histories = [self._in_memory_order(history) for history in self.remembered]

    def gradients(self) -> Tensors:
        """The parameters' gradients; zeros for those that have none."""
        return self._in_memory_order(blob.gradient_or_zeros() for blob in self.blobs)

    def show_updates(self, updates: Tensors) -> None:
        """Let the parameters' diffs show what has been subtracted."""
        for blob, update, turned in zip(self.blobs, updates, self.turned, strict=True):
            blob.memory.show_update(update.permute(0, 3, 1, 2) if turned else update)

    def _in_memory_order(self, tensors: Iterable[torch.Tensor]) -> Tensors:
        return [tensor.permute(0, 2, 3, 1) if turned else tensor for tensor, turned in zip(tensors, self.turned, strict=True)]


class Groups:
    """All parameters of a net; those that are not frozen are in groups, each of which one operation updates.

    parameters  those of `net.learnable_params()`
    histories   number of arrays of a parameter's shape that the rule keeps for it
    history     an array for each parameter, then, for rules with two histories, a second one for each
    """

    def __init__(self, parameters: list[Parameter], histories: int):
        self._owners = parameters * histories
        self.history = [_empty_history(blob) for blob in self._owners]
        self._frozen = [blob for blob in parameters if not blob.lr_mult]
        self._with_gradient = [blob for blob in parameters if blob.has_gradient]
        groups: dict[tuple[float, float], Group] = {}
        for index, blob in enumerate(parameters):
            if blob.lr_mult:
                key = (blob.lr_mult, blob.decay_mult)
                group = groups.setdefault(key, Group(*key, [], [[] for _ in range(histories)]))
                group.blobs.append(blob)
                for part in range(histories):
                    group.remembered[part].append(self.history[part * len(parameters) + index])
        self.groups = list(groups.values())

    def load_history(self, arrays: Iterable[torch.Tensor]) -> None:
        """Replace `history`; that of frozen parameters stays 0."""
        for mine, values, blob in zip(self.history, arrays, self._owners, strict=True):
            if blob.lr_mult:
                mine.copy_(values.view(mine.shape))

    def clip_gradients(self, limit: float) -> None:
        """Scale all gradients down so that their L2 norm is at most `limit`."""
        gradients = [blob.gradient_or_zeros() for blob in self._with_gradient]
        norm = float(torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt())
        if norm > limit:
            scale = limit / norm
            events.gradients_clipped(norm, limit, scale)
            for gradient in gradients:
                gradient.mul_(scale)

    def clear_frozen(self) -> None:
        """Set the gradients of frozen parameters to 0: after an update, a diff is what was subtracted."""
        for blob in self._frozen:
            blob.gradient = None


def _empty_history(blob: Parameter) -> torch.Tensor:
    """Zeros of a parameter's shape and layout; a single repeated zero if it is frozen."""
    if blob.lr_mult:
        return torch.zeros_like(blob.tensor)
    return torch.zeros((), device=blob.device).expand(blob.shape)

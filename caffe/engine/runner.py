"""Run a net's passes: all layers at once, or one by one for callbacks or debug_info."""

from __future__ import annotations

import functools
import operator
from collections import defaultdict
from collections.abc import Callable

import torch

from caffe.engine import debug, machine
from caffe.engine.executor import Executor
from caffe.engine.plan import BuiltNet


class Runner:
    """Runs passes of a net from any layer to any layer, given by their indices, both included.

    debug_info  log mean magnitudes of each layer's values and gradients
    callbacks   {"before_forward", "after_backward" …: functions to call with a layer's index}
    """

    def __init__(self, net: BuiltNet):
        self._net = net
        self._executor = Executor(net)
        self._last = len(net.steps) - 1
        self.debug_info = net.definition.debug_info
        self.callbacks: defaultdict[str, list[Callable[[int], object]]] = defaultdict(list)
        self._diffs = [blob.diff_side for blob in net.blobs.values()]
        passing = [name for name, needs in net.blob_needs_backward.items() if needs and not net.blob_loss_weights.get(name)]
        self._passing = [net.blobs[name].diff_side for name in passing]
        self._shows_training = False
        """Whether diffs of blobs are kept in the pass that runs."""

    def follow(self, leader: Runner) -> None:
        """Keep images in memory as another net does, whose parameters are this net's."""
        self._executor.follow(leader._executor)

    def forward(self, first: int, last: int) -> None:
        """Compute the tops of layers `first` to `last`."""
        if not self._is_watched("forward"):
            self._executor.forward(first, last)
            return
        for index in range(first, last + 1):
            self._call("before_forward", index)
            self._executor.forward(index, index)
            if self.debug_info:
                debug.log_forward(self._net.steps[index].layer, self._net.blobs)
            self._call("after_forward", index)

    def backward(self, last: int, first: int) -> None:
        """Compute gradients through layers `last` down to `first`."""
        if not self._is_watched("backward"):
            self._executor.backward(last, first)
            return
        for index in range(last, first - 1, -1):
            self._call("before_backward", index)
            self._executor.backward(index, index)
            if self.debug_info:
                step = self._net.steps[index]
                debug.log_backward(step.layer, step.propagates, self._net.blobs)
            self._call("after_backward", index)
        if self.debug_info and first == 0:
            debug.log_parameters(blob for step in self._net.steps for blob in step.layer.blobs if blob.owner is blob)

    def forward_loss(self) -> torch.Tensor:
        """One full forward pass, to be followed by `backward_params`; the weighted sum of all losses, as a scalar tensor."""
        callbacks = self.callbacks.values()
        self._shows_training = self.debug_info or any(callbacks) or any(side.seen for side in self._diffs)
        if self._shows_training:
            self._executor.forget_captured()
            self.forward(0, self._last)
        else:
            self._executor.train_forward()
        return self._loss()

    @machine.in_numerics
    def _loss(self) -> torch.Tensor:
        losses = [(self._net.blobs[name].tensor, weight) for name, weight in self._net.blob_loss_weights.items() if weight]
        # A copy, as the next pass may overwrite the blob.
        terms = [value.clone() if value.dim() == 0 and weight == 1 else value.sum() * weight for value, weight in losses]
        return functools.reduce(operator.add, terms) if terms else torch.zeros(())

    def backward_params(self) -> None:
        """One full backward pass for the parameters; other blobs' diffs are kept only if some `diff` was read before.

        Raises what the forward pass has found out on a GPU, where nobody has waited for it.
        """
        if self._shows_training:
            self.backward(self._last, 0)
        else:
            self._executor.train_backward()
            for side in self._passing:
                side.forgotten = True
        self.check_deferred()

    def check_deferred(self) -> None:
        """Raise the errors that a GPU has found in the values of the passes before, such as labels out of range."""
        self._executor.check_deferred()

    def loss_of(self, first: int, last: int) -> float:
        """The weighted sum of the losses that layers `first` to `last` have computed."""
        names = dict.fromkeys(name for step in self._net.steps[first : last + 1] for name in step.tops)
        weights = self._net.blob_loss_weights
        return sum(float(self._net.blobs[name].tensor.sum()) * weights[name] for name in names if weights[name])

    def _is_watched(self, direction: str) -> bool:
        return self.debug_info or bool(self.callbacks[f"before_{direction}"] or self.callbacks[f"after_{direction}"])

    def _call(self, moment: str, index: int) -> None:
        for function in self.callbacks[moment]:
            function(index)

"""A solver's passes as CUDA graphs: after the first few, a GPU repeats all operations of a pass as one, without Python.

Starting the operations of a small net one by one takes the host longer than the GPU takes to compute them. The forward and the
backward pass are a graph each, so that the loss is on its way to the host while the second runs. Their kernels and numbers are
those of the passes before.

A graph repeats operations on the same memory. What differs from pass to pass therefore has to be a blob, or to come
`from_outside`; layer types for which that holds are registered as capturable. With others in the net, with several solvers, in
`reproducible`, after a look at gradients and for inputs of other shapes, passes are computed, one operation at a time.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from caffe import events
from caffe.engine import mode
from caffe.engine.layer import Layer
from caffe.engine.plan import BuiltNet
from caffe.errors import Error
from caffe.transfers import Inputs, LateCopy

FIRST = 3
"""Passes that are computed before one is captured: cuDNN chooses its algorithms, and memory is known to suffice."""
TRIES = 3
"""How often passes are captured in all, if parameters move or other things change."""
LARGEST_SHARE = 1 / 3
"""Part of a GPU's memory that the passes of a net may take to be captured: a graph keeps its memory when it does not run."""
TOLERANCE = 1e-3
"""Largest distance of a replayed loss or gradient from the computed one, over its norm; without TF32 there is none."""
SWITCH = "CAFFE_CUDA_GRAPHS"
"""Environment variable; 0 turns this off."""

Values = dict[str, Any]


@dataclass
class _Captured:
    """Both passes as graphs.

    circumstances  what must be the same for a replay
    inputs         what is filled before it
    values         {blob: its value after it}
    gradients      the parameters' leaves, and their gradients after it
    changed        tensors that the forward pass changes in place: running sums
    late           layers with values to be checked, and those values
    used           tensors from before, whose memory the graphs use
    """

    circumstances: list[object]
    inputs: Inputs
    values: Values
    gradients: list[tuple[Tensor, Tensor]]
    changed: list[Tensor]
    late: list[tuple[Layer, list[Tensor]]]
    used: list[Tensor]
    graphs: tuple[torch.cuda.CUDAGraph, torch.cuda.CUDAGraph]

    def forward(self) -> Values:
        self.graphs[0].replay()
        increment_version(self.changed)
        for layer, values in self.late:
            for value in values:
                layer.defer(LateCopy(value))
        return self.values

    def backward(self) -> None:
        """Add to the gradients that the parameters have."""
        before = [_apart(leaf.grad, gradient) for leaf, gradient in self.gradients]
        self.graphs[1].replay()
        with torch.no_grad():
            for (leaf, gradient), sum_before in zip(self.gradients, before, strict=True):
                leaf.grad = gradient if sum_before is None else sum_before.add_(gradient)


def _apart(value: Tensor | None, memory: Tensor) -> Tensor | None:
    """A gradient outside the memory that a replay overwrites."""
    return value.clone() if value is not None and value.data_ptr() == memory.data_ptr() else value


class CapturedPasses:
    """A solver's passes over a net: computed, or replayed.

    forward   computes the net; gives {blob: value}
    backward  adds the gradients of what `forward` has computed to those of the parameters
    """

    def __init__(self, net: BuiltNet, forward: Callable[[], Values], backward: Callable[[], None]):
        self._net, self._compute, self._add_gradients = net, forward, backward
        self._layers = [step.layer for step in net.steps]
        self._parameters = [blob for layer in self._layers for blob in layer.blobs if blob.owner is blob]
        self._losses = [name for name, weight in net.blob_loss_weights.items() if weight]
        is_capturable = all(layer.is_capturable or layer.is_source for layer in self._layers)
        self._tries = TRIES if net.device.type == "cuda" and is_capturable and os.environ.get(SWITCH) != "0" else 0
        self._passes = 0
        self._captured: _Captured | None = None
        self._replays = False

    def forward(self) -> Values:
        """The values of the net's blobs."""
        self._replays = False
        if self._captured and self._captured.circumstances != self._circumstances():
            self._captured, self._passes = None, 0
        if self._captured:
            if others := self._captured.inputs.refill():
                with self._captured.inputs.given(others):
                    return self._compute()
            self._replays = True
            return self._captured.forward()
        if not self._tries:
            return self._compute()
        self._passes += 1
        return self._capture() if self._passes > FIRST and self._may_capture() else self._compute()

    def backward(self) -> None:
        """Add the gradients of the last `forward` to those of the parameters."""
        if self._replays and self._captured:
            self._captured.backward()
        else:
            self._add_gradients()

    def _circumstances(self) -> list[object]:
        """What the graphs were captured with, after taking back what users have written into parameters and diffs of losses."""
        found: list[object] = [mode.numerics(), torch.is_grad_enabled()]
        for parameter in self._parameters:
            memory = parameter.memory
            memory.data.fetch()
            found += [memory.order, memory.leaf.requires_grad, memory.diff.seen]
        seeds = [self._net.blobs[name].gradient for name in self._losses]
        return found + [None if seed is None else seed.data_ptr() for seed in seeds]

    def _may_capture(self) -> bool:
        device = self._net.device
        return (
            mode.numerics() != "reproducible"  # whose operations look at their results
            and mode.solver_count() == 1  # several exchange gradients in their backward pass
            and torch.is_grad_enabled()
            and not any(parameter.memory.diff.seen for parameter in self._parameters)
            and torch.cuda.max_memory_allocated(device) < LARGEST_SHARE * torch.cuda.get_device_properties(device).total_memory
        )

    def _capture(self) -> Values:
        """Capture both passes, and check that they give what computing gives; if not, or if they cannot be captured, compute."""
        self._tries -= 1
        inputs, circumstances = Inputs(), self._circumstances()
        statistics = [blob.tensor for layer in self._layers if layer.has_statistics(layer.param) for blob in layer.blobs]
        kept = [each.clone() for each in statistics]
        leaves = [parameter.leaf for parameter in self._parameters if parameter.leaf.requires_grad]
        gradients = [leaf.grad for leaf in leaves]
        try:
            with inputs.collected():
                computed = self._results(leaves, self._compute, self._add_gradients)
            _restore(statistics, kept)
            try:
                captured = self._captured_passes(circumstances, inputs, leaves)
                _compare(computed, self._results(leaves, captured.forward, captured.backward))
            except (Error, RuntimeError) as error:
                self._tries = 0
                events.passes_not_captured(str(error).splitlines()[0])
                _restore(statistics, kept)
                with inputs.given():
                    return self._compute()
        finally:
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf.grad = gradient
        self._captured, self._replays = captured, True
        return captured.values

    def _results(self, leaves: list[Tensor], forward: Callable[[], Values], backward: Callable[[], None]) -> list[Tensor | None]:
        """Losses and gradients of passes."""
        for leaf in leaves:
            leaf.grad = None
        values = forward()
        losses = [values[name].detach().clone() for name in self._losses]
        del values  # which hold the memory of the pass
        backward()
        return [*losses, *(leaf.grad for leaf in leaves)]

    def _captured_passes(self, circumstances: list[object], inputs: Inputs, leaves: list[Tensor]) -> _Captured:
        """Graphs of both passes, which have not run yet. Raises RuntimeError if an operation waits for the GPU."""
        graphs, pool = (torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()), torch.cuda.graph_pool_handle()
        before = [layer.deferred for layer in self._layers]
        for layer in self._layers:
            layer.deferred = ()
        for leaf in leaves:
            leaf.grad = None
        watch = _Watch()
        try:
            # PyTorch leaves its own stream as the current one, if a capture ends by an error.
            with torch.cuda.stream(torch.cuda.current_stream(self._net.device)), watch:
                with inputs.given(is_captured=True), _captured_in(graphs[0], pool):
                    values = {name: value.detach() for name, value in self._compute().items()}
                with _captured_in(graphs[1], pool):
                    self._add_gradients()
            late = [(layer, [copy.source for copy in layer.deferred]) for layer in self._layers if layer.deferred]
        finally:
            for layer, waiting in zip(self._layers, before, strict=True):
                layer.deferred = waiting
        pairs = [(leaf, leaf.grad) for leaf in leaves if leaf.grad is not None]
        return _Captured(circumstances, inputs, values, pairs, watch.changed, late, watch.used, graphs)


def _captured_in(graph: torch.cuda.CUDAGraph, pool: Any) -> torch.cuda.graph:
    """A context whose operations a graph repeats. Meanwhile, other threads may allocate memory, as those that read ahead do."""
    return torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local")


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call] # PyTorch lacks the types
    """Notes which tensors from before operations use, and which of them they change."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # PyTorch lacks the types
        self.used: list[Tensor] = []
        self.changed: list[Tensor] = []
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.used += self._from_before(given)
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.changed += self._from_before(each for each in tree_leaves(value) if isinstance(each, Tensor))
        result = func(*args, **kwargs)
        storages = {_storage(each) for each in given}
        self._made |= {_storage(each) for each in tree_leaves(result) if isinstance(each, Tensor)} - storages
        return result

    def _from_before(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        return [each for each in tensors if _storage(each) not in self._made]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _restore(tensors: list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def _compare(computed: list[Tensor | None], replayed: list[Tensor | None]) -> None:
    """Raise RuntimeError unless replayed losses and gradients are those computed, where these are finite."""
    for mine, other in zip(computed, replayed, strict=True):
        if mine is None or other is None:
            is_same = mine is other
        else:
            distance = torch.linalg.vector_norm(other - mine)
            is_same = not bool(mine.isfinite().all()) or bool(distance <= TOLERANCE * torch.linalg.vector_norm(mine))
        if not is_same:
            raise RuntimeError("replayed, they give other gradients")

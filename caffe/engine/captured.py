"""A solver's passes as CUDA graphs: after the first few, a GPU repeats all operations of a pass as one, without Python.

Starting the operations of a small net one by one takes the host longer than the GPU takes to compute them. The forward and the
backward pass are a graph each, so that the loss is on its way to the host while the second runs. Their kernels and numbers are
those of the passes before.

A graph repeats operations on the same memory. What differs from pass to pass therefore has to be a blob, or to come
`from_outside`; layer types for which that holds are registered as capturable. With others in the net, with several solvers, in
`reproducible`, after a look at gradients and for inputs of other shapes, passes are computed, one operation at a time.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge, increment_version
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from caffe import events
from caffe.engine import cuda_graphs, machine, mode
from caffe.engine.layer import Layer
from caffe.engine.parameter import Memory
from caffe.engine.plan import BuiltNet
from caffe.proto import caffe_pb2
from caffe.transfers import Inputs

TOLERANCE, NOISE = 1e-3, 1e-4
"""Largest distance of a replayed loss or gradient from the computed one: over its own norm, and over that of all, as gradients
that cancel out to 0, such as those of a bias before BatchNorm, are rounding errors."""
IN_BFLOAT16 = 16
"""How many times as far they may be where products are of bfloat16."""
Values = dict[str, Any]
Results = list[Tensor | None]


@dataclass
class _Captured:
    """Both passes as graphs.

    circumstances  what must be the same for a replay
    inputs         what is filled before it
    values         {blob: its value after it}
    gradients      the parameters' leaves, and their gradients after it
    changed        tensors that the forward pass changes in place: running sums
    deferred       layers with values to be checked, and those values
    used           memory from before that the graphs use
    """

    circumstances: list[object]
    inputs: Inputs
    values: Values
    gradients: list[tuple[Tensor, Tensor]]
    changed: list[Tensor]
    deferred: list[tuple[Layer, list[Tensor]]]
    used: list[torch.UntypedStorage]
    graphs: tuple[torch.cuda.CUDAGraph, torch.cuda.CUDAGraph]

    def clear(self, losses: Iterable[str]) -> None:
        """Let losses and gradients be NaN until a replay: a graph without operations would leave what is there."""
        old = {each._cdata for each in self.used}
        for result in (*(self.values[name] for name in losses), *(gradient for _, gradient in self.gradients)):
            if _key(result) not in old:
                result.fill_(torch.nan)

    def forward(self) -> Values:
        self.graphs[0].replay()
        increment_version(self.changed)
        for layer, values in self.deferred:
            for value in values:
                layer.defer(value)
        return self.values

    def backward(self) -> None:
        """Add to the gradients that the parameters have."""
        overwritten = {gradient: gradient.clone() for leaf, gradient in self.gradients if _is_at(gradient, leaf.grad)}
        self.graphs[1].replay()
        with torch.no_grad():
            for leaf, gradient in self.gradients:
                if gradient in overwritten:
                    gradient.add_(overwritten[gradient])
                elif leaf.grad is None:
                    leaf.grad = gradient
                else:
                    leaf.grad.add_(gradient)


def _is_at(memory: Tensor, value: Tensor | None) -> bool:
    return value is not None and value.data_ptr() == memory.data_ptr()


class CapturedPasses:
    """A solver's passes over a net: computed, or replayed.

    forward   computes the net; gives {blob: value}
    backward  adds the gradients of what `forward` has computed to those of the parameters
    begin     is called before the GPU is given a pass
    """

    def __init__(self, net: BuiltNet, forward: Callable[[], Values], backward: Callable[[], None], begin: Callable[[], None]):
        self._net, self._compute, self._add_gradients, self._begin = net, forward, backward, begin
        self._layers = [step.layer for step in net.steps]
        self._losses = [name for name, weight in net.blob_loss_weights.items() if weight]
        trains = net.definition.state.phase == caffe_pb2.TRAIN and cuda_graphs.are_used(net.device)
        is_capturable = all(layer.is_capturable or (layer.is_source and not layer.blobs) for layer in self._layers)
        self._tries = self._most_tries = cuda_graphs.TRIES if trains and is_capturable else 0
        self._passes = self._count = 0
        self._captured: _Captured | None = None
        self._replays = False

    def forward(self) -> Values:
        """The values of the net's blobs."""
        self._replays = False
        if self._captured and self._captured.circumstances != self._circumstances():
            self.forget()
        if self._captured:
            inputs = self._captured.inputs
            if others := inputs.refill():
                self.forget()
                with inputs.given(others):
                    return self._compute()
            self._replays = True
            self._count += 1
            if self._count % cuda_graphs.WORTH == 0:
                self._tries = cuda_graphs.TRIES
            self._begin()
            return self._captured.forward()
        self._begin()
        if not self._tries:
            return self._compute()
        self._passes += 1
        return self._capture() if self._passes > cuda_graphs.FIRST and self._may_capture() else self._compute()

    def backward(self) -> None:
        """Add the gradients of the last `forward` to those of the parameters."""
        if self._replays and self._captured:
            self._captured.backward()
        else:
            self._add_gradients()

    def forget(self) -> None:
        """Free the graphs; passes are computed, before others are captured."""
        self._captured, self._passes = None, 0

    def begin_anew(self) -> None:
        """Free the graphs, and capture others if it can be done now, in another memory layout."""
        self.forget()
        self._tries = self._most_tries

    def _circumstances(self) -> list[object]:
        """What the graphs were captured with, after taking back what users have written into parameters and diffs of losses."""
        found: list[object] = [mode.numerics(), mode.solver_count(), torch.is_grad_enabled()]
        for memory in self._memories():
            memory.data.fetch()
            found += [memory.order, memory.leaf.requires_grad, memory.diff.seen]
        seeds = [self._net.blobs[name].gradient for name in self._losses]
        return found + [None if seed is None else seed.data_ptr() for seed in seeds]

    def _memories(self) -> Iterable[Memory]:
        """The parameters' memories, each once."""
        return {id(blob.memory): blob.memory for layer in self._layers for blob in layer.blobs}.values()

    def _leaves(self) -> list[Tensor]:
        """The parameters whose gradients are computed."""
        return [memory.leaf for memory in self._memories() if memory.leaf.requires_grad]

    def _may_capture(self) -> bool:
        device = self._net.device
        return (
            cuda_graphs.may_capture(device)
            and mode.numerics() != "reproducible"  # whose operations look at their results
            and mode.solver_count() == 1  # several exchange gradients in their backward pass
            and torch.is_grad_enabled()
            and not any(memory.diff.seen for memory in self._memories())
            and not any(leaf._post_accumulate_grad_hooks or _is_in_a_graph(leaf) for leaf in self._leaves())
        )

    def _capture(self) -> Values:
        """Capture both passes, and check that they give what computing gives; if not, or if they cannot be captured, compute."""
        self._tries -= 1
        inputs, circumstances = Inputs(), self._circumstances()
        leaves = self._leaves()
        gradients = [leaf.grad for leaf in leaves]
        slack = 1 if machine.product_type(self._net.device) is torch.float32 else IN_BFLOAT16
        restore = self._remembered_statistics()
        captured, failure = None, ""
        try:
            with inputs.collected():
                computed = self._losses_and_gradients(leaves, self._compute, self._add_gradients)
            restore()
            try:
                with inputs.given(), cuda_graphs.NoWaiting():  # type: ignore[no-untyped-call] # PyTorch lacks the types
                    again = self._losses_and_gradients(leaves, self._compute, self._add_gradients)
                _compare(computed, again, "computed a second time", slack)
                restore()
                captured = self._captured_passes(circumstances, inputs, leaves)
                captured.clear(self._losses)
                _compare(computed, self._losses_and_gradients(leaves, captured.forward, captured.backward), "replayed", slack)
            except Exception as error:  # computing has not raised it
                captured, failure = None, cuda_graphs.reason(error)
        finally:
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf.grad = gradient
        if captured is not None:
            self._captured, self._replays = captured, True
            return captured.values
        self._tries = 0
        events.passes_not_captured(failure)
        restore()
        with inputs.given():
            return self._compute()  # by now, the error's traceback and the graphs' memory are gone

    def _remembered_statistics(self) -> Callable[[], None]:
        """Remember the running statistics; the result brings them back."""
        statistics = [blob.tensor for layer in self._layers if layer.has_statistics(layer.param) for blob in layer.blobs]
        kept = [each.clone() for each in statistics]

        def restore() -> None:
            for tensor, value in zip(statistics, kept, strict=True):
                tensor.copy_(value)

        return restore

    def _losses_and_gradients(self, leaves: list[Tensor], forward: Callable[[], Values], backward: Callable[[], None]) -> Results:
        """What two passes give."""
        for leaf in leaves:
            leaf.grad = None
        values = forward()
        losses = [values[name].detach().clone() for name in self._losses]
        del values  # which hold the memory of the pass
        backward()
        return [*losses, *(leaf.grad for leaf in leaves)]

    def _captured_passes(self, circumstances: list[object], inputs: Inputs, leaves: list[Tensor]) -> _Captured:
        """Graphs of both passes, which have not run yet."""
        graphs, watch, device = (torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()), _Watch(), self._net.device
        for leaf in leaves:
            leaf.grad = None
        for layer in self._layers:
            layer.captured = []
        try:
            with inputs.given(), watch:
                with cuda_graphs.captured_in(graphs[0], device):
                    values = {name: value.detach() for name, value in self._compute().items()}
                with cuda_graphs.captured_in(graphs[1], device):
                    self._add_gradients()
            deferred = [(layer, layer.captured) for layer in self._layers if layer.captured]
        finally:
            for layer in self._layers:
                layer.captured = None
        pairs = [(leaf, leaf.grad) for leaf in leaves if leaf.grad is not None]
        return _Captured(circumstances, inputs, values, pairs, watch.changed, deferred, list(watch.used.values()), graphs)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call] # PyTorch lacks the types
    """Notes which memory from before operations use, and which tensors of it they change."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # PyTorch lacks the types
        self.used: dict[int, torch.UntypedStorage] = {}
        self.changed: list[Tensor] = []
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        given = {_key(each): each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        self.used |= {key: each.untyped_storage() for key, each in given.items() if key not in self._made}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                changed = [each for each in tree_leaves(value) if isinstance(each, Tensor)]
                self.changed += [each for each in changed if _key(each) not in self._made]
        result = func(*args, **kwargs)
        self._made |= {_key(each) for each in tree_leaves(result) if isinstance(each, Tensor)} - given.keys()
        return result


def _is_in_a_graph(leaf: Tensor) -> bool:
    """Whether a pass of another net, or of a user, still has a place for its gradient, which is bound to that pass's stream."""
    metadata: Any = get_gradient_edge(leaf).node.metadata
    metadata["seen"] = True
    return "seen" in cast(Any, get_gradient_edge(leaf).node.metadata)  # another's, if nobody holds that one


def _key(tensor: Tensor) -> int:
    """What identifies a tensor's memory."""
    return int(tensor.untyped_storage()._cdata)


def _compare(computed: Results, others: Results, how: str, slack: float = 1) -> None:
    """Raise RuntimeError unless other losses and gradients, gained as `how` says, are those computed, where these are finite.

    slack  factor of the distance that they may have
    """
    norms = torch.stack([torch.linalg.vector_norm(each) for each in computed if each is not None] or [torch.zeros(())])
    total = norms[norms.isfinite()].norm()
    for mine, other in zip(computed, others, strict=True):
        if mine is None or other is None:
            is_same = mine is other
        else:
            distance, norm = torch.linalg.vector_norm(other - mine), torch.linalg.vector_norm(mine)
            is_same = not bool(mine.isfinite().all()) or bool(distance <= slack * (TOLERANCE * norm + NOISE * total))
        if not is_same:
            raise RuntimeError(f"{how}, they give other losses or gradients")

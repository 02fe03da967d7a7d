"""Run a net: one autograd graph over its layers, and the memory layout that is fastest for it.

Each forward pass makes a segment of the graph: a full pass one of all layers, a partial pass one that begins at the current
values of the blobs that it reads. A backward pass goes through the segments it covers from the last to the first, seeding each
with the diffs of the blobs at its end, as Caffe goes through layers.

In testing, hardly any pass is followed by a backward one. There, passes make no graph and join layers (`caffe.engine.fusion`); at
the first backward pass, what it needs is computed again, and the net makes graphs from then on.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.autograd.graph import get_gradient_edge

from caffe.engine import machine, memory, mode, running
from caffe.engine.captured import CapturedPasses
from caffe.engine.fusion import Fusion
from caffe.engine.layouts import Layouts
from caffe.engine.plan import BackwardPlan, BuiltNet, Call, Joined, Place, Plan, Step, is_in_graph
from caffe.engine.side import Later, show_held_views
from caffe.errors import Error, LayerError
from caffe.numerics.dispatch import NotReproducibleError
from caffe.proto import caffe_pb2
from caffe.transfers import from_outside

NOTED = 3
"""The first passes, where memory runs out if it does, note which layer backward has reached; later ones save the time."""


UNSEEN = -1
"""Segment of layers that have not computed, and of those of a solver's pass; passes that made no graph have numbers below."""


def _in_type(product: torch.dtype, call: Call, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
    """Bottoms as a call takes them, where products are of a type: a linear layer's in that type, others' in theirs or float32."""
    layer = call.step.layer
    if call.joined:
        return bottoms
    if not layer.takes_bfloat16:
        return [bottom.float() for bottom in bottoms]
    return [bottom.to(product) for bottom in bottoms] if layer.is_linear else bottoms


def _tops(result: Any) -> tuple[Any, ...]:
    """All tops of a layer, tensors or a Later, from the result of its `forward`."""
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


@machine.in_numerics
@torch.no_grad()
def _in_numerics(compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    return compute()


class Executor:
    """Runs the layers of `net` from any layer to any layer."""

    def __init__(self, net: BuiltNet):
        self.net = net
        self.steps = steps = net.steps
        self._segments = 0
        self._objectives: list[tuple[str, torch.Tensor]] = []
        self._passes = 0
        self._reached = ""
        has_images = any(step.layer.begins_layout and len(step.layer.blobs[0].shape) == 4 for step in steps)
        self._tests = net.definition.state.phase == caffe_pb2.TEST
        self._layouts = Layouts(net.device, is_timed=not self._tests) if has_images else None
        self._leader: Callable[[], Executor | None] = lambda: None
        self.layout: torch.memory_format | None = None
        """Of images; None where no layer convolves any, and they stay as they are."""
        if self._layouts:
            self._lay_out(self._layouts.usual)
        for step in steps:
            for slot, value in step.layer.made_once.items():
                net.blobs[step.tops[slot]].tensor = value
        self._join()
        computed_once = any(step.layer.runs_user_code or step.layer.batch_dependence() for step in steps)
        self._learns = any(step.needs_backward for step in steps)
        self._makes_graphs = self._learns and (not self._tests or net.definition.force_backward or computed_once)
        self._fusion = Fusion(_in_numerics)
        self._plan = functools.cache(lambda first, last: Plan(net, steps[first : last + 1]))
        self._training = CapturedPasses(net, self._computed_training, self._add_gradients, self._begin)
        self._backward_plan = functools.cache(lambda first, last: BackwardPlan(steps[first : last + 1], last))

    def _lay_out(self, layout: torch.memory_format) -> None:
        """Keep images in a layout from now on."""
        self.layout = layout
        for step in self.steps:
            step.layer.lay_out(layout)

    def follow(self, leader: Executor) -> None:
        """Keep images as another net does, whose parameters are this net's."""
        self._leader = weakref.ref(leader)
        if self._layouts:
            self._layouts.keep()

    def _choose_layout(self) -> None:
        """Keep images in the layout in which the pass that follows is computed."""
        if self._layouts is None:
            return
        leader = self._leader()
        layout = leader.layout if leader else self._layouts.next()
        if not layout or layout is self.layout:
            return
        blobs = itertools.chain.from_iterable(step.layer.blobs for step in self.steps)
        if all(blob.leaf.grad is None for blob in blobs):  # those of several passes add up in one layout
            self._training.begin_anew()
            if self.net.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.net.device)  # by which it is known whether there is room for graphs
            self._lay_out(layout)

    def _begin(self) -> None:
        if self._layouts:
            self._layouts.begin(self.layout)

    def _join(self) -> None:
        """Set each step's producers and consumers, and which in-place layers may write into their bottoms.

        As the net has splits, at most one layer passes a gradient to a top.
        """
        graph, steps = self.net.graph, self.steps
        for step, bottoms, tops in zip(steps, graph.bottoms, graph.tops, strict=True):
            step.producers = [(steps[value.layer], value.top) for value in bottoms if value]  # each has one, as `build` checks
            for value in tops:
                readers = (i for i, slot in graph.readers[value] if steps[i].needs_backward and steps[i].propagates[slot])
                step.consumers.append(next(readers, None))
            if step.bottoms and step.tops[:1] == step.bottoms[:1]:
                before, slot = step.producers[0]
                # The layer before must not need its output again.
                step.layer.overwrites = not before.layer.keeps_output and not before.layer.is_input
                if step.layer.overwrites:
                    before.overwritten.add(slot)

    # ---- forward

    @machine.in_numerics
    def forward(self, first: int, last: int) -> None:
        """Compute the tops of layers `first` to `last` (both included) from the current values of the blobs that they read.

        Every blob's place in the graph is kept for its gradient, unless PyTorch's gradients are off or the net tests.
        """
        edges = torch.is_grad_enabled() and self._makes_graphs
        self._segments += 1
        self._objectives = []
        plan = self._plan(first, last)
        if first == 0:
            self._choose_layout()
        for step in self.steps[first : last + 1]:
            step.segment = self._segments if edges else UNSEEN - self._segments
            step.places = ()  # they hold the memory of the last pass
        with torch.set_grad_enabled(edges):
            self._run(plan, edges)
        self.check_deferred()

    def check_deferred(self) -> None:
        """Raise the errors that a GPU has found in the values of the passes before, such as labels out of range."""
        waiting = [step.layer for step in self.steps if step.layer.deferred]
        try:
            for layer in waiting:
                layer.check_deferred()
        finally:
            for layer in waiting:
                layer.deferred = ()

    @machine.in_numerics
    def train_forward(self) -> None:
        """Compute the whole net, to be followed by `train_backward`."""
        plan = self._plan(0, len(self.steps) - 1)
        plan.release()
        for step in self.steps:
            step.segment, step.places, step.entries = UNSEEN, (), {}  # they hold the memory of the last pass
        self._choose_layout()
        self._show(plan, self._training.forward())

    def forget_captured(self) -> None:
        """Free what is kept to replay a solver's passes."""
        self._training.forget()

    def _computed_training(self) -> dict[str, torch.Tensor]:
        """The values of the whole net, and in `_objectives` those whose gradients `_add_gradients` adds."""
        last = len(self.steps) - 1
        values = self._computed(self._plan(0, last), edges=False)
        self._objectives = [(name, values[name]) for _, _, name in self._backward_plan(0, last).roots]
        return values

    def _run(self, plan: Plan, edges: bool) -> None:
        plan.release()
        self._show(plan, self._computed(plan, edges))

    def _computed(self, plan: Plan, edges: bool) -> dict[str, Any]:
        """The values of a plan's blobs: tensors, or a Later."""
        self._passes += 1
        values: dict[str, Any] = {name: self._entering(name, edges) for name in plan.entering}
        entries: dict[str, Place] = dict(values)
        for name in plan.changed:
            values[name] = values[name].clone()
        for step in plan.inputs:
            step.places = [entries[name] for name in step.tops]
        has_graph = torch.is_grad_enabled()
        product = machine.product_type(self.net.device)
        narrows = product is not torch.float32
        calls = self._calls(plan, edges, has_graph)
        for call in calls:
            step = call.step
            if has_graph:
                bottoms = [values[name] if propagates else values[name].detach() for name, propagates in call.sources]
            else:
                bottoms = [values[name] for name, _ in call.sources]
            if narrows:
                bottoms = _in_type(product, call, bottoms)
            tops = self._compute(call, bottoms)
            if narrows and edges:
                tops = [top.float() for top in tops]
            if step.layer.made_once:
                tops = [
                    self._entering(step.tops[slot], edges) if slot in step.layer.made_once else top
                    for slot, top in enumerate(tops)
                ]
            if has_graph and self._passes <= NOTED and step.needs_backward:
                self._note_layer(step, tops)
            if edges and not step.bottoms:  # data, whose gradient is computed under force_backward
                needs = self.net.blob_needs_backward
                pairs = zip(step.tops, tops, strict=True)
                tops = [top if top.requires_grad or not needs[name] else top.detach().requires_grad_() for name, top in pairs]
                step.places = tops
            values.update(zip(call.tops, tops, strict=True))
            if edges and step.needs_backward:
                step.entries, step.places = entries, tops
                if step.overwritten:
                    step.places = [get_gradient_edge(top) if slot in step.overwritten else top for slot, top in enumerate(tops)]
        self._add_statistics(calls)
        return values

    def _show(self, plan: Plan, values: Mapping[str, Any]) -> None:
        """Let the blobs have the values of a plan, computed or replayed."""
        for name, blob in plan.made.items():
            value = values[name]
            if isinstance(value, torch.Tensor) and value.dtype is torch.bfloat16:
                value = Later(tuple(value.shape), value.detach().float)
            if isinstance(value, Later):
                blob.put_later(value)
            else:
                blob.tensor = value.detach() if name in plan.changed else value  # those are not released
        show_held_views()  # running statistics

    def _add_statistics(self, calls: Sequence[Call]) -> None:
        """Add what the layers of a pass have to add to their running sums."""
        layers = [call.step.layer for call in calls if call.step.layer.added]
        if layers:
            running.add(layer.added for layer in layers if layer.added)
        for layer in layers:
            layer.added = None

    def _calls(self, plan: Plan, edges: bool, has_graph: bool) -> list[Call]:
        """The plan's calls, with layers joined where neither edges nor exact numerics need each; again after a look at a blob."""
        if edges or mode.numerics() == "reproducible":
            return plan.calls
        if not has_graph and not self._tests:
            return plan.calls

        def is_looked_at(name: str) -> bool:
            return self.net.blobs[name].data_side.seen

        found = plan.joined.get(has_graph)
        if found is None or any(map(is_looked_at, found.unseen)):
            join = self._fusion.joined_in_training if has_graph else self._fusion.joined
            found = plan.joined[has_graph] = Joined(join(plan.calls, is_looked_at))
        return found.calls

    def _entering(self, name: str, edges: bool) -> torch.Tensor:
        """A blob's current values, as the beginning of a segment."""
        (value,) = from_outside(lambda: (self.net.blobs[name].tensor,))
        value = machine.entering(value)
        value = self._laid_out(value)
        return value.detach().requires_grad_() if edges and self.net.blob_needs_backward[name] else value

    def _compute(self, call: Call, bottoms: Sequence[torch.Tensor]) -> Sequence[Any]:
        """The tops of a call, in the net's memory layout: tensors, or a Later."""
        step = call.step
        try:
            result: Any
            if call.joined:
                result = call.joined(*bottoms)
            elif step.layer.is_source:
                result = from_outside(lambda: _tops(step.layer.forward()))
            else:
                result = step.layer.forward(*bottoms)
        except NotReproducibleError as error:
            raise LayerError(step.layer.where, error.found, error.expected, error.do) from error
        except RuntimeError as error:
            memory.raise_shortage(error, step.layer.where)
            if isinstance(error, Error) or step.layer.runs_user_code:
                raise
            shapes = ", ".join(str(tuple(bottom.shape)) for bottom in bottoms)
            found = f"cannot compute from bottoms of shapes {shapes}: {str(error).splitlines()[0]}"
            raise LayerError(step.layer.where, found) from error
        tops: Sequence[Any] = _tops(result)
        if not step.bottoms:
            tops = [machine.entering(top) for top in tops]
        if not self.layout or (step.bottoms and not step.layer.begins_layout):
            return tops
        return [top if isinstance(top, Later) else self._laid_out(top) for top in tops]

    def _laid_out(self, value: torch.Tensor) -> torch.Tensor:
        """Images in the net's layout; those of one channel, which are in both, keep the strides of rows, as do other values."""
        if not self.layout or value.dim() != 4 or value.shape[1] == 1:
            return value
        return value.contiguous(memory_format=self.layout)

    # ---- backward

    @machine.in_numerics
    def train_backward(self) -> None:
        """Add the gradients of the whole net to those of its parameters, and free the graph's memory."""
        self._training.backward()
        if self._layouts:
            self._layouts.end()
        show_held_views()

    def _add_gradients(self) -> None:
        roots = []
        for name, value in self._objectives:
            seed = self.net.blobs[name].gradient
            if seed is not None and value.requires_grad:
                roots.append((value * seed).sum())  # with the seed as an argument, PyTorch imports sympy: 0.3 s
        self._objectives = []
        if roots:
            with self._naming_layer():
                torch.autograd.backward(roots)

    @contextlib.contextmanager
    def _naming_layer(self) -> Iterator[None]:
        """Name the layer that a backward pass has reached if memory runs out."""
        self._reached = ""
        try:
            yield
        except RuntimeError as error:
            memory.raise_shortage(error, f"{self._reached}, backward" if self._reached else "backward")
            raise

    def _note_layer(self, step: Step, tops: Sequence[torch.Tensor]) -> None:
        """Let the backward pass note that it has reached a layer."""

        def note(gradients: tuple[torch.Tensor, ...]) -> None:
            self._reached = step.layer.where

        for node in {top.grad_fn for top in tops if isinstance(top, torch.Tensor)}:
            if node is not None:
                node.register_prehook(note)

    @machine.in_numerics
    def backward(self, last: int, first: int) -> None:
        """Compute gradients through layers `last` down to `first` (both included), from the diffs of their tops.

        Gradients of parameters are added to what is there; those of blobs replace it. Layers that have not computed yet pass the
        gradients at their blobs' present values, as in Caffe: zeros, unless they were set.
        """
        if not self._learns:
            return
        self._makes_graphs = True
        for segment, group in itertools.groupby(range(len(self.steps)), key=lambda index: self.steps[index].segment):
            if segment < UNSEEN:
                self._compute_again([index for index in group if self.steps[index].bottoms])
        for index in range(first, last + 1):
            if self.steps[index].segment == UNSEEN and self.steps[index].bottoms:
                self._compute_again([index])
        for segment, group in itertools.groupby(range(last, first - 1, -1), key=lambda index: self.steps[index].segment):
            indices = list(group)
            if segment >= 0:
                self._backward_segment(self._backward_plan(indices[-1], indices[0]))

    def _compute_again(self, indices: list[int]) -> None:
        """Compute layers for their gradient, and leave their tops as they are."""
        names = dict.fromkeys(name for index in indices for name in self.steps[index].tops)
        blobs = [self.net.blobs[name] for name in names]
        before = [blob.tensor.clone() for blob in blobs]  # views of the user would show the layers' results
        for _, group in itertools.groupby(indices, key=lambda index: index - indices.index(index)):  # between layers of data
            run = list(group)
            self.forward(run[0], run[-1])
        for blob, values in zip(blobs, before, strict=True):
            blob.tensor = values

    def _backward_segment(self, plan: BackwardPlan) -> None:
        blobs = self.net.blobs
        roots: list[Place] = []
        seeds = []
        for step, slot, name in plan.roots:
            place, blob = step.places[slot], blobs[name]
            if is_in_graph(place):
                seed = blob.gradient
                if seed is None and step.layer.runs_user_code:
                    seed = torch.zeros_like(blob.tensor)
                if seed is not None:
                    roots.append(place)
                    seeds.append(seed.clone(memory_format=torch.contiguous_format))
        places = [(blobs[name], step.bottom_place(slot)) for name, (step, slot) in plan.targets.items()]
        bottoms = [(blob, place) for blob, place in places if place is not None]
        learned = [owner for owner in dict.fromkeys(blob.owner for blob in plan.learned) if owner.leaf.requires_grad]
        targets: list[Place] = [owner.leaf for owner in learned]
        targets += [place for _, place in bottoms]
        if not roots or not targets:
            return
        with self._naming_layer():
            # The stub of `grad` lacks mixed lists of tensors and edges.
            gradients = torch.autograd.grad(roots, targets, seeds, retain_graph=True, allow_unused=True)  # type: ignore[arg-type]
        for owner, gradient in zip(learned, gradients, strict=False):
            if gradient is not None:
                total = owner.gradient
                if total is None:
                    owner.gradient = laid_out_as(gradient, owner.leaf)
                else:
                    total.add_(gradient)
        for (blob, _), gradient in zip(bottoms, gradients[len(learned) :], strict=True):
            if gradient is not None:
                blob.gradient = gradient
        show_held_views()


def laid_out_as(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """`value` with the strides of `other`, a tensor of the same shape; `value` itself if it has them."""
    return value if value.stride() == other.stride() else torch.empty_like(other).copy_(value)

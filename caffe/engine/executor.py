"""Run a net: one autograd graph over its layers, and the memory layout that is fastest for it.

Each forward pass makes a segment of the graph: a full pass one of all layers, a partial pass one that begins at the current
values of the blobs that it reads. A backward pass goes through the segments it covers from the last to the first, seeding each
with the diffs of the blobs at its end, as Caffe goes through layers.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

from caffe.engine import machine, memory
from caffe.engine.blob import Blob
from caffe.engine.graph import NetGraph
from caffe.engine.layer import Layer
from caffe.engine.side import show_held_views
from caffe.errors import Error, LayerError
from caffe.numerics.dispatch import NotReproducibleError
from caffe.proto import caffe_pb2

NOTED = 3
"""The first passes, where memory runs out if it does, note which layer backward has reached; later ones save the time."""
Place = torch.Tensor | GradientEdge
"""A value in the graph; where it has been overwritten, its edge."""


@dataclass
class Step:
    """One layer in its net: which blobs it reads and writes, which gradients it computes, and its place in the graph."""

    layer: Layer
    bottoms: list[str]
    tops: list[str]
    needs_backward: bool
    propagates: list[bool]
    producers: list[tuple[Step, int]] = field(default_factory=list)
    """For each bottom, the layer that makes this version of it and the number of the top."""
    consumers: list[int | None] = field(default_factory=list)
    """For each top, the layer that reads this version of it and passes a gradient back, if any."""
    overwritten: set[int] = field(default_factory=set)
    """Numbers of the tops that another layer writes into."""
    segment: int = -1
    entries: dict[str, Place] = field(default_factory=dict)
    """The blobs that its segment began with."""
    places: Sequence[Place] = ()
    """The tops."""

    def bottom_place(self, slot: int) -> Place | None:
        """A bottom's place in the graph, as it was when the layer read it; None if no gradient reaches it."""
        place = self.entries.get(self.bottoms[slot])
        producer, number = self.producers[slot]
        if producer.segment == self.segment:
            place = producer.places[number] if producer.places else None
        return place if _is_in_graph(place) else None


@dataclass
class BuiltNet:
    """A net whose layers are set up, for the executor.

    definition  the layers that the net's state includes, with splits
    steps       one for each of them
    blobs       {name: Blob} in the order in which layers produce them
    graph       which layers make and read the blobs
    outputs     names of the blobs that no layer reads
    """

    definition: caffe_pb2.NetParameter
    device: torch.device
    steps: list[Step] = field(default_factory=list)
    blobs: OrderedDict[str, Blob] = field(default_factory=OrderedDict)
    blob_loss_weights: OrderedDict[str, float] = field(default_factory=OrderedDict)
    """Weights of the blobs in the objective, by name; 0 for those that are not losses."""
    blob_needs_backward: dict[str, bool] = field(default_factory=dict)
    graph: NetGraph = field(default_factory=lambda: NetGraph([]))
    outputs: list[str] = field(default_factory=list)


class Plan:
    """What a forward pass over a range of layers does, planned once.

    inputs    the layers whose tops the caller sets
    steps     the layers that compute; for each of them the names of its bottoms and whether a gradient passes back to them
    entering  names of the blobs whose current values are read
    made      names of the blobs that are computed; those that are also read are `changed` in place
    """

    def __init__(self, net: BuiltNet, steps: list[Step]):
        self.inputs = [step for step in steps if step.layer.is_input]
        computing = [step for step in steps if not step.layer.is_input]
        self.steps = [(step, list(zip(step.bottoms, step.propagates, strict=True))) for step in computing]
        self.entering = [name for step in self.inputs for name in step.tops]
        self.made: list[str] = []
        for step in computing:
            self.entering += [name for name in dict.fromkeys(step.bottoms) if name not in (*self.made, *self.entering)]
            self.made += [name for name in step.tops if name not in self.made]
        self.changed = [name for name in self.made if name in self.entering]
        fresh = [name for name in self.made if name not in self.entering]
        # The diff of a loss is its weight, where the backward pass begins.
        self._outdated = [net.blobs[name].diff_side for name in fresh if not net.blob_loss_weights.get(name)]
        kept = {step.tops[slot] for step in computing for slot in step.layer.made_once}
        self._outdated += [net.blobs[name].data_side for name in fresh if name not in kept]

    def release(self) -> None:
        """Free the memory of what is computed anew and has no NumPy view, gradients first, for the pass to use."""
        for side in self._outdated:
            side.release()


class BackwardPlan:
    """What a backward pass over a range of layers of one segment does, planned once.

    roots    tops where gradients come in: layer, number, name
    targets  {bottom whose gradient is computed: (layer, number)}
    learned  parameters
    """

    def __init__(self, steps: list[Step], last: int):
        passing = [step for step in steps if step.needs_backward]
        self.roots = [
            (step, slot, name)
            for step in passing
            for slot, (name, consumer) in enumerate(zip(step.tops, step.consumers, strict=True))
            if consumer is None or consumer > last
        ]
        self.targets: dict[str, tuple[Step, int]] = {}
        for step in reversed(passing):
            for slot, (name, propagates) in enumerate(zip(step.bottoms, step.propagates, strict=True)):
                if propagates:
                    self.targets[name] = step, slot  # the earliest version wins, as in-place layers overwrite their diff
        self.learned = [blob for step in passing for blob in step.layer.blobs]


class Executor:
    """Runs the layers of `net` from any layer to any layer."""

    def __init__(self, net: BuiltNet):
        self.net = net
        self.steps = steps = net.steps
        self._segments = 0
        self._objectives: list[tuple[str, torch.Tensor]] = []
        self._passes = 0
        self._reached = ""
        # Two-dimensional convolutions are faster channels-last, on CPUs and GPUs.
        self.channels_last = any(step.layer.begins_layout and len(step.layer.blobs[0].shape) == 4 for step in steps)
        if self.channels_last:
            for step in steps:
                step.layer.use_channels_last()
        for step in steps:
            for slot, value in step.layer.made_once.items():
                net.blobs[step.tops[slot]].tensor = value
        self._join()
        self._plan = functools.cache(lambda first, last: Plan(net, steps[first : last + 1]))
        self._backward_plan = functools.cache(lambda first, last: BackwardPlan(steps[first : last + 1], last))

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

        Every blob's place in the graph is kept for its gradient, unless PyTorch's gradients are off.
        """
        edges = torch.is_grad_enabled()
        self._segments += 1
        self._objectives = []
        plan = self._plan(first, last)
        for step in self.steps[first : last + 1]:
            step.segment = self._segments if edges else -1
            step.places = ()  # they hold the memory of the last pass
        self._run(plan, edges)

    @machine.in_numerics
    def train_forward(self) -> None:
        """Compute the whole net, to be followed by `train_backward`."""
        last = len(self.steps) - 1
        values = self._run(self._plan(0, last), edges=False)
        for step in self.steps:
            step.segment = -1
        self._objectives = [(name, values[name]) for _, _, name in self._backward_plan(0, last).roots]

    def _run(self, plan: Plan, edges: bool) -> dict[str, torch.Tensor]:
        plan.release()
        self._passes += 1
        values = {name: self._entering(name, edges) for name in plan.entering}
        entries: dict[str, Place] = dict(values)
        for name in plan.changed:
            values[name] = values[name].clone()
        for step in plan.inputs:
            step.places = [entries[name] for name in step.tops]
        for step, sources in plan.steps:
            bottoms = [values[name] if propagates else values[name].detach() for name, propagates in sources]
            tops = self._compute(step, bottoms)
            if step.layer.made_once:
                tops = [
                    self._entering(step.tops[slot], edges) if slot in step.layer.made_once else top
                    for slot, top in enumerate(tops)
                ]
            if self._passes <= NOTED and step.needs_backward:
                self._note_layer(step, tops)
            if edges and not step.bottoms:  # data, whose gradient is computed under force_backward
                needs = self.net.blob_needs_backward
                pairs = zip(step.tops, tops, strict=True)
                tops = [top if top.requires_grad or not needs[name] else top.detach().requires_grad_() for name, top in pairs]
                step.places = tops
            values.update(zip(step.tops, tops, strict=True))
            if edges and step.needs_backward:
                step.entries, step.places = entries, tops
                if step.overwritten:
                    step.places = [get_gradient_edge(top) if slot in step.overwritten else top for slot, top in enumerate(tops)]
        blobs = self.net.blobs
        for name in plan.made:
            blobs[name].tensor = values[name]
        show_held_views()  # running statistics
        return values

    def _entering(self, name: str, edges: bool) -> torch.Tensor:
        """A blob's current values, as the beginning of a segment."""
        value = machine.entering(self.net.blobs[name].tensor)
        if self.channels_last:
            value = _channels_last(value)
        return value.detach().requires_grad_() if edges and self.net.blob_needs_backward[name] else value

    def _compute(self, step: Step, bottoms: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """A layer's tops, in the net's memory layout."""
        try:
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
        tops: Sequence[torch.Tensor] = (result,) if isinstance(result, torch.Tensor) else result
        if not step.bottoms:
            tops = [machine.entering(top) for top in tops]
        begins_layout = not step.bottoms or step.layer.begins_layout
        return [_channels_last(top) for top in tops] if begins_layout and self.channels_last else tops

    # ---- backward

    @machine.in_numerics
    def train_backward(self) -> None:
        """Add the gradients of the whole net to those of its parameters, and free the graph's memory."""
        roots = []
        for name, value in self._objectives:
            seed = self.net.blobs[name].gradient
            if seed is not None and value.requires_grad:
                roots.append((value * seed).sum())  # with the seed as an argument, PyTorch imports sympy: 0.3 s
        self._objectives = []
        if roots:
            with self._naming_layer():
                torch.autograd.backward(roots)
        show_held_views()

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

        for node in {top.grad_fn for top in tops}:
            if node is not None:
                node.register_prehook(note)

    @machine.in_numerics
    def backward(self, last: int, first: int) -> None:
        """Compute gradients through layers `last` down to `first` (both included), from the diffs of their tops.

        Gradients of parameters are added to what is there; those of blobs replace it. Layers that have not computed yet pass the
        gradients at their blobs' present values, as in Caffe: zeros, unless they were set.
        """
        for index in range(first, last + 1):
            if self.steps[index].segment < 0 and self.steps[index].bottoms:
                self._compute_unseen(index)
        for segment, group in itertools.groupby(range(last, first - 1, -1), key=lambda index: self.steps[index].segment):
            indices = list(group)
            if segment >= 0:
                self._backward_segment(self._backward_plan(indices[-1], indices[0]))

    def _compute_unseen(self, index: int) -> None:
        """Compute a layer for its gradient, and leave its tops as they are."""
        blobs = [self.net.blobs[name] for name in self.steps[index].tops]
        before = [blob.tensor.clone() for blob in blobs]  # views of the user would show the layer's result
        self.forward(index, index)
        for blob, values in zip(blobs, before, strict=True):
            blob.tensor = values

    def _backward_segment(self, plan: BackwardPlan) -> None:
        blobs = self.net.blobs
        roots: list[Place] = []
        seeds = []
        for step, slot, name in plan.roots:
            place, blob = step.places[slot], blobs[name]
            if _is_in_graph(place):
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


def _is_in_graph(place: Place | None) -> bool:
    return place.requires_grad if isinstance(place, torch.Tensor) else place is not None


def laid_out_as(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """`value` with the strides of `other`, a tensor of the same shape; `value` itself if it has them."""
    return value if value.stride() == other.stride() else torch.empty_like(other).copy_(value)


def _channels_last(value: torch.Tensor) -> torch.Tensor:
    """Images as channels-last; those of one channel, which are that already, keep the strides of NCHW, as do other values."""
    return value if value.dim() != 4 or value.shape[1] == 1 else value.contiguous(memory_format=torch.channels_last)

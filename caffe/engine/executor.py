"""How a net is run: one autograd graph over its layers, and the memory layout that is fastest for it.

A forward pass over a range of layers is a segment; a full pass is one segment, and a partial one begins a new segment at blobs
that it takes as they stand. A backward pass goes through the segments it covers from the last to the first, seeding each with
the diffs of the blobs at its end, as Caffe goes through layers.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

from caffe.engine import machine
from caffe.engine.blob import Blob
from caffe.engine.graph import NetGraph
from caffe.engine.layer import Layer
from caffe.errors import Error, LayerError
from caffe.proto import caffe_pb2

Place = torch.Tensor | GradientEdge
"""A value in the graph; where it has been overwritten, its edge."""


@dataclass
class Step:
    """One layer in its net: which blobs it reads and writes, which gradients it owes, and where it stands in the graph."""

    layer: Layer
    bottoms: list[str]
    tops: list[str]
    needs_backward: bool
    propagates: list[bool]
    producers: list[tuple[Step, int]] = field(default_factory=list)
    """For each bottom, the layer that makes this version of it and the number of the top."""
    consumers: list[int | None] = field(default_factory=list)
    """For each top, the layer that reads this version of it and passes a gradient back; None where there is none."""
    segment: int = -1

    def __post_init__(self) -> None:
        self.is_input = self.layer.is_input
        """Whether its tops are the caller's, and stay."""
        self.begins_layout = not self.bottoms or self.layer.begins_layout
        """Whether its tops are put into the net's memory layout; those of the other layers inherit it."""
        self.overwritten: set[int] = set()
        """Numbers of the tops that another layer writes into."""
        self.entries: dict[str, Place] = {}
        """The blobs that its segment took as they stood."""
        self.places: Sequence[Place] = ()
        """The tops."""

    def bottom_place(self, slot: int) -> Place | None:
        """Where in the graph a bottom is, as it was when the layer read it; None where no gradient reaches it."""
        place = self.entries.get(self.bottoms[slot])
        producer, number = self.producers[slot]
        if producer.segment == self.segment:
            place = producer.places[number] if producer.places else None
        return place if _is_in_graph(place) else None


@dataclass
class BuiltNet:
    """A net whose layers are set up: what the executor runs.

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
    """Weights of the blobs in the objective, by name; 0 for those that are no loss."""
    blob_needs_backward: dict[str, bool] = field(default_factory=dict)
    graph: NetGraph = field(default_factory=lambda: NetGraph([]))
    outputs: list[str] = field(default_factory=list)


class Plan:
    """What a forward pass over a range of layers does, worked out once.

    inputs    the layers whose tops are the caller's
    steps     the layers that compute; for each of them the names of its bottoms and whether a gradient passes back to them
    entering  names of the blobs that are taken as they stand
    made      names of the blobs that are computed: those that are fresh, and those that enter and are `changed` in place
    """

    def __init__(self, net: BuiltNet, steps: list[Step]):
        self.inputs = [step for step in steps if step.is_input]
        computing = [step for step in steps if not step.is_input]
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
        self._outdated += [net.blobs[name].data_side for name in fresh]
        self.roots = [
            (slot, step)
            for step in computing
            if step.needs_backward
            for slot, consumer in enumerate(step.consumers)
            if consumer is None
        ]

    def release(self) -> None:
        """Let go of what is computed anew and nobody has looked at, gradients first, so that a pass finds the last's memory."""
        for side in self._outdated:
            side.release()


class BackwardPlan:
    """What a backward pass over a range of layers of one segment does, worked out once.

    roots    tops where gradients come in: layer, number, name
    wanted   bottoms whose gradient is wanted: name, layer, number
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
        wanted = {}
        for step in reversed(passing):
            for slot, (name, propagates) in enumerate(zip(step.bottoms, step.propagates, strict=True)):
                if propagates:
                    wanted[name] = (name, step, slot)  # the earliest version wins, as in-place layers overwrite their diff
        self.wanted = list(wanted.values())
        self.learned = [blob for step in passing for blob in step.layer.blobs]


class Executor:
    """Runs the layers of `net` from any layer to any layer."""

    def __init__(self, net: BuiltNet):
        self.net = net
        self.steps = steps = net.steps
        self._segments = 0
        self._objectives: list[tuple[str, torch.Tensor]] = []
        self.channels_last = _prefers_channels_last([step.layer for step in steps])
        if self.channels_last:
            for step in steps:
                step.layer.use_channels_last()
        self._join()
        self._mark_overwriting()
        self._plan = functools.cache(lambda first, last: Plan(net, steps[first : last + 1]))
        self._backward_plan = functools.cache(lambda first, last: BackwardPlan(steps[first : last + 1], last))

    def _join(self) -> None:
        """Note for each step where its bottoms are made and where its tops are read; with the splits, by one bottom each."""
        graph, steps = self.net.graph, self.steps
        passing = {(i, slot) for i, step in enumerate(steps) for slot, passes in enumerate(step.propagates) if passes}
        passing = {(i, slot) for i, slot in passing if steps[i].needs_backward}
        for step, bottoms, tops in zip(steps, graph.bottoms, graph.tops, strict=True):
            step.producers = [(steps[value.layer], value.top) for value in bottoms]
            step.consumers = [next((i for i, slot in graph.readers[value] if (i, slot) in passing), None) for value in tops]

    def _mark_overwriting(self) -> None:
        """An in-place layer may write into its bottom where the layer before does not need that output again."""
        for step in self.steps:
            if step.bottoms and step.tops[:1] == step.bottoms[:1]:
                before, slot = step.producers[0]
                step.layer.overwrites = not before.layer.keeps_output and not before.is_input
                if step.layer.overwrites:
                    before.overwritten.add(slot)

    # ---- forward

    @machine.without_denormals
    def forward(self, first: int, last: int) -> None:
        """Compute the tops of layers `first` to `last` (both included) from the blobs as they stand.

        Every blob's place in the graph is noted, so that its gradient can be had; unless PyTorch's gradients are off.
        """
        edges = torch.is_grad_enabled()
        self._segments += 1
        self._objectives = []
        plan = self._plan(first, last)
        for step in self.steps[first : last + 1]:
            step.segment = self._segments if edges else -1
            step.places = ()  # which hold the memory of the last pass
        self._run(plan, edges)

    @machine.without_denormals
    def train_forward(self) -> None:
        """Compute the whole net, to be followed by `train_backward`."""
        plan = self._plan(0, len(self.steps) - 1)
        values = self._run(plan, edges=False)
        for step in self.steps:
            step.segment = -1
        self._objectives = [(step.tops[slot], values[step.tops[slot]]) for slot, step in plan.roots]

    def _run(self, plan: Plan, edges: bool) -> dict[str, torch.Tensor]:
        plan.release()
        values: dict[str, torch.Tensor] = {name: self._entering(name, edges) for name in plan.entering}
        entries: dict[str, Place] = dict(values)
        for name in plan.changed:
            values[name] = values[name].clone()
        for step in plan.inputs:
            step.places = [entries[name] for name in step.tops]
        for step, sources in plan.steps:
            bottoms = [values[name] if propagates else values[name].detach() for name, propagates in sources]
            try:
                tops = step.layer.forward(*bottoms)
            except RuntimeError as error:
                if isinstance(error, Error) or step.layer.runs_user_code:
                    raise
                raise self._failed(step.layer, bottoms, error) from error
            if isinstance(tops, torch.Tensor):
                tops = (tops,)
            if step.begins_layout and self.channels_last:
                tops = [_channels_last(top) if top.dim() == 4 else top for top in tops]
            if edges and not step.bottoms:  # data, whose gradient is wanted under force_backward
                needs = self.net.blob_needs_backward
                pairs = zip(step.tops, tops, strict=True)
                tops = [top if top.requires_grad or not needs[name] else top.detach().requires_grad_() for name, top in pairs]
                step.places = tops
            for name, top in zip(step.tops, tops, strict=True):
                values[name] = top
            if edges and step.needs_backward:
                step.entries, step.places = entries, tops
                if step.overwritten:
                    step.places = [get_gradient_edge(top) if slot in step.overwritten else top for slot, top in enumerate(tops)]
        blobs = self.net.blobs
        for name in plan.made:
            blobs[name].tensor = values[name]
        return values

    def _entering(self, name: str, edges: bool) -> torch.Tensor:
        """A blob as it stands, as the beginning of a segment."""
        value = self.net.blobs[name].tensor
        if self.channels_last and value.dim() == 4:
            value = _channels_last(value)
        return value.detach().requires_grad_() if edges and self.net.blob_needs_backward[name] else value

    def _failed(self, layer: Layer, bottoms: Sequence[torch.Tensor], error: RuntimeError) -> Error:
        shapes = ", ".join(str(tuple(bottom.shape)) for bottom in bottoms)
        return LayerError(layer.where, f"cannot compute from bottoms of shapes {shapes}: {str(error).splitlines()[0]}")

    # ---- backward

    @machine.without_denormals
    def train_backward(self) -> None:
        """Add the gradients of the whole net to its parameters', and free the graph's memory."""
        roots = []
        for name, value in self._objectives:
            seed = self.net.blobs[name].gradient
            if seed is not None and value.requires_grad:
                roots.append((value * seed).sum())  # given as a gradient, it has PyTorch import sympy: 0.3 s
        self._objectives = []
        if roots:
            torch.autograd.backward(roots)

    @machine.without_denormals
    def backward(self, last: int, first: int) -> None:
        """Compute gradients through layers `last` down to `first` (both included), from the diffs of their tops.

        Gradients of parameters are added to what is there; those of blobs replace it.
        """
        stop = last
        while stop >= first:
            start = stop
            segment = self.steps[stop].segment
            while start > first and self.steps[start - 1].segment == segment:
                start -= 1
            if segment < 0:
                raise Error(self.steps[start].layer.where, "backward before forward", do="call net.forward() first")
            self._backward_segment(self._backward_plan(start, stop))
            stop = start - 1

    def _backward_segment(self, plan: BackwardPlan) -> None:
        blobs = self.net.blobs
        roots, seeds = [], []
        for step, slot, name in plan.roots:
            place = step.places[slot]
            if _is_in_graph(place):
                seed = blobs[name].gradient
                if seed is None and step.layer.runs_user_code:
                    seed = torch.zeros_like(blobs[name].tensor)
                if seed is not None:
                    roots.append(place)
                    seeds.append(seed.clone(memory_format=torch.contiguous_format))
        places = [(blobs[name], step.bottom_place(slot)) for name, step, slot in plan.wanted]
        wanted = [(blob, place) for blob, place in places if place is not None]
        owners = {id(blob.owner): blob.owner for blob in plan.learned}
        learned = [owner for owner in owners.values() if owner.leaf.requires_grad]
        targets: list[Place] = [owner.leaf for owner in learned]
        targets += [place for _, place in wanted]
        if not roots or not targets:
            return
        gradients = torch.autograd.grad(roots, targets, seeds, retain_graph=True, allow_unused=True)
        for owner, gradient in zip(learned, gradients, strict=False):
            if gradient is not None:
                total = owner.gradient
                if total is None:
                    owner.gradient = laid_out_as(gradient, owner.leaf)
                else:
                    total.add_(gradient)
        for (blob, _), gradient in zip(wanted, gradients[len(learned) :], strict=True):
            if gradient is not None:
                blob.gradient = gradient


def _is_in_graph(place: Place | None) -> bool:
    return place.requires_grad if isinstance(place, torch.Tensor) else place is not None


def laid_out_as(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """`value` with the strides of `other`, a tensor of the same shape; itself where it has them."""
    return value if value.stride() == other.stride() else torch.empty_like(other).copy_(value)


def _prefers_channels_last(layers: Sequence[Layer]) -> bool:
    """Whether channels-last is the faster layout: for two-dimensional convolutions it is, on CPUs and GPUs."""
    return any(layer.begins_layout and len(layer.blobs[0].shape) == 4 for layer in layers)


def _channels_last(value: torch.Tensor) -> torch.Tensor:
    """The same values, channels-last; images of one channel, which are that already, keep the strides of NCHW."""
    return value if value.shape[1] == 1 else value.contiguous(memory_format=torch.channels_last)

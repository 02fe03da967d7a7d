"""What a net's passes do, planned once: its layers with their places in the graph, and ranges of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd.graph import GradientEdge

from caffe.engine.blob import Blob
from caffe.engine.graph import NetGraph
from caffe.engine.layer import Layer
from caffe.engine.names import ByName
from caffe.proto import caffe_pb2

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
        return place if is_in_graph(place) else None


@dataclass
class Call:
    """One operation of a forward pass: a layer's, or that of several layers.

    step        the layer, or the first of them
    sources     for each bottom its name, and whether a gradient passes back to it
    tops        names of the tops
    joined      computes the tops, where that is not the layer alone
    unseen      blobs that nobody may look at for it
    of_parts    computes the top from the one bottom, a Later, and the parts of its channels; None if it cannot
    most_parts  number of parts up to which that takes less time than putting them together
    """

    step: Step
    sources: list[tuple[str, bool]]
    tops: list[str]
    joined: Callable[..., Any] | None = None
    unseen: Sequence[str] = ()
    of_parts: Callable[..., Any] | None = None
    most_parts: int = 0

    @classmethod
    def of(cls, step: Step) -> Call:
        """A layer's own."""
        return cls(step, list(zip(step.bottoms, step.propagates, strict=True)), step.tops)


class Joined:
    """Calls of a pass that joins layers; `unseen` are the blobs that nobody may look at for it."""

    def __init__(self, calls: list[Call]):
        self.calls = calls
        self.unseen = [name for call in calls for name in call.unseen]


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
    blobs: ByName[Blob] = field(default_factory=lambda: ByName(kind="blob"))
    blob_loss_weights: OrderedDict[str, float] = field(default_factory=OrderedDict)
    """Weights of the blobs in the objective, by name; 0 for those that are not losses."""
    blob_needs_backward: dict[str, bool] = field(default_factory=dict)
    graph: NetGraph = field(default_factory=lambda: NetGraph([]))
    outputs: list[str] = field(default_factory=list)


class Plan:
    """What a forward pass over a range of layers does, planned once.

    inputs    the layers whose tops the caller sets
    calls     what computes the others
    entering  names of the blobs whose current values are read
    made      the blobs that are computed, by name; names of those that are also read, and so `changed` in place
    """

    def __init__(self, net: BuiltNet, steps: list[Step]):
        self.inputs = [step for step in steps if step.layer.is_input]
        computing = [step for step in steps if not step.layer.is_input]
        self.calls = [Call.of(step) for step in computing]
        self.joined: dict[bool, Joined] = {}
        """The calls of a pass that joins layers, once there was one, by whether it makes a graph, as a solver's does."""
        self.entering = [name for step in self.inputs for name in step.tops]
        self.made: dict[str, Blob] = {}
        for step in computing:
            self.entering += [name for name in dict.fromkeys(step.bottoms) if name not in (*self.made, *self.entering)]
            self.made |= {name: net.blobs[name] for name in step.tops}
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


def is_in_graph(place: Place | None) -> bool:
    return place.requires_grad if isinstance(place, torch.Tensor) else place is not None

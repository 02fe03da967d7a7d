"""Concatenations that testing leaves out: the layer after them reads the parts.

Putting channels together writes and reads all of them once more, a seventh of SqueezeNet's forward pass. A convolution of
channels put together is the sum of convolutions of the parts, and pooling works on each channel alone. The blob's values are put
together when somebody looks at it (`Later`), and from then on always.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from caffe.engine.layer import Layer
from caffe.engine.plan import Call
from caffe.engine.side import Later


def are_apart(xs: Sequence[Tensor]) -> bool:
    """Whether these are float32 images, channels-last, whose memory no look at a blob shows."""
    layout = torch.channels_last
    return all(
        x.dim() == 4 and x.dtype is torch.float32 and x.is_contiguous(memory_format=layout) and not x.is_contiguous() for x in xs
    )


def read(calls: Sequence[Call], is_looked_at: Callable[[str], bool]) -> list[Call]:
    """Calls in which layers read the parts of concatenated channels, where that takes less time.

    is_looked_at  whether somebody looks at a blob, so that it is always computed
    """
    result = list(calls)
    for index, call in enumerate(calls):
        layer, names = call.step.layer, [name for name, _ in call.sources]
        is_concatenation = layer.joins_channels and not call.joined and len(names) > 1 and layer.device.type == "cpu"
        if is_concatenation and not any(map(is_looked_at, names)) and _spread(result, index, names, is_looked_at):
            later = functools.partial(_together_later, layer)
            result[index] = dataclasses.replace(call, joined=later, unseen=(*names, *call.tops))
    return result


def _spread(calls: list[Call], index: int, names: list[str], is_looked_at: Callable[[str], bool]) -> bool:
    """Let the call that reads the top of call `index` read its parts, if only one does, and it can; returns whether it does."""
    (top,) = calls[index].tops
    following = range(index + 1, len(calls))
    readers = [number for number in following if any(name == top for name, _ in calls[number].sources)]
    is_changed = any(name in calls[number].tops for number in following for name in (top, *names))
    if is_looked_at(top) or is_changed or len(readers) != 1:
        return False
    (number,) = readers
    reader, sources = calls[number], [(name, False) for name in names]
    if reader.of_parts and len(names) <= reader.most_parts:
        calls[number] = dataclasses.replace(reader, sources=sources, joined=reader.of_parts)
        return True
    layer = reader.step.layer
    if not layer.is_by_channel or reader.joined:
        return False
    calls[number] = dataclasses.replace(reader, sources=sources, joined=functools.partial(_by_part, layer))
    own = [f"{reader.tops[0]}\0{part}" for part in range(len(names))]
    if _spread(calls, number, own, is_looked_at):
        by_part = functools.partial(_by_part_later, layer)
        calls[number] = dataclasses.replace(calls[number], tops=[*reader.tops, *own], joined=by_part, unseen=reader.tops)
    return True


def _together_later(concatenation: Layer, *xs: Tensor) -> tuple[Tensor | Later]:
    (shape,) = concatenation.top_shapes(*(tuple(x.shape) for x in xs))
    return (Later(shape, lambda: torch.cat(xs, 1)) if are_apart(xs) else torch.cat(xs, 1),)


def _by_part(layer: Layer, *xs: Tensor) -> Tensor:
    return torch.cat(_each(layer, xs), 1)


def _by_part_later(layer: Layer, *xs: Tensor) -> tuple[Tensor | Later, ...]:
    tops = _each(layer, xs)
    shape = (len(xs[0]), sum(top.shape[1] for top in tops), *tops[0].shape[2:])
    return (Later(shape, lambda: torch.cat(tops, 1)) if are_apart(tops) else torch.cat(tops, 1), *tops)


def _each(layer: Layer, xs: Sequence[Tensor]) -> list[Tensor]:
    """The one top of a layer for each part."""
    result = []
    for x in xs:
        (top,) = layer.forward(x)
        result.append(top)
    return result

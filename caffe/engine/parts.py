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


def without_concatenations(calls: Sequence[Call], is_looked_at: Callable[[str], bool]) -> list[Call]:
    """Calls in which layers read the parts of concatenated channels, where that takes less time.

    A layer that reads parts has the whole as its first source: a tensor where the parts could not be left apart.

    is_looked_at  whether somebody looks at a blob, so that it is always computed
    """
    result = list(calls)
    for index, call in enumerate(calls):
        layer, names = call.step.layer, [name for name, _ in call.sources]
        is_concatenation = layer.joins_channels and not call.joined and len(names) > 1 and layer.device.type == "cpu"
        if is_concatenation and not any(map(is_looked_at, names)) and _pass_parts(result, index, names, is_looked_at):
            later = functools.partial(_put_together_later, layer)
            result[index] = dataclasses.replace(call, joined=later, unseen=(*names, *call.tops))
    return result


def _pass_parts(calls: list[Call], index: int, names: list[str], is_looked_at: Callable[[str], bool]) -> bool:
    """Let the call that reads the top of call `index` read its parts, if only one does, and it can; returns whether it does."""
    top = calls[index].tops[0]
    following = range(index + 1, len(calls))
    readers = [number for number in following if any(name == top for name, _ in calls[number].sources)]
    is_changed = any(name in calls[number].tops for number in following for name in (top, *names))
    if is_looked_at(top) or is_changed or len(readers) != 1:
        return False
    (number,) = readers
    reader, sources = calls[number], [(name, False) for name in (top, *names)]
    if reader.of_parts and len(names) <= reader.most_parts:
        calls[number] = dataclasses.replace(reader, sources=sources, joined=reader.of_parts)
        return True
    layer = reader.step.layer
    if not layer.is_by_channel or reader.joined:
        return False
    calls[number] = dataclasses.replace(reader, sources=sources, joined=functools.partial(_by_part, layer))
    pooled = [f"{reader.tops[0]}\0{part}" for part in range(len(names))]  # values of this pass that are no blobs
    if _pass_parts(calls, number, pooled, is_looked_at):
        by_part = functools.partial(_by_part_later, layer)
        calls[number] = dataclasses.replace(calls[number], tops=[*reader.tops, *pooled], joined=by_part, unseen=reader.tops)
    return True


def _together(xs: tuple[Tensor, ...]) -> Tensor | Later:
    """The channels of all, put together later if no look at a blob shows the memory of these images.

    A look at channels-last images copies them. Views may be of memory that somebody holds, and bfloat16 is for other products.
    """
    layout = torch.channels_last
    for x in xs:
        is_copied = x.dim() == 4 and x.is_contiguous(memory_format=layout) and not x.is_contiguous()
        if not is_copied or x.dtype is not torch.float32 or x._is_view() or x.is_inference():
            return torch.cat(xs, 1)
    return Later((len(xs[0]), sum(x.shape[1] for x in xs), *xs[0].shape[2:]), lambda: torch.cat(xs, 1))


def _put_together_later(concatenation: Layer, *xs: Tensor) -> tuple[Tensor | Later]:
    concatenation.top_shapes(*(tuple(x.shape) for x in xs))
    return (_together(xs),)


def _by_part(layer: Layer, whole: Tensor | Later, *xs: Tensor) -> Tensor:
    """The top of a layer from the parts, put together."""
    (top,) = layer.forward(whole) if isinstance(whole, Tensor) else (torch.cat(_of_each(layer, xs), 1),)
    return top


def _by_part_later(layer: Layer, whole: Tensor | Later, *xs: Tensor) -> tuple[Tensor | Later, ...]:
    """The top of a layer and its parts, which nobody reads if it is a tensor."""
    if isinstance(whole, Tensor):
        (top,) = layer.forward(whole)
        return (top, *(top for _ in xs))
    tops = _of_each(layer, xs)
    return (_together(tops), *tops)


def _of_each(layer: Layer, xs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The one top of a layer for each part."""
    return tuple(top for x in xs for top in layer.forward(x))

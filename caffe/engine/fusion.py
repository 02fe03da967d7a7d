"""Several layers as one operation, in passes that need no gradient.

In testing, BatchNorm, Scale and Bias multiply each channel by a number and add another. Those that change a convolution's top in
place are folded into its weights, and ones in a row into one; a ReLU in place, and an Eltwise that adds another blob, are left to
the convolution's own kernel where oneDNN computes it.

A convolution of concatenated channels is the sum of convolutions of the parts (`caffe.engine.parts`).

Every blob keeps its values. What a layer has overwritten in place is not a blob's value, and a top that an Eltwise alone has read
is computed when somebody looks at it (`Later`); from then on it is always computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from caffe.engine import machine, parts
from caffe.engine.layer import Layer
from caffe.engine.plan import Call, Step
from caffe.engine.side import Later

_ONEDNN = torch.ops.mkldnn
_Weights = tuple[list[Tensor], Tensor]
"""What multiplies, for each part of the bottom, and what is added."""
InNumerics = Callable[[Callable[[], Tensor]], Tensor]
RELU: tuple[str, tuple[float, ...]] = "relu", ()
FOLDED_KEPT = 2
"""Shapes of a convolution's bottom for which its folded weights are kept."""


class Fusion:
    """Joins the calls of a net's layers; weights that were folded are kept until they change.

    compute  runs a function in the net's numerics
    """

    def __init__(self, compute: InNumerics):
        self._compute = compute
        self._folded: dict[tuple[int, ...], _Folded] = {}

    def joined(self, calls: Sequence[Call], is_looked_at: Callable[[str], bool]) -> list[Call]:
        """Calls that compute the same with fewer operations.

        is_looked_at  whether somebody looks at a blob, so that it is always computed
        """
        result = []
        position = 0
        while position < len(calls):
            chain = _Chain.at(calls, position, is_looked_at)
            result.append(self._call(chain) if chain.is_worth_joining else calls[position])
            position += chain.length
        return parts.without_concatenations(result, is_looked_at)

    def joined_in_training(self, calls: Sequence[Call], is_looked_at: Callable[[str], bool]) -> list[Call]:
        """Calls that compute the same, and its gradients: a Scale in place after BatchNorm is a part of it, and so is the Eltwise
        that adds another blob to their top. On a GPU, so is a ReLU in place after a sum or a Scale.
        """
        result: list[Call] = []
        for call in calls:
            joined = self._normalising(result[-1], call, is_looked_at) or _with_relu(result[-1], call) if result else None
            if joined:
                result[-1] = joined
            else:
                result.append(call)
        return result

    def _normalising(self, before: Call, call: Call, is_looked_at: Callable[[str], bool]) -> Call | None:
        """BatchNorm, with a Scale if there is one, and the layer after them as one call; None if that layer is another."""
        normalising = before.step.layer
        if not normalising.takes_affine or len(before.tops) > 1:
            return None
        (top,) = before.tops
        if not before.joined and _is_in_place(call.step, top):
            affine = call.step.layer.per_channel()
            if affine and affine[0] is not None:
                return Call(
                    before.step, before.sources, before.tops, functools.partial(_then_affine, normalising, call.step.layer)
                )
        other = _added_to(call.step, top)
        # A GPU's graphs reuse the memory of what the top is computed from.
        if other and normalising.device.type == "cpu" and not any(map(is_looked_at, (top, *before.step.bottoms))):
            scaling = before.joined.args[1] if isinstance(before.joined, functools.partial) else None
            with_sum = functools.partial(_then_sum, normalising, scaling, call.step.layer, self._compute)
            passes = call.sources[call.step.bottoms.index(other)][1]
            unseen = (top, *before.step.bottoms)
            return Call(before.step, [*before.sources, (other, passes)], [top, *call.tops], with_sum, unseen)
        return None

    def _call(self, chain: _Chain) -> Call:
        layers = [step.layer for step in (chain.head, *chain.affine)]
        key = tuple(map(id, layers))
        folded = self._folded.setdefault(key, _Folded(layers))
        names = [*chain.head.bottoms, *([chain.other] if chain.other else [])]
        tops = [chain.head.tops[0], *(chain.sum.tops if chain.sum else [])]
        call = Call(chain.head, [(name, False) for name in names], tops, _affine(chain, folded))
        if chain.head.layer.can_be_folded:
            convolution = _Convolution(chain, folded, self._compute)
            if chain.sum:
                call.joined, call.unseen = convolution.and_sum, (tops[0], *chain.head.bottoms)
            else:
                call.joined, call.of_parts, call.most_parts = convolution, convolution.of_parts, convolution.most_parts
        return call


@dataclass
class _Chain:
    """Layers in a row that are one operation.

    head    a convolution, or an affine layer
    affine  affine layers in place of its top
    act     a ReLU in place of it, or of the sum
    sum     an Eltwise that adds the blob `other` to the top, which nobody else reads
    """

    head: Step
    affine: list[Step]
    act: Step | None = None
    sum: Step | None = None
    other: str = ""

    @property
    def length(self) -> int:
        return 1 + len(self.affine) + (self.act is not None) + (self.sum is not None)

    @property
    def is_worth_joining(self) -> bool:
        """Whether it is several layers, or a convolution on a CPU, whose kernel takes weights in a layout of its own."""
        return self.length > 1 or (self.head.layer.can_be_folded and self.head.layer.device.type == "cpu")

    @classmethod
    def at(cls, calls: Sequence[Call], position: int, is_looked_at: Callable[[str], bool]) -> _Chain:
        """The chain that begins with a call; of length 1 if nothing can be joined to it."""
        head = calls[position].step
        chain = cls(head, [])
        following = (call.step for call in calls[position + 1 :])
        if not (head.layer.can_be_folded or head.layer.per_channel() is not None):
            return chain
        step = next(following, None)
        while step and _is_in_place(step, head.tops[0]) and step.layer.per_channel() is not None:
            chain.affine.append(step)
            step = next(following, None)
        top = head.tops[0]
        if (
            step
            and head.layer.can_be_folded
            and not any(map(is_looked_at, (top, *head.bottoms)))
            and (other := _added_to(step, top))
        ):
            chain.sum, chain.other, top = step, other, step.tops[0]
            step = next(following, None)
        if step and _is_in_place(step, top) and step.layer.activation is not None:
            chain.act = step
        return chain


def _is_in_place(step: Step, top: str) -> bool:
    return step.bottoms == [top] == step.tops


def _with_relu(before: Call, call: Call) -> Call | None:
    """A layer and the ReLU in place after it as one call, on a GPU; None if they are something else."""
    layer = before.step.layer
    if before.joined or not layer.takes_relu or not machine.has_kernels(layer.device):
        return None
    if not _is_in_place(call.step, before.tops[0]) or call.step.layer.activation != RELU:
        return None
    return Call(before.step, before.sources, before.tops, layer.then_relu)


def _added_to(step: Step, top: str) -> str:
    """The blob that a layer adds to `top`; "" if it does something else."""
    if not step.layer.only_adds or len(step.bottoms) != 2 or top not in step.bottoms:
        return ""
    other = step.bottoms[1 - step.bottoms.index(top)]
    return other if other != top else ""


class _Folded:
    """A layer's weights with those of the affine layers after it folded in."""

    def __init__(self, layers: Sequence[Layer]):
        self._layers = layers
        self._blobs = [blob for layer in layers for blob in layer.blobs]
        self._kept: dict[object, _Weights] = {}
        self._versions: list[tuple[int, int]] = []

    def get(self, key: object, fold: Callable[[Tensor, Tensor], _Weights]) -> _Weights:
        """What `fold` makes of the factor and the term of each channel; kept by `key` as long as no blob of the layers changes.

        If somebody holds NumPy views of a blob, it may change unnoticed, and nothing is kept.
        """
        memories = [blob.memory for blob in self._blobs]
        versions = [] if self.changes_unnoticed else [(memory.order, memory.leaf._version) for memory in memories]
        if versions != self._versions or not versions:
            self._kept.clear()
            self._versions = versions
        found = self._kept.get(key)
        if found is None:
            if len(self._kept) >= FOLDED_KEPT:
                self._kept.clear()
            found = self._kept[key] = fold(*self._affine())
        return found

    @property
    def changes_unnoticed(self) -> bool:
        """Whether somebody holds NumPy views of the weights, or they were made in PyTorch's inference mode."""
        return any(blob.memory.data.seen or blob.memory.leaf.is_inference() for blob in self._blobs)

    def _affine(self) -> tuple[Tensor, Tensor]:
        """Factor and term of each channel of all affine layers together, float64: (C,), or (1,) without any."""
        device = self._layers[0].device
        factor = torch.ones(1, dtype=torch.float64, device=device)
        term = torch.zeros(1, dtype=torch.float64, device=device)
        for pair in (layer.per_channel() for layer in self._layers):
            if pair is None:  # the convolution
                continue
            times, plus = pair
            factor = factor if times is None else factor * times.double()
            term = term if times is None else term * times.double()
            term = term if plus is None else term + plus.double()
        return factor, term


def _affine(chain: _Chain, folded: _Folded) -> Callable[..., Tensor]:
    """y = factor · x + term for each channel, and a ReLU."""

    def compute(x: Tensor) -> Tensor:
        def along_channels(factor: Tensor, term: Tensor) -> _Weights:
            return [over_channels(factor.float(), x)], over_channels(term.float(), x)

        (factor,), term = folded.get(x.dim(), along_channels)
        y = torch.addcmul(term, x.float(), factor)
        return y if chain.act is None else _activated(chain.act.layer, y)

    return compute


def _then_affine(normalising: Layer, affine: Layer | None, x: Tensor) -> Tensor:
    scale, *shift = affine.parameters() if affine else [None]
    return normalising.then_affine(x, scale, shift[0] if shift else None)


def _then_sum(
    normalising: Layer, affine: Layer | None, summing: Layer, in_numerics: InNumerics, x: Tensor, other: Tensor
) -> tuple[Tensor | Later, Tensor]:
    """The normalised values, to be computed again if they are looked at, and their sum with another blob in their memory.

    Their gradient does not need them, but it needs x.
    """
    y = _then_affine(normalising, affine, x)
    summing.require_same_shape(tuple(y.shape), tuple(other.shape))
    # Running statistics may change before the look, and row-major values may be a blob's, which a look shows.
    if not normalising.added or x.is_contiguous():
        return y, y + other
    first = x.detach()
    scale, *shift = [blob.tensor.clone() for blob in affine.blobs] if affine else [None]

    def again() -> Tensor:
        return normalising.normalised(first, scale, shift[0] if shift else None)

    return Later(tuple(y.shape), lambda: in_numerics(again)), y.add_(other)


def over_channels(values: Tensor, x: Tensor) -> Tensor:
    """Values of each channel, (C,), in the shape that broadcasts over x, (N, C, …)."""
    return values.view(-1, *[1] * (x.dim() - 2))


def _activated(layer: Layer, y: Tensor) -> Tensor:
    """A ReLU of values that nobody else reads."""
    return torch.relu_(y) if layer.activation == RELU else cast(Tensor, layer.forward(y))


class _Geometry(Protocol):
    """What a layer that can be folded has besides a layer's own."""

    pad: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    group: int

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...


class _Convolution:
    """A convolution with folded weights, and what its kernel computes after it."""

    def __init__(self, chain: _Chain, folded: _Folded, in_numerics: InNumerics):
        self._chain, self._folded, self._in_numerics = chain, folded, in_numerics
        self._layer = cast(_Geometry, chain.head.layer)
        self._geometry = self._layer.pad, self._layer.stride, self._layer.dilation, self._layer.group
        self._act = chain.act.layer if chain.act else None
        self._relu = "relu" if self._act and self._act.activation == RELU else None
        """What the kernel computes after a sum: ReLU, but no other activation."""
        self._device = chain.head.layer.device
        self._channels = chain.head.layer.blobs[0].shape[1] * self._layer.group
        self._computes = self._device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]

    def _has_kernel(self, x: Tensor) -> bool:
        """Whether oneDNN convolves these images."""
        is_image = x.dim() == 4 and x.shape[1] == self._channels and x.dtype in (torch.float32, torch.bfloat16)
        return self._computes and is_image and x.is_contiguous(memory_format=torch.channels_last)

    def _weights(self, x: Tensor, kernel: bool) -> tuple[Tensor, Tensor]:
        """Weights and bias, as the kernel takes them."""
        product = machine.product_type(self._device)

        def fold(factor: Tensor, term: Tensor) -> _Weights:
            weight, bias = self._plain_weights(factor, term)
            if kernel:
                weight = self._laid_out(weight.detach().to(product), x)
            if self._chain.sum and not self._chain.affine and (not kernel or self._folded.changes_unnoticed):
                weight = weight.clone()  # for a top that is computed later
            return [weight], bias

        (weight,), bias = self._folded.get((x.shape, kernel, product), fold)
        return weight, bias

    def _plain_weights(self, factor: Tensor, term: Tensor) -> tuple[Tensor, Tensor]:
        weight, *rest = (blob.tensor for blob in self._chain.head.layer.blobs)
        bias = (rest[0] * factor if rest else 0) + term
        if self._chain.affine:
            weight = weight * factor.float().view(-1, 1, 1, 1)
        return weight, bias.float().expand(len(weight)).contiguous()

    def _laid_out(self, weight: Tensor, x: Tensor) -> Tensor:
        """Weights in the kernel's layout, unless they may change unnoticed."""
        if self._folded.changes_unnoticed:
            return weight
        laid_out: Tensor = _ONEDNN._reorder_convolution_weight(weight, *self._geometry, x.shape)
        return laid_out

    def _top(self, x: Tensor, weight: Tensor, bias: Tensor, kernel: bool, act: Layer | None) -> Tensor:
        x = x.to(weight.dtype)
        if not kernel:
            top = self._layer.convolve(x, weight, bias)
            return top if act is None else _activated(act, top)
        name, numbers = (act.activation if act else None) or ("none", ())
        y: Tensor = _ONEDNN._convolution_pointwise(x, weight, bias, *self._geometry, name, numbers, "")
        return y

    def __call__(self, x: Tensor) -> Tensor:
        is_single = machine.product_type(self._device) is torch.float32
        if is_single and self._chain.length == 1 and self._folded.changes_unnoticed:  # nothing to fold, and nothing to keep
            (top,) = self._chain.head.layer.forward(x)
            return top
        kernel = self._has_kernel(x)
        return self._top(x, *self._weights(x, kernel), kernel, self._act)

    @property
    def most_parts(self) -> int:
        """Number of parts whose sums write and read less memory than putting them together."""
        outputs, inputs = self._chain.head.layer.blobs[0].shape[:2]
        return 1 + (inputs - 1) // outputs if self._computes and self._layer.group == 1 else 0

    def of_parts(self, whole: Tensor | Later, *xs: Tensor) -> Tensor:
        """The top from the bottom or, where that is to be put together later, from the parts of its channels."""
        if isinstance(whole, Tensor):
            return self(whole)
        if machine.product_type(self._device) is not torch.float32 or sum(x.shape[1] for x in xs) != self._channels:
            return self(torch.cat(xs, 1))

        def fold(factor: Tensor, term: Tensor) -> _Weights:
            weight, bias = self._plain_weights(factor, term)
            of_each = torch.split(weight.detach(), [x.shape[1] for x in xs], 1)
            rows = (each.contiguous(memory_format=torch.channels_last) for each in of_each)
            return [self._laid_out(each, x) for each, x in zip(rows, xs, strict=True)], bias

        (first, *others), bias = self._folded.get(tuple(x.shape for x in xs), fold)
        y: Tensor = _ONEDNN._convolution_pointwise(xs[0], first, bias, *self._geometry, "none", (), "")
        for number, (x, weight) in enumerate(zip(xs[1:], others, strict=True), 2):
            act = self._relu if number == len(xs) else None
            _ONEDNN._convolution_pointwise_.binary(y, x, weight, None, *self._geometry, "add", 1.0, act, (), "")
        return self._after_sum(y)

    def _after_sum(self, y: Tensor) -> Tensor:
        """What the kernel has not computed after a sum."""
        return y if self._act is None or self._relu else _activated(self._act, y)

    def and_sum(self, x: Tensor, other: Tensor) -> tuple[Tensor | Later, Tensor]:
        """The convolution's top, to be computed if it is looked at, and the sum with another blob."""
        weight, bias = self._weights(x, kernel := self._has_kernel(x))
        # Of images of one pixel, a look would show the memory that is needed to compute the top later.
        is_exact = weight.dtype == torch.float32
        if not kernel or not is_exact or x.is_contiguous() or not other.is_contiguous(memory_format=torch.channels_last):
            top = self._top(x, weight, bias, kernel, None)
            self._check_sum(top, other)
            return top, other + top if self._act is None else _activated(self._act, other + top)
        try:
            y = _ONEDNN._convolution_pointwise.binary(x, other, weight, bias, *self._geometry, "add", 1.0, self._relu, (), "")
        except RuntimeError:
            self._check_sum(self._top(x, weight, bias, kernel, None), other)
            raise
        self._check_sum(y, other)
        later = Later(tuple(y.shape), lambda: self._in_numerics(lambda: self._top(x, weight, bias, kernel, None)))
        return later, self._after_sum(y)

    def _check_sum(self, top: Tensor, other: Tensor) -> None:
        cast(Step, self._chain.sum).layer.require_same_shape(tuple(top.shape), tuple(other.shape))

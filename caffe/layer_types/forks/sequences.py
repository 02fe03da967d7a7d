"""Sequence layers of text recognition nets: Reverse, Transpose, Lstm, ContinuationIndicator."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from caffe.engine.layer import Layer, Shape, register
from caffe.layer_types.recurrent import _lstm_step, _Recurrent
from caffe.proto import caffe_pb2


@register("Reverse")
class Reverse(Layer):
    """The values along an axis (0, the time steps, by default) in reverse order; shape of x (CTPN, caffe_ocr)."""

    keeps_shape = True
    drawn_as = "arrangement"

    def setup(self, shape: Shape) -> None:
        self.along = self.axis(self.param.reverse_param.axis, len(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(self.along)


@register("Transpose")
class Transpose(Layer):
    """Axis i of the top is axis dim[i] of the bottom, for every axis (CTPN, caffe_ocr)."""

    drawn_as = "arrangement"

    def setup(self, shape: Shape) -> None:
        self.order = list(self.param.transpose_param.dim)
        if sorted(self.order) != list(range(len(shape))):
            given = ", ".join(map(str, self.order)) or "not given"
            raise self.error(f"dim {given}", f"each axis of the bottom (0 to {len(shape) - 1}) must be listed once")

    def top_shapes(self, shape: Shape) -> list[Shape]:
        return [tuple(shape[axis] for axis in self.order)]

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


class _ClippedGradient(torch.autograd.Function):
    """x; its gradient is limited to ±threshold, value by value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: float) -> Tensor:
        ctx.threshold = threshold
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.clamp(-ctx.threshold, ctx.threshold), None


@register("Lstm", "lstm_param")
class Lstm(_Recurrent):
    """LSTM of junhyukoh's caffe-lstm, as in CTPN and caffe_ocr: (x (T, N, …)[, cont (T, N)]) → (T, N, D).

    The steps and the order of the gates are LSTM's; blobs: W_xc (4 D, K), W_hc (4 D, D), b (4 D,). Sequences begin at step 0, or
    where cont is 0; with cont, the state is carried to the next forward pass, without a gradient. If clipping_threshold is above
    0, the gradient of the gates' pre-activations is limited to ± that value at each step.
    With batch_size N, or an x of two axes, junhyukoh's own form: (T · N, …) → (T · N, D).
    """

    bottoms = (1, 2)
    tops = (1, 1)
    differentiable_bottoms = (0,)
    states = 2
    names = ("weight_input", "weight_hidden", "bias")

    @classmethod
    def has_static_input(cls, param: caffe_pb2.LayerParameter) -> bool:
        return False

    def setup(self, x: Shape, *cont: Shape) -> None:
        p = self.param.lstm_param
        self.require_positive("num_output")
        self.is_flat = p.HasField("batch_size") or len(x) < 3
        if len(x) < 2:
            raise self.error(f"x of shape {x}", "it must be (steps, sequences, values, …)")
        self.inputs = math.prod(x[1 if self.is_flat else 2 :])
        self.add_blob((4 * p.num_output, self.inputs), p.weight_filler)
        self.add_blob((4 * p.num_output, p.num_output), p.weight_filler)
        self.add_blob((4 * p.num_output,), p.bias_filler)
        self.kept: list[Tensor] | None = None

    def batch_dependence(self) -> str:
        return super().batch_dependence() if len(self.param.bottom) > 1 else ""

    def top_shapes(self, x: Shape, *cont: Shape) -> list[Shape]:
        p = self.param.lstm_param
        leading = x[:1] if self.is_flat else x[:2]
        if self.is_flat and (p.batch_size < 1 or x[0] % p.batch_size):
            raise self.error(f"batch_size {p.batch_size} for x of shape {x}", "its first axis must be steps × batch_size")
        if math.prod(x) != math.prod(leading) * self.inputs:
            raise self.error(f"x of shape {x}", f"the weights take {self.inputs} values a step")
        if cont and math.prod(cont[0]) != math.prod(leading):
            raise self.error(f"cont of shape {cont[0]} for x of shape {x}", "there must be one for each step of each sequence")
        return [(*leading, p.num_output)]

    def forward(self, x: Tensor, *cont: Tensor) -> Tensor:
        p = self.param.lstm_param
        count = p.batch_size if self.is_flat else x.shape[1]
        to_gates, to_hidden, bias = self.parameters()
        inputs = functional.linear(x.reshape(-1, count, self.inputs), to_gates, bias)
        marks = cont[0].reshape(-1, count, 1) if cont else inputs.new_ones(len(inputs), 1, 1)
        start = inputs.new_zeros(2, count, p.num_output)
        carried = cont and self.kept and self.kept[0].shape == start[0].shape
        hidden, cell = self.kept if carried and self.kept else start
        steps = []
        for share, mark in zip(inputs, marks, strict=True):
            gates = torch.addmm(share, hidden * mark, to_hidden.t())
            if p.clipping_threshold > 0:
                gates = _ClippedGradient.apply(gates, p.clipping_threshold)
            cell, hidden = _lstm_step(cell, gates, mark)
            steps.append(hidden)
        if cont:
            self.kept = [hidden.detach(), cell.detach()]
        top = torch.stack(steps)
        return top.flatten(0, 1) if self.is_flat else top


@register("ContinuationIndicator")
class ContinuationIndicator(Layer):
    """cont of an LSTM whose batches are whole sequences: ([x (N, …)]) → (time_step, N), 0 at the first step, else 1.

    N is batch_size without a bottom (xmfbit's warpctc-caffe).
    """

    bottoms = (0, 1)
    differentiable_bottoms = ()

    def setup(self, *shapes: Shape) -> None:
        self.require_positive("time_step")
        if not shapes:
            self.require_positive("batch_size", expected="without a bottom it must be at least 1")

    def top_shapes(self, *shapes: Shape) -> list[Shape]:
        p = self.param.continuation_indicator_param
        return [(p.time_step, shapes[0][0] if shapes else p.batch_size)]

    def forward(self, *bottoms: Tensor) -> Tensor:
        marks = torch.ones(self.top_shapes(*[tuple(x.shape) for x in bottoms])[0], device=self.device)
        marks[0] = 0
        return marks

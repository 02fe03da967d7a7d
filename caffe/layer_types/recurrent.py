"""Recurrent layers: RNN, LSTM, LSTMUnit."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from caffe.engine.layer import BlobSpec, Layer, Shape, Tops, register
from caffe.formats.stored import add_array, shape_of, values_of
from caffe.proto import caffe_pb2


class _Recurrent(Layer):
    """Base of RNN and LSTM: time steps, continuation indicators, static inputs, and a state kept across forward passes.

    Bottoms: x (T, N, …); cont (T, N), 0 at the first step of a sequence and 1 at later ones; optionally a static input (N, …) for
    all steps; with expose_hidden, the states before the first step, each (1, N, D). Tops: (T, N, D); with expose_hidden, the
    states after the last step. Otherwise the state is carried to the next forward pass, without a gradient.
    """

    bottoms: tuple[int, int | None] = (2, None)
    tops: tuple[int, int | None] = (1, None)
    drawn_as = "inner product"
    states = 0
    """Number of states (1, N, D) that a step passes to the next."""
    gates = 1
    """Number of gates: pre-activations that a step computes for each value of a state."""
    names: tuple[str, ...] = ()
    """Names of the blobs of a layer with a static input."""

    @classmethod
    def has_static_input(cls, param: caffe_pb2.LayerParameter) -> bool:
        """Whether the third bottom is a static input; further bottoms are the states before the first step."""
        return bool(len(param.bottom) - 2 - cls.states * param.recurrent_param.expose_hidden > 0)

    @classmethod
    def blob_specs(cls, param: caffe_pb2.LayerParameter) -> tuple[BlobSpec, ...]:
        static = cls.has_static_input(param)
        return tuple(BlobSpec(name) for name in cls.names if static or name != "weight_static")

    def setup(self, x: Shape, cont: Shape, *others: Shape) -> None:
        p = self.param.recurrent_param
        self.require_positive("num_output")
        if len(x) < 3 or cont != x[:2]:
            raise self.error(
                f"x of shape {x} and cont of shape {cont}", "x must be (steps, sequences, values, …) and cont (steps, sequences)"
            )
        hidden = self.states if p.expose_hidden else 0
        self.static = self.has_static_input(self.param)
        if len(others) - hidden not in (0, 1):
            raise self.error(f"{2 + len(others)} bottoms", f"it takes {2 + hidden}, or {3 + hidden} with a static input")
        if len(self.param.top) != 1 + hidden:
            raise self.error(f"{len(self.param.top)} tops", f"it has {1 + hidden}")
        if self.static and others[0][:1] != x[1:2]:
            raise self.error(f"a static input of shape {others[0]}", f"it must have one row for each of {x[1]} sequences")
        for state in others[int(self.static) :]:
            if state != (1, x[1], p.num_output):
                raise self.error(f"a state of shape {state}", f"it must be (1, {x[1]}, {p.num_output})")
        self.differentiable_bottoms = (0, *range(2, 2 + len(others)))
        rows = self.gates * p.num_output
        widths = {"weight_input": math.prod(x[2:])}
        if self.static:
            widths["weight_static"] = math.prod(others[0][1:])
        for spec in self.blob_specs(self.param):
            if spec.name.startswith("bias"):
                self.add_blob((rows,), p.bias_filler)
            else:
                self.add_blob((rows, widths.get(spec.name, p.num_output)), p.weight_filler)
        self.kept: list[Tensor] | None = None

    def batch_dependence(self) -> str:
        return "the records of a sequence are spread over the processes"

    def run(self, inputs: Tensor, cont: Tensor, states: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Tops (T, N, D) and the last states, from the inputs' contribution to each step's pre-activation (T, N, rows)."""
        raise NotImplementedError

    def top_shapes(self, x: Shape, cont: Shape, *others: Shape) -> list[Shape]:
        return [(*x[:2], self.param.recurrent_param.num_output), *others[int(self.static) :]]

    def keep(self, state: caffe_pb2.LayerState) -> None:
        for tensor in self.kept or []:
            add_array(state.hidden.add(), tensor.cpu().numpy())

    def resume(self, state: caffe_pb2.LayerState) -> None:
        kept = [torch.from_numpy(values_of(blob).reshape(shape_of(blob))).to(self.device) for blob in state.hidden]
        self.kept = kept if len(kept) == self.states else None

    def forward(self, x: Tensor, cont: Tensor, *others: Tensor) -> Tops:
        weights = self.parameters()
        inputs = functional.linear(x.flatten(2), weights.pop(0), weights.pop(0))
        if self.static:
            inputs = inputs + functional.linear(others[0].flatten(1), weights.pop(0))
        given = others[int(self.static) :]
        shape = (1, x.shape[1], self.param.recurrent_param.num_output)
        kept = self.kept if self.kept and self.kept[0].shape == shape else [x.new_zeros(shape)] * self.states
        top, last = self.run(inputs, cont[..., None], [state[0] for state in given or kept], weights)
        # Caffe passes no gradient back from the exposed last states.
        last = [state[None].detach() for state in last]
        if given:
            return (top, *last)
        self.kept = last
        return top


@register("RNN", "recurrent_param")
class RNN(_Recurrent):
    """h = tanh(W_hh (cont · h) + W_xh x + b_h [+ W_xh_static s]), y = tanh(W_ho h + b_o).

    Blobs: W_xh (D, K), b_h (D,), [W_xh_static (D, S)], W_hh (D, D), W_ho (D, D), b_o (D,).
    """

    states = 1
    names = ("weight_input", "bias_hidden", "weight_static", "weight_hidden", "weight_output", "bias_output")

    def run(self, inputs: Tensor, cont: Tensor, states: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        to_hidden, to_output, bias = weights
        (hidden,) = states
        steps = []
        for share, mark in zip(inputs, cont, strict=True):
            hidden = torch.tanh(torch.addmm(share, hidden * mark, to_hidden.t()))
            steps.append(hidden)
        return torch.tanh(functional.linear(torch.stack(steps), to_output, bias)), [hidden]


@register("LSTM", "recurrent_param")
class LSTM(_Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber 1997), gates in the order input, forget, output, candidate:

    i, f, o = σ(…), g = tanh(…) of W_xc x + b_c [+ W_xc_static s] + W_hc (cont · h); c = cont · f · c + i · g; h = o · tanh c.
    Blobs: W_xc (4 D, K), b_c (4 D,), [W_xc_static (4 D, S)], W_hc (4 D, D). States: h, c.
    """

    states = 2
    gates = 4
    names = ("weight_input", "bias", "weight_static", "weight_hidden")

    def run(self, inputs: Tensor, cont: Tensor, states: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        (to_hidden,) = weights
        hidden, cell = states
        steps = []
        for share, mark in zip(inputs, cont, strict=True):
            cell, hidden = _lstm_step(cell, torch.addmm(share, hidden * mark, to_hidden.t()), mark)
            steps.append(hidden)
        return torch.stack(steps), [hidden, cell]


def _lstm_step(cell: Tensor, gates: Tensor, mark: Tensor) -> tuple[Tensor, Tensor]:
    """The next cell and hidden state from the gates' pre-activations (…, 4 D)."""
    entering, forgetting, leaving, candidate = gates.chunk(4, -1)
    cell = mark * torch.sigmoid(forgetting) * cell + torch.sigmoid(entering) * torch.tanh(candidate)
    return cell, torch.sigmoid(leaving) * torch.tanh(cell)


@register("LSTMUnit")
class LSTMUnit(Layer, is_capturable=True):
    """One LSTM step: cells (1, N, D), gate pre-activations (1, N, 4 D), cont (1, N) → cells, hidden states (1, N, D)."""

    bottoms = (3, 3)
    tops = (2, 2)
    keeps_shape = True
    differentiable_bottoms = (0, 1)

    def setup(self, cells: Shape, gates: Shape, cont: Shape) -> None:
        if len(cells) != 3 or cells[0] != 1 or gates != (1, cells[1], 4 * cells[2]) or cont != (1, cells[1]):
            raise self.error(f"bottoms of shapes {cells}, {gates} and {cont}", "they must be (1, N, D), (1, N, 4 D) and (1, N)")

    def forward(self, cells: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
        return _lstm_step(cells, gates, cont[..., None])

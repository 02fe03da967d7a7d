"""Convert recurrent layers and layers of sequences to ONNX: RNN, LSTM, Lstm, LSTMUnit, Reverse, CTCGreedyDecoder ….

Recurrent layers are unrolled: a few nodes for each step, which every runtime has, with Caffe's continuation marks. A model keeps
no state between runs: each begins with a state of 0, or with the given one (expose_hidden).
"""

import math

import numpy as np
from onnx import TensorProto

import caffe
from pipeline.export.onnx_part import Part, converts

STEPS = ("RNN", "LSTM", "Lstm", "CTCGreedyDecoder")
"""Types that are exported for the net's own number of steps."""


def steps_of(net: caffe.Net, bottom: str) -> int:
    """The number of steps of a layer of STEPS, from the first axis of its bottom; that of flat ones also grows with the batch."""
    return int(net.blobs[bottom].shape[0])


def _along_steps(part: Part, x: str, count: int) -> list[str]:
    """The steps of x (T, N, …), each (1, N, …)."""
    if count == 1:
        return [x]
    part.add("Split", x, part.whole("split", [1] * count), outputs=count, axis=0)
    return list(part.nodes[-1].output)


def _linear(part: Part, x: str, weight: str, bias: str = "") -> str:
    y = part.add("MatMul", x, part.tensor(f"{weight}_transposed", np.ascontiguousarray(part.tensors[weight].T)))
    return part.add("Add", y, part.tensor(bias)) if bias else y


def _lstm_step(part: Part, cell: str, gates: str, mark: str, size: int) -> tuple[str, str]:
    """The next cell and hidden state from the gates' pre-activations (…, 4 D); a `cell` of "" is 0."""
    part.add("Split", gates, part.whole("gates", [size] * 4), outputs=4, axis=-1)
    entering, forgetting, leaving, candidate = list(part.nodes[-1].output)
    new = part.add("Mul", part.add("Sigmoid", entering), part.add("Tanh", candidate))
    if cell:
        kept = part.add("Sigmoid", forgetting)
        kept = part.add("Mul", part.add("Mul", mark, kept) if mark else kept, cell)
        new = part.add("Add", kept, new)
    return new, part.add("Mul", part.add("Sigmoid", leaving), part.add("Tanh", new))


def _marked(part: Part, hidden: str, mark: str) -> str:
    return part.add("Mul", hidden, mark) if mark else hidden


def _run_lstm(part: Part, shares: list[str], marks: list[str], states: list[str]) -> tuple[list[str], list[str]]:
    """The hidden states of all steps, and the last states, from the inputs' shares of the gates."""
    hidden, cell = states
    recurrent, size = part.tensor("weight_hidden_transposed", part.tensors["weight_hidden"].T), part.tops[0][-1]
    steps = []
    for share, mark in zip(shares, marks, strict=True):
        gates = part.add("Add", share, part.add("MatMul", _marked(part, hidden, mark), recurrent)) if hidden else share
        cell, hidden = _lstm_step(part, cell, gates, mark, size)
        steps.append(hidden)
    return steps, [hidden, cell]


def _run_rnn(part: Part, shares: list[str], marks: list[str], states: list[str]) -> tuple[list[str], list[str]]:
    (hidden,) = states
    recurrent = part.tensor("weight_hidden_transposed", part.tensors["weight_hidden"].T)
    steps = []
    for share, mark in zip(shares, marks, strict=True):
        total = part.add("Add", share, part.add("MatMul", _marked(part, hidden, mark), recurrent)) if hidden else share
        hidden = part.add("Tanh", total)
        steps.append(hidden)
    return steps, [hidden]


def _joined(part: Part, steps: list[str]) -> str:
    return part.add("Concat", *steps, axis=0) if len(steps) > 1 else steps[0]


@converts("LSTM", "RNN", single_precision=True)
def recurrent(part: Part, x: str, cont: str, *others: str) -> list[str]:
    is_lstm, steps = part.param.type == "LSTM", part.shapes[0][0]
    x = part.add("Reshape", x, part.whole("steps", [0, 0, -1])) if len(part.shapes[0]) > 3 else x
    shares = _linear(part, x, "weight_input", "bias" if is_lstm else "bias_hidden")
    given = list(others)
    if part.layer.static:
        static = given.pop(0)
        static = part.add("Flatten", static, axis=1) if len(part.shapes[2]) > 2 else static
        shares = part.add("Add", shares, _linear(part, static, "weight_static"))
    marks = part.add("Unsqueeze", cont, part.whole("axes", [2]))
    states = given or [""] * part.layer.states
    run = _run_lstm if is_lstm else _run_rnn
    tops, last = run(part, _along_steps(part, shares, steps), _along_steps(part, marks, steps), states)
    top = _joined(part, tops)
    if not is_lstm:
        top = part.add("Tanh", _linear(part, top, "weight_output", "bias_output"))
    if not given:
        return [top]
    # A top of its own, even where it is the only step.
    return [part.add("Identity", each) for each in (top, *last)]


@converts("Lstm", single_precision=True)
def sequence_lstm(part: Part, x: str, *cont: str) -> str:
    p, layer, shape = part.param.lstm_param, part.layer, part.shapes[0]
    steps = shape[0] // p.batch_size if layer.is_flat else shape[0]
    x = part.add("Reshape", x, part.whole("steps", [steps, -1, layer.inputs]))
    shares = _along_steps(part, _linear(part, x, "weight_input", "bias"), steps)
    marks = [""] * steps
    if cont:
        marks = _along_steps(part, part.add("Reshape", *cont, part.whole("marks", [steps, -1, 1])), steps)
    tops, _ = _run_lstm(part, shares, marks, ["", ""])
    top = _joined(part, tops)
    return part.add("Reshape", top, part.whole("flat", [-1, p.num_output])) if layer.is_flat else top


@converts("LSTMUnit", single_precision=True)
def lstm_unit(part: Part, cell: str, gates: str, cont: str) -> list[str]:
    mark = part.add("Unsqueeze", cont, part.whole("axes", [2]))
    return list(_lstm_step(part, cell, gates, mark, part.shapes[0][2]))


@converts("ContinuationIndicator", single_precision=True)
def continuation_indicator(part: Part, *x: str) -> str:
    steps, count = part.tops[0]
    marks = np.ones((steps, 1 if x else count), np.float32)
    marks[0] = 0
    if not x:
        return part.add("Identity", part.tensor("marks", marks))
    images = part.slice(part.add("Shape", x[0]), [0], [0], [1])
    size = part.add("Concat", part.whole("steps", [steps]), images, axis=0)
    return part.add("Expand", part.tensor("marks", marks), size)


@converts("Reverse")
def reverse(part: Part, x: str) -> str:
    along = part.layer.along
    return part.slice(x, [along], [-1], [-part.shapes[0][along] - 1], [-1])


@converts("CTCGreedyDecoder", single_precision=True)
def ctc_greedy_decoder(part: Part, scores: str, *labels: str) -> str:
    """Of the best class of each step those that are a symbol, moved to the front; the rest is -1."""
    if labels:
        raise part.error("labels as a second bottom", "an exported model has no targets to compare with", "remove the bottom")
    steps = part.shapes[0][0]
    scores = part.add("Reshape", scores, part.whole("steps", [0, 0, -1])) if len(part.shapes[0]) > 3 else scores
    best = part.add("Transpose", part.add("ArgMax", scores, axis=2, keepdims=0), perm=[1, 0])  # sequences, steps
    blank = part.whole("blank", [part.layer.blank])
    symbol = part.add("Not", part.add("Equal", best, blank))
    if part.param.ctc_decoder_param.ctc_merge_repeated and steps > 1:
        repeats = part.add("Equal", part.slice(best, [1], [1], [steps]), part.slice(best, [1], [0], [steps - 1]))
        first = part.slice(symbol, [1], [0], [1])
        symbol = part.add("And", symbol, part.add("Concat", first, part.add("Not", repeats), axis=1))
    counted = part.add("CumSum", part.add("Cast", symbol, to=TensorProto.INT64), part.whole("axis", 1))
    place = part.add("Sub", counted, part.whole("one", [1]))
    place = part.add("Where", symbol, place, part.whole("behind", [steps]))
    size = part.add("Concat", part.slice(part.add("Shape", best), [0], [0], [1]), part.whole("places", [steps + 1]), axis=0)
    empty = part.add("Expand", part.number("none", -1), size)
    spelled = part.add("ScatterElements", empty, place, part.add("Cast", best, to=TensorProto.FLOAT), axis=1)
    spelled = part.slice(spelled, [1], [0], [steps])
    return part.add("Reshape", spelled, part.whole("top", [-1, math.prod(part.tops[0][1:]), 1, 1]))

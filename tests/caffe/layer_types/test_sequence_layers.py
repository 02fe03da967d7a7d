"""Sequence layers of forks compared with plain loops over their definitions, their gradients with finite differences of those."""

import itertools
import math

import numpy as np
import pytest

import caffe
from caffe.proto import caffe_pb2
from tests.caffe.layer_checks import check, draw, exercises, finite_differences, layer_error, make_net, reseed, rng


@pytest.fixture(autouse=True)
def _reseed(request):
    reseed(request.node.name)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# ---- arrangement


@pytest.mark.parametrize(("settings", "axis"), [("", 0), ("reverse_param { axis: 1 }", 1), ("reverse_param { axis: -1 }", 2)])
@exercises("Reverse")
def test_reverse(write, settings, axis):
    def reverse(x):
        y = np.zeros_like(x)
        for index in np.ndindex(x.shape):
            source = list(index)
            source[axis] = x.shape[axis] - 1 - index[axis]
            y[index] = x[tuple(source)]
        return y

    check(write, f'type: "Reverse" {settings}', reverse, draw(3, 2, 4))


def test_reverse_refuses_an_axis_that_the_bottom_has_not(write):
    assert layer_error(write, 'type: "Reverse" reverse_param { axis: 3 }', (3, 2, 4)).found == "axis 3"


@exercises("Transpose")
def test_transpose(write):
    def transpose(x):
        y = np.zeros((5, 4, 2, 3))
        for w, h, n, c in np.ndindex(y.shape):
            y[w, h, n, c] = x[n, c, h, w]
        return y

    check(write, 'type: "Transpose" transpose_param { dim: 3 dim: 2 dim: 0 dim: 1 }', transpose, draw(2, 3, 4, 5))


@pytest.mark.parametrize("dims", ["dim: 0 dim: 1", "dim: 0 dim: 1 dim: 1", "dim: 1 dim: 2 dim: 3", ""])
def test_transpose_lists_each_axis_once(write, dims):
    error = layer_error(write, f'type: "Transpose" transpose_param {{ {dims} }}', (2, 3, 4))
    assert error.expected == "each axis of the bottom (0 to 2) must be listed once"


@exercises("ContinuationIndicator")
def test_continuation_indicator(write):
    settings = 'type: "ContinuationIndicator" continuation_indicator_param { time_step: 3 %s }'
    for net in (make_net(write, settings % "batch_size: 2", []), make_net(write, settings % "", [(2, 5, 4, 4)])):
        assert net.blobs["y0"].shape == (3, 2)
        assert net.forward()["y0"].tolist() == [[0, 0], [1, 1], [1, 1]]
    assert layer_error(write, settings % "").found == "batch_size is not given"
    assert layer_error(write, 'type: "ContinuationIndicator"').found == "time_step is not given"


# ---- Lstm


def lstm(x, marks, to_gates, to_hidden, bias, start=(0, 0)):
    """Hidden states (T, N, D), and the last hidden states and cells, of a plain loop; marks (T, N)."""
    count, width = x.shape[1], to_hidden.shape[1]
    hidden, cell = (np.broadcast_to(state, (count, width)).astype(float) for state in start)
    steps = []
    for values, mark in zip(x, marks, strict=True):
        before, hidden, cell = (hidden, cell), np.zeros((count, width)), np.zeros((count, width))
        for n in range(count):
            gates = to_gates @ values[n].ravel() + bias + mark[n] * (to_hidden @ before[0][n])
            entering, forgetting, leaving, candidate = gates.reshape(4, width)
            cell[n] = mark[n] * sigmoid(forgetting) * before[1][n] + sigmoid(entering) * np.tanh(candidate)
            hidden[n] = sigmoid(leaving) * np.tanh(cell[n])
        steps.append(hidden)
    return np.array(steps), (hidden, cell)


LSTM = 'type: "Lstm" lstm_param { num_output: 2 %s }'
PARAMETERS = ((8, 3), (8, 2), (8,))


@exercises("Lstm")
def test_lstm_begins_every_sequence_at_step_0(write):
    marks = np.ones((4, 2))
    net = check(
        write,
        LSTM % "",
        lambda x, *p: lstm(x, marks, *p)[0],
        draw(4, 2, 3),
        params=[draw(*shape) for shape in PARAMETERS],
    )
    first = net.blobs["y0"].data.copy()
    net.forward()
    np.testing.assert_array_equal(net.blobs["y0"].data, first)


@exercises("Lstm")
def test_lstm_with_cont_begins_where_it_is_0_and_carries_its_state(write):
    marks = np.array([[1, 0], [1, 1], [0, 1], [1, 1]])
    x, parameters = draw(4, 2, 3), [draw(*shape) for shape in PARAMETERS]
    net = check(write, LSTM % "", lambda x, marks, *p: lstm(x, marks, *p)[0], x, marks, params=parameters)
    _, state = lstm(x, marks, *parameters)
    net.forward()
    np.testing.assert_allclose(net.blobs["y0"].data, lstm(x, marks, *parameters, start=state)[0], rtol=1e-4, atol=1e-6)
    kept = caffe_pb2.LayerState()
    net.layers[-1].keep(kept)
    again = make_net(write, LSTM % "", [x.shape, marks.shape])
    for blob, values in zip(again.params["layer"], parameters, strict=True):
        blob.data[...] = values
    again.blobs["x0"].data[...], again.blobs["x1"].data[...] = x, marks
    again.layers[-1].resume(kept)
    again.forward()
    net.forward()
    np.testing.assert_array_equal(again.blobs["y0"].data, net.blobs["y0"].data)


@pytest.mark.parametrize(
    ("settings", "count", "shape"), [("", 1, (4, 3)), ("batch_size: 2", 2, (4, 3)), ("batch_size: 2", 2, (4, 3, 1))]
)
@exercises("Lstm")
def test_lstm_in_junhyukohs_form_has_steps_and_sequences_on_one_axis(write, settings, count, shape):
    def flat(x, *p):
        steps = x.reshape(-1, count, 3)
        return lstm(steps, np.ones(steps.shape[:2]), *p)[0].reshape(len(x), 2)

    check(write, LSTM % settings, flat, draw(*shape), params=[draw(*shape) for shape in PARAMETERS])


@exercises("Lstm")
def test_lstm_limits_the_gradient_of_its_gates_at_each_step(write):
    """By a plain backward pass through the loop."""
    limit = 0.02
    x, (to_gates, to_hidden, bias) = draw(3, 1, 3), [draw(*shape) for shape in PARAMETERS]
    direction = draw(3, 1, 2)
    states = [(np.zeros(2), np.zeros(2))]
    kept = []
    for values in x[:, 0]:
        hidden, cell = states[-1]
        entering, forgetting, leaving, candidate = (to_gates @ values + bias + to_hidden @ hidden).reshape(4, 2)
        i, f, o, g = sigmoid(entering), sigmoid(forgetting), sigmoid(leaving), np.tanh(candidate)
        states.append((o * np.tanh(f * cell + i * g), f * cell + i * g))
        kept.append((i, f, o, g, cell))
    of_hidden, of_cell, expected = np.zeros(2), np.zeros(2), np.zeros_like(x)
    for step in (2, 1, 0):
        i, f, o, g, before = kept[step]
        tanh = np.tanh(states[step + 1][1])
        of_hidden = of_hidden + direction[step, 0]
        of_cell = of_cell + of_hidden * o * (1 - tanh**2)
        of_gates = np.concatenate(
            [of_cell * g * i * (1 - i), of_cell * before * f * (1 - f), of_hidden * tanh * o * (1 - o), of_cell * i * (1 - g**2)]
        )
        clipped = np.clip(of_gates, -limit, limit)
        assert (clipped != of_gates).any()
        of_hidden, of_cell, expected[step, 0] = to_hidden.T @ clipped, of_cell * f, to_gates.T @ clipped
    net = make_net(write, LSTM % f"clipping_threshold: {limit}", [x.shape])
    for blob, values in zip(net.params["layer"], (to_gates, to_hidden, bias), strict=True):
        blob.data[...] = values
    net.blobs["x0"].data[...] = x
    net.forward()
    net.blobs["y0"].diff[...] = direction
    net.backward()
    np.testing.assert_allclose(net.blobs["x0"].diff, expected, rtol=1e-4, atol=1e-7)


def test_lstm_says_what_its_bottoms_must_be(write):
    assert layer_error(write, LSTM % "batch_size: 3", (4, 3)).found == "batch_size 3 for x of shape (4, 3)"
    assert layer_error(write, LSTM % "", (4, 2, 3), (4, 3)).found == "cont of shape (4, 3) for x of shape (4, 2, 3)"
    assert layer_error(write, LSTM % "", (4,)).found == "x of shape (4,)"
    assert layer_error(write, 'type: "Lstm"', (4, 2, 3)).found == "num_output is not given"


# ---- CTC


def spell(path, blank):
    """The symbols of a path: repetitions merged, then blanks left out."""
    return [symbol for symbol, _ in itertools.groupby(path) if symbol != blank]


def alignment_costs(scores, targets, blank, steps=None):
    """-log of the probability of all paths that spell the target, by enumeration; 0 where there is none."""
    costs = []
    for n, target in enumerate(targets):
        length = scores.shape[0] if steps is None else steps[n]
        exponentials = np.exp(scores[:length, n])
        probabilities = exponentials / exponentials.sum(1, keepdims=True)
        total = 0.0
        for path in itertools.product(range(scores.shape[2]), repeat=length):
            if spell(path, blank) == list(target):
                total += math.prod(probabilities[t, symbol] for t, symbol in enumerate(path))
        costs.append(-math.log(total) if total else 0.0)
    return costs


def check_ctc(write, layer, reference, scores, *others):
    """Like `check`; the gradient is that of the sum over the batch."""
    net = check(write, layer, lambda x, *_: np.mean(reference(x)), scores, *others, wrt=())
    scores = scores.astype(np.float32).astype(float)
    wanted = finite_differences(lambda: sum(reference(scores)), scores)
    np.testing.assert_allclose(net.blobs["x0"].diff, wanted, rtol=1e-3, atol=1e-4)
    return net


@pytest.mark.parametrize("name", ["CtcLoss", "WarpCTCLoss"])
@pytest.mark.parametrize(("settings", "blank"), [("", 0), ("ctc_loss_param { blank_label: 2 alphabet_size: 3 time_step: 4 }", 2)])
@exercises("CtcLoss", "WarpCTCLoss", chosen_by="name")
def test_ctc_loss_sums_over_all_alignments(write, name, settings, blank):
    one, other = [symbol for symbol in range(3) if symbol != blank]
    labels = np.array([[one, other, blank], [other, other, blank], [blank, one, blank], [one, one, one]])
    targets = [[one, other], [other, other], [one], [one, one, one]]  # the last needs 5 steps
    scores = draw(4, 4, 3, low=-2, high=2)
    check_ctc(write, f'type: "{name}" {settings}', lambda x: alignment_costs(x, targets, blank), scores, labels)


@exercises("CtcLoss")
def test_ctc_loss_counts_only_the_first_steps(write):
    settings = 'type: "CtcLoss" ctc_loss_param { time_step: 3 }'
    net = check_ctc(write, settings, lambda x: alignment_costs(x, [[1, 2]], 0, [3]), draw(4, 1, 3), np.array([[1, 2]]))
    assert not net.blobs["x0"].diff[3].any()


@exercises("CtcLoss")
def test_ctc_loss_of_no_labels_is_that_of_blanks(write):
    check_ctc(write, 'type: "CtcLoss"', lambda x: alignment_costs(x, [[], [1]], 0), draw(3, 2, 3), np.array([[0, 0], [1, 0]]))


@exercises("WarpCTCLoss")
def test_warp_ctc_loss_with_lengths(write):
    steps, lengths, labels = np.array([4, 3]), np.array([1, 2]), np.array([[0, 1], [9, 1]])  # (labels, sequences); 9 is not used
    check_ctc(
        write,
        'type: "WarpCTCLoss" ctc_loss_param { blank_index: -1 }',
        lambda x: alignment_costs(x, [[0], [1, 1]], 2, steps),
        draw(4, 2, 3),
        *(steps, lengths, labels),
    )


def test_ctc_losses_say_what_is_wrong(write):
    assert "they must be (steps, sequences, classes)" in layer_error(write, 'type: "CtcLoss"', (4, 3), (2, 2)).expected
    assert layer_error(write, 'type: "CtcLoss"', (4, 2, 3), (3, 2)).found == "labels of shape (3, 2) for 2 sequences"
    settings = 'type: "CtcLoss" ctc_loss_param { %s }'
    for given, found in (
        ("blank_label: 3", "blank 3"),
        ("blank_label: 2 blank_index: 2", "both blank_label and blank_index"),
        ("alphabet_size: 4", "alphabet_size 4"),
        ("time_step: 5", "time_step 5"),
    ):
        assert layer_error(write, settings % given, (4, 2, 3), (2, 2)).found == found
    assert layer_error(write, 'type: "WarpCTCLoss"', (4, 2, 3), (4, 2), (4, 2)).found == "3 bottoms"
    assert "one for each of 2" in layer_error(write, 'type: "WarpCTCLoss"', (4, 2, 3), (3,), (2,), (2, 2)).expected


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_is_no_class_is_refused_with_what_pads(write, label):
    net = make_net(write, 'type: "CtcLoss"', [(4, 1, 3), (1, 2)])
    net.blobs["x1"].data[...] = [[1, label]]
    with pytest.raises(caffe.LayerError) as error:
        net.forward()
    assert error.value.found == f"label {label}"
    assert error.value.do == "pad sequences of labels with the blank, 0"


def test_a_length_beyond_the_bottom_is_refused(write):
    net = make_net(write, 'type: "WarpCTCLoss"', [(4, 1, 3), (1,), (1,), (2, 1)])
    net.blobs["x1"].data[...], net.blobs["x2"].data[...] = 5, 1
    with pytest.raises(caffe.LayerError) as error:
        net.forward()
    assert error.value.found == "a sequence of 5 steps"


def best_of(paths, classes):
    """Scores (T, N, C) whose best classes are these paths (N, T)."""
    paths = np.array(paths)
    scores = rng.uniform(0, 1, (paths.shape[1], paths.shape[0], classes))
    for n, t in np.ndindex(paths.shape):
        scores[t, n, paths[n, t]] = 2
    return scores


PATHS = [[1, 1, 0, 1, 2], [0, 0, 0, 0, 0], [2, 0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ("", [[1, 1, 2], [], [2, 1]]),
        ("ctc_decoder_param { ctc_merge_repeated: false }", [[1, 1, 1, 2], [], [2, 1, 1]]),
        ("ctc_decoder_param { blank_index: -1 }", [[1, 0, 1], [0], [0, 1]]),
        ("ctc_loss_param { blank_label: 1 }", [[0, 2], [0], [2, 0]]),
    ],
)
@exercises("CTCGreedyDecoder")
def test_ctc_greedy_decoder(write, settings, wanted):
    net = make_net(write, f'type: "CTCGreedyDecoder" {settings}', [(5, 3, 3)])
    net.blobs["x0"].data[...] = best_of(PATHS, 3)
    rows = [symbols + [-1] * (5 - len(symbols)) for symbols in wanted]
    assert net.blobs["y0"].shape == (3, 5, 1, 1)
    assert net.forward()["y0"][..., 0, 0].tolist() == rows


@exercises("CTCGreedyDecoder")
def test_ctc_greedy_decoder_compares_with_labels(write):
    net = make_net(write, 'type: "CTCGreedyDecoder"', [(5, 3, 3), (3, 4)])
    net.blobs["x0"].data[...] = best_of(PATHS, 3)
    net.blobs["x1"].data[...] = [[1, 1, 2, 0], [-1, 1, 1, 1], [1, 2, 1, 1]]
    assert net.blobs["y0"].shape == (1, 2, 1, 1)
    # [1, 1, 2] is met, [] is equal but empty, and [1, 2, 1, 1] is two insertions from [2, 1].
    np.testing.assert_allclose(net.forward()["y0"].ravel(), [1 - (2 / 4) / 3, 1 / 3], rtol=1e-6)
    assert "3 sequences" in layer_error(write, 'type: "CTCGreedyDecoder"', (5, 3, 3), (2, 4)).found


@pytest.mark.parametrize(
    ("name", "settings"),
    [("LabelsequenceAccuracy", "labelsequence_accuracy_param"), ("SequenceAccuracy", "Sequence_accuracy_param")],
)
@exercises("LabelsequenceAccuracy", "SequenceAccuracy", chosen_by="name")
def test_accuracy_of_label_sequences(write, name, settings):
    net = make_net(write, f'type: "{name}" {settings} {{ blank_label: 0 }}', [(3, 5, 3), (3, 4)])
    net.blobs["x0"].data[...] = best_of(PATHS, 3).transpose(1, 0, 2)
    net.blobs["x1"].data[...] = [[1, 1, 2, 0], [0, 0, 0, 0], [1, 2, 1, 1]]
    np.testing.assert_allclose(net.forward()["y0"], 2 / 3, rtol=1e-6)
    assert layer_error(write, f'type: "{name}" {settings} {{ blank_label: 3 }}', (3, 5, 3), (3, 4)).found == "blank_label 3"
    assert "(sequences, steps, classes)" in layer_error(write, f'type: "{name}"', (3, 5), (3, 4)).expected

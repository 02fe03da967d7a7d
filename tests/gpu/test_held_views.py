"""NumPy views of blobs that a script holds: a training on a GPU shows in them, and takes from them, what one on the CPU does."""

import numpy as np
import pytest
import torch

import caffe
from caffe.engine import cuda_graphs, side
from caffe.training import solver_types
from tests.gpu import pretend

pytestmark = pytest.mark.own_device

NET = """
layer { name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param { shape { dim: 4 dim: 2 dim: 6 dim: 6 }
  shape { dim: 4 } data_filler { type: "gaussian" std: 1 } data_filler { type: "constant" value: 1 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 3 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "bn" }
layer { name: "ip" type: "InnerProduct" bottom: "bn" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
SOLVER = (
    'net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.01 random_seed: 1 snapshot_prefix: "run"'
)


def learned(solver):
    return [blob.data.copy() for blobs in solver.net.params.values() for blob in blobs]


def conv(solver):
    return solver.net.params["conv"][0]


def plain(solver):
    solver.step(3)
    return learned(solver)


def callback_reads_a_diff_on_start(solver):
    solver.add_callback(lambda: conv(solver).diff, lambda: None)
    solver.step(3)
    return learned(solver)


def callbacks_read_data_and_diffs(solver):
    seen = []

    def note():
        seen.append(conv(solver).data.copy())
        seen.append(conv(solver).diff.copy())

    solver.add_callback(note, note)
    solver.step(3)
    return [*seen, *learned(solver)]


def a_held_view_shows_training(solver):
    weights, gradients = conv(solver).data, conv(solver).diff
    seen = []
    for _ in range(3):
        solver.step(1)
        seen += [weights.copy(), gradients.copy()]
    return seen


def a_part_of_a_view_shows_training(solver):
    part = conv(solver).data[1:, 0]
    solver.step(2)
    return [part.copy()]


def a_held_view_of_a_result_shows_the_next_pass(solver):
    scores = solver.net.blobs["ip"].data
    seen = []
    for _ in range(2):
        solver.net.forward()
        seen.append(scores.copy())
    return seen


def running_statistics_show_in_a_held_view(solver):
    mean = solver.net.params["bn"][0].data
    solver.step(2)
    return [mean.copy()]


def writes_into_a_held_view_are_taken(solver):
    weights = conv(solver).data
    solver.step(1)
    weights[...] = 0.5
    solver.step(2)
    weights[0] = -1
    solver.step(1)
    return [weights.copy(), *learned(solver)]


def a_written_view_that_is_dropped_is_taken(solver):
    conv(solver).data[...] = 0.25
    solver.step(1)
    return learned(solver)


def gradients_set_to_zero_stop_training(solver):
    def clear():
        for blobs in solver.net.params.values():
            for blob in blobs:
                blob.diff[...] = 0

    solver.add_callback(lambda: None, clear)
    solver.step(2)
    return learned(solver)


def gradients_clipped_by_hand_in_held_views(solver):
    held = [blob.diff for blobs in solver.net.params.values() for blob in blobs]

    def clip():
        for gradient in held:
            gradient[...] = gradient.clip(-0.01, 0.01)

    solver.add_callback(lambda: None, clip)
    solver.step(3)
    return learned(solver)


def iterations_by_hand(solver):
    for _ in range(3):
        solver.net.clear_param_diffs()
        solver.net.forward()
        solver.net.backward()
        solver.apply_update()
    return learned(solver)


def descent_by_numpy(solver):
    for _ in range(3):
        solver.net.clear_param_diffs()
        solver.net.forward()
        solver.net.backward()
        for blobs in solver.net.params.values():
            for blob in blobs:
                blob.data[...] -= 0.1 * blob.diff
    return learned(solver)


def descent_by_numpy_with_arrays_taken_once(solver):
    arrays = [(blob.data, blob.diff) for blobs in solver.net.params.values() for blob in blobs]
    for _ in range(3):
        solver.net.clear_param_diffs()
        solver.net.forward()
        solver.net.backward()
        for values, gradient in arrays:
            values -= 0.1 * gradient
    return learned(solver)


def gradients_accumulate_after_a_look(solver):
    seen = []
    for _ in range(3):
        solver.net.forward()
        solver.net.backward()
        seen.append(conv(solver).diff.copy())
    return seen


def losses_accumulate_after_a_look(solver):
    solver.net.clear_param_diffs()
    seen = []
    for _ in range(3):
        solver.net.forward_loss()
        solver.net.backward_params()
        seen.append(conv(solver).diff.copy())
    return seen


def seeds_of_a_backward_pass_are_taken(solver):
    solver.net.forward()
    seed = solver.net.blobs["ip"].diff
    seed[...] = np.arange(seed.size).reshape(seed.shape)
    solver.net.backward(start="ip")
    return [conv(solver).diff.copy(), solver.net.blobs["data"].diff.copy()]


def inputs_written_into_a_held_view(solver):
    seen, data = [], solver.net.blobs["data"].data
    for value in (1, 2):
        data[...] = value
        solver.net.forward(start="conv")
        seen.append(solver.net.blobs["ip"].data.copy())
    return seen


def weights_saved_and_loaded_around_edits(solver):
    held = conv(solver).data
    held[...] = 5
    solver.net.save("edited.caffemodel")
    held[...] = 7
    solver.net.copy_from("edited.caffemodel")
    return [held.copy(), *learned(solver)]


def nan_in_a_held_view(solver):
    held = conv(solver).data
    held[0, 0, 0, 0] = np.nan
    solver.net.forward()
    held[0, 0, 0, 0] = 0
    solver.net.forward()
    return [solver.net.blobs["ip"].data.copy(), held.copy()]


SEQUENCES = [value for value in list(globals().values()) if getattr(value, "__module__", "") == __name__ and callable(value)][2:]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    return tmp_path


def run(sequence):
    solver = caffe.get_solver("solver.prototxt")
    results = sequence(solver)
    solver.close()
    return results


def run_on_gpu(sequence):
    with pretend.gpus():
        caffe.set_mode_gpu()
        try:
            return run(sequence)
        finally:
            caffe.set_mode_cpu()


@pytest.mark.parametrize("first", [0, cuda_graphs.FIRST], ids=["captured", "computed"])
@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda sequence: sequence.__name__)
def test_a_gpu_gives_what_the_cpu_gives(folder, monkeypatch, sequence, first):
    monkeypatch.setattr(cuda_graphs, "FIRST", first)
    add = solver_types._add
    with monkeypatch.context() as patch:  # a rate on a GPU is a tensor, whose product is rounded before it is added
        patch.setattr(solver_types, "_add", lambda sums, values, rate: add(sums, values, torch.tensor(rate)))
        on_cpu = run(sequence)
    on_gpu = run_on_gpu(sequence)
    assert len(on_cpu) == len(on_gpu) > 0
    for number, (expected, got) in enumerate(zip(on_cpu, on_gpu, strict=True)):
        np.testing.assert_array_equal(got, expected, str(number))


@pytest.mark.parametrize("sequence", [callback_reads_a_diff_on_start, callbacks_read_data_and_diffs], ids=lambda s: s.__name__)
def test_looking_does_not_change_a_training(folder, sequence):
    undisturbed = run_on_gpu(plain)
    for expected, got in zip(undisturbed, run_on_gpu(sequence)[-len(undisturbed) :], strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_training_without_views_copies_no_parameters(folder):
    def without_views(solver):
        solver.step(cuda_graphs.FIRST + 1)
        pretend.copied.clear()
        solver.step(3)
        return dict(pretend.copied)

    # The images of each iteration; its loss and the bounds of its labels.
    assert run_on_gpu(without_views) == {"to device": 3, "to host": 6}


def test_the_copy_of_a_view_that_nobody_holds_is_given_up(folder):
    def dropped(solver):
        others = set(side._held)
        conv(solver).data[...] = 0.25
        solver.step(2)
        assert not side._held - others
        held = conv(solver).data
        solver.step(1)
        assert len(side._held - others) == 1
        del held
        solver.step(1)
        return list(side._held - others)

    assert run_on_gpu(dropped) == []

"""Passes captured as CUDA graphs give what computed passes give, and give way where something differs from pass to pass."""

import numpy as np
import pytest
import torch

import caffe
from caffe import glog
from caffe.engine import captured, cuda_graphs
from caffe.errors import LayerError
from caffe.layer_types.activation import ReLU
from caffe.layer_types.common import Dropout
from caffe.training import solver_types, updates
from caffe.training.diagnosis import DivergenceError
from tests.gpu import pretend
from tests.gpu.test_waiting import gpu as gpu  # the fixture

pytestmark = pytest.mark.own_device

LABELS = [0, 1, 2, 1, 0, 2]
INPUT = """
layer { name: "x" type: "Input" top: "x" top: "label" input_param { shape { dim: 4 dim: 6 } shape { dim: 4 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param { num_output: 3
  weight_filler { type: "xavier" } } }
layer { name: "again" type: "InnerProduct" bottom: "x" top: "again" param { name: "w" } inner_product_param { num_output: 3
  weight_filler { type: "xavier" } } }
layer { name: "more" type: "InnerProduct" bottom: "again" top: "more" inner_product_param { num_output: 3
  weight_filler { type: "xavier" } } }
layer { name: "sum" type: "Eltwise" bottom: "ip" bottom: "more" top: "sum" }
LAYER
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "sum" bottom: "label" top: "loss" }
"""


@pytest.fixture(autouse=True)
def _no_failures(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "failed", {})


@pytest.fixture
def warnings_logged(monkeypatch, capfd):
    """warnings_logged() gives the log's warnings since the last call, whatever another test has set."""
    monkeypatch.setattr(glog._State, "level", glog.WARNING)
    monkeypatch.setattr(glog._State, "stderr", True)
    return lambda: capfd.readouterr().err


def passes(solver):
    return solver.net._runner._executor._training


def is_captured(solver):
    return passes(solver)._captured is not None


def is_update_captured(solver):
    """Whether the next update will be replayed."""
    return solver._updates._captured is not None


def state(solver):
    """Every parameter, and the last losses."""
    return [*(blob.data.copy() for layer in solver.net.layers for blob in layer.blobs), *solver._losses.values()]


def assert_same(first, second):
    assert len(first) == len(second) > 0
    for mine, other in zip(first, second, strict=True):
        assert np.array_equal(mine, other)


@pytest.fixture
def both(gpu, monkeypatch):
    """both(train, loss, solver) trains without graphs and with them; returns both states, and the second solver."""

    def run(train, loss="", solver="momentum: 0.9 average_loss: 20", labels=LABELS):
        states = []
        for switch in ("0", "1"):
            monkeypatch.setenv(cuda_graphs.SWITCH, switch)
            made = gpu(labels, loss, solver)
            seen = train(made)
            states.append([*(seen or []), *state(made)])
            if switch == "0":
                assert not is_captured(made)
                assert not is_update_captured(made)
        return *states, made

    return run


@pytest.fixture
def twice(monkeypatch):
    """twice(train) trains without graphs and with them, to the same parameters and losses; returns the second solver."""

    def run(train):
        states = []
        for switch in ("0", "1"):
            monkeypatch.setenv(cuda_graphs.SWITCH, switch)
            solver = train()
            states.append(state(solver))
        assert_same(*states)
        return solver

    return run


@pytest.fixture
def small(tmp_path, monkeypatch):
    """small(layer) makes a solver of a net whose inputs are set from Python, with a layer in it."""
    monkeypatch.chdir(tmp_path)
    with pretend.gpus():
        caffe.set_mode_gpu()

        def make(layer="", solver=""):
            (tmp_path / "net.prototxt").write_text(INPUT.replace("LAYER", layer))
            (tmp_path / "solver.prototxt").write_text(
                f'net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 average_loss: 20 random_seed: 3 {solver}'
            )
            made = caffe.get_solver("solver.prototxt")
            made.net.blobs["x"].data[...] = np.random.default_rng(0).normal(size=(4, 6))
            made.net.blobs["label"].data[...] = [0, 1, 2, 1]
            return made

        yield make
        caffe.set_mode_cpu()


@pytest.mark.parametrize("loss", ["", "loss_param { ignore_label: 2 }"], ids=["all labels", "one ignored"])
@pytest.mark.parametrize("rule", ["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"])
def test_a_training_is_the_same_with_graphs(both, rule, loss):
    momentum = "" if rule in ("AdaGrad", "RMSProp") else "momentum: 0.9"

    def train(solver):
        solver.param.lr_policy, solver.param.gamma = "exp", 0.9
        solver.step(9)

    plain, graphs, solver = both(train, loss, f'type: "{rule}" {momentum} average_loss: 20')
    assert is_captured(solver)
    assert is_update_captured(solver)
    assert_same(plain, graphs)


def test_tests_and_snapshots_in_between_change_nothing(both):
    def train(solver):
        for _ in range(4):
            solver.step(2)
            solver.test_all()
            path = solver.snapshot()
        solver.restore(path.replace("caffemodel", "solverstate"))
        solver.step(6)

    plain, graphs, solver = both(train)
    assert is_captured(solver)
    assert_same(plain, graphs)


def test_gradients_of_several_passes_add_up(both):
    plain, graphs, solver = both(lambda solver: solver.step(5), solver="momentum: 0.9 iter_size: 3 average_loss: 20")
    assert is_captured(solver)
    assert_same(plain, graphs)


def test_a_look_shows_the_last_pass(both):
    def train(solver):
        seen = []
        held = solver.net.params["bn"][0].data  # a running sum, which a replay changes in place
        for _ in range(8):
            solver.step(1)
            seen += [held.copy(), solver.net.blobs["ip"].data.copy(), solver.net.blobs["conv"].data.copy()]
        return seen

    plain, graphs, solver = both(train)
    assert is_captured(solver)
    assert_same(plain, graphs)


def test_weights_and_numerics_may_be_changed_in_between(both):
    def train(solver):
        solver.step(5)
        solver.net.params["conv"][0].data[...] *= 0.5
        solver.step(2)
        caffe.set_numerics("fast")
        solver.step(2)
        caffe.set_numerics("fp32")
        solver.step(6)

    plain, graphs, solver = both(train)
    assert is_captured(solver)
    assert_same(plain, graphs)


def test_products_of_bfloat16_are_captured(both):
    def train(solver):
        caffe.set_numerics("fast")
        solver.step(cuda_graphs.FIRST + 4)
        conv = solver.net.blobs["conv"].data.copy()
        caffe.set_numerics("fp32")
        return [conv]

    plain, graphs, solver = both(train)
    assert is_captured(solver)
    assert_same(plain, graphs)
    assert plain[0].dtype == np.float32
    assert np.array_equal(plain[0], torch.from_numpy(plain[0]).bfloat16().float().numpy())


@pytest.mark.parametrize("of", ["a parameter", "a blob"])
def test_whoever_looks_at_gradients_gets_them(both, of):
    def train(solver):
        solver.step(6)
        seen = []
        for _ in range(3):
            solver.step(1)
            seen.append((solver.net.params["ip"][0] if of == "a parameter" else solver.net.blobs["pool"]).diff.copy())
        return seen

    plain, graphs, _ = both(train)
    assert_same(plain, graphs)
    assert np.any(graphs[1])


def test_a_look_at_a_gradient_after_a_replay_is_not_of_the_next(both):
    def train(solver):
        for _ in range(5):
            solver.net.clear_param_diffs()
            solver.net.forward_loss()
            solver.net.backward_params()
        first = solver.net.params["ip"][0].diff
        before = first.copy()
        solver.net.forward_loss()
        solver.net.backward_params()  # adds to it
        return [before, first.copy()]

    plain, graphs, _ = both(train)
    assert_same(plain, graphs)


def test_a_label_out_of_range_is_named_in_a_replay(gpu):
    labels = [0, 1, 2, 1] * 7
    labels[9] = 3  # in the order of the keys, as text, the last
    solver = gpu(labels)
    solver.step(6)
    assert is_captured(solver)
    with pytest.raises(LayerError, match=r'"loss".*label 3.*3 classes \(0 to 2\)'):
        solver.step(1)


def test_a_nan_is_named_with_its_iteration_and_layer_in_a_replay(gpu):
    solver = gpu(LABELS)
    solver.step(6)
    solver.net.params["conv"][1].data[...] = np.nan
    weights = solver.net.params["ip"][0].data.copy()
    with pytest.raises(DivergenceError, match=r'loss is nan at iteration 6.*first in layer "conv": its parameter 1'):
        solver.step(2)
    assert np.array_equal(solver.net.params["ip"][0].data, weights)


def test_inputs_may_be_set_from_python_and_change_their_shape(small, twice):
    def train():
        solver = small()
        for images in (4, 4, 2, 4):
            solver.net.blobs["x"].reshape(images, 6)
            solver.net.blobs["label"].reshape(images)
            for _ in range(5):
                solver.net.blobs["x"].data[...] += 0.1
                solver.step(1)
        return solver

    assert is_captured(twice(train))


@pytest.mark.parametrize(
    "layer",
    [
        'layer { name: "odd" type: "Filter" bottom: "sum" bottom: "label" top: "some" top: "chosen" }',
        'layer { name: "odd" type: "LSTM" bottom: "x" bottom: "label" top: "odd" recurrent_param { num_output: 2 } }',
    ],
    ids=["Filter", "LSTM"],
)
def test_layers_that_do_not_say_so_are_computed(layer):
    kind = layer.split('type: "')[1].split('"')[0]
    assert not caffe.layer_type(kind).is_capturable


def test_types_do_not_inherit_it():
    types = {name: caffe.layer_type(name) for name in caffe.layer_type_list()}
    forks = [kind for kind in types.values() if ".forks." in kind.__module__]
    assert forks
    assert not any(kind.is_capturable for kind in forks)
    assert not any(kind.is_capturable for kind in types.values() if kind.runs_user_code)


def test_a_layer_that_waits_is_computed_and_it_is_said_once(both, monkeypatch, warnings_logged):
    forward = ReLU.forward
    monkeypatch.setattr(ReLU, "forward", lambda self, x: forward(self, x) if float(x.detach().sum()) else x)
    plain, graphs, solver = both(lambda solver: solver.step(7))
    assert not is_captured(solver)
    assert_same(plain, graphs)
    said = [line for line in warnings_logged().splitlines() if "CUDA graphs" in line]
    assert len(said) == 1
    assert 'layer "relu"' in said[0]
    assert "_local_scalar_dense waits for the GPU" in said[0]


def test_a_layer_that_counts_passes_is_found_out(both, monkeypatch, warnings_logged):
    """Its gradients would be those of the pass that was captured for ever."""

    def forward(self, x):
        self.passes = getattr(self, "passes", 0) + 1
        return x * self.passes

    monkeypatch.setattr(Dropout, "forward", forward)
    _, _, solver = both(lambda solver: solver.step(7))
    assert not is_captured(solver)
    assert "computed a second time, they give other losses or gradients" in warnings_logged()


def test_memory_that_runs_out_in_a_capture_leaves_a_training_as_it_is(both, monkeypatch):
    from tests.gpu.test_memory import _Full

    def train(solver):
        solver.step(cuda_graphs.FIRST)
        compute = passes(solver)._captured_passes

        def full(*arguments):
            with _Full("convolution"):
                return compute(*arguments)

        passes(solver)._captured_passes = full
        solver.step(4)

    plain, graphs, solver = both(train)
    assert not is_captured(solver)
    assert_same(plain, graphs)


def test_large_nets_are_computed(gpu, monkeypatch):
    solver = gpu(LABELS)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 6 << 30)
    solver.step(6)
    assert not is_captured(solver)


def test_the_switch_turns_it_off(gpu, monkeypatch):
    monkeypatch.setenv(cuda_graphs.SWITCH, "0")
    solver = gpu(LABELS)
    solver.step(6)
    assert not is_captured(solver)


def test_a_wait_that_is_only_found_in_a_capture_leaves_a_training_as_it_is(both, monkeypatch, warnings_logged):
    forward = ReLU.forward
    monkeypatch.setattr(ReLU, "forward", lambda self, x: forward(self, x) if x.detach().cpu().numel() else x)
    plain, graphs, solver = both(lambda solver: solver.step(7))
    assert not is_captured(solver)
    assert_same(plain, graphs)
    assert "not permitted when stream is capturing" in warnings_logged()
    solver.net._runner._executor._training._tries = 1
    solver.step(1)
    assert not is_captured(solver)  # after a failed one, none is captured on that GPU


def test_a_graph_without_operations_is_found_out(both, monkeypatch, warnings_logged):
    """As where a stream of another GPU is captured."""
    monkeypatch.setattr(pretend.Graph, "replay", lambda self: None)
    plain, graphs, solver = both(lambda solver: solver.step(7))
    assert not is_captured(solver)
    assert_same(plain, graphs)
    assert "replayed, they give other losses or gradients" in warnings_logged()


def test_a_pass_of_the_users_before_the_training_does_not_hinder(gpu):
    solver = gpu(LABELS)
    solver.net.forward()
    solver.net.backward()
    solver.step(5)
    assert is_captured(solver)
    assert not any(step.places or step.entries for step in solver.net._runner._executor.steps)


@pytest.mark.parametrize(
    "layer",
    [
        'layer { name: "drop" type: "Dropout" bottom: "sum" top: "sum" }',
        'layer { name: "unit" type: "InnerProduct" bottom: "x" top: "unit" inner_product_param { num_output: 3 normalize: true '
        'weight_filler { type: "xavier" } } } layer { name: "off" type: "Silence" bottom: "unit" }',
        'layer { name: "bn" type: "BatchNorm" bottom: "sum" top: "bn" batch_norm_param { scale_bias: true } } '
        'layer { name: "off" type: "Silence" bottom: "bn" }',
        'layer { name: "each" type: "Accuracy" bottom: "sum" bottom: "label" top: "all" top: "each" }',
        'layer { name: "map" type: "Reshape" bottom: "x" top: "map" reshape_param { shape { dim: 0 dim: 1 dim: 2 dim: 3 } } } '
        'layer { name: "chance" type: "Pooling" bottom: "map" top: "chance" pooling_param { pool: STOCHASTIC kernel_size: 2 } } '
        'layer { name: "off" type: "Silence" bottom: "chance" }',
    ],
    ids=["Dropout", "normalised weights", "NVIDIA's BatchNorm", "accuracy of classes", "stochastic pooling"],
)
def test_layers_with_a_state_or_chance_give_what_they_give_without_graphs(small, twice, layer):
    def train():
        solver = small(layer)
        for images in (4, 2, 4):
            solver.net.blobs["x"].reshape(images, 6)
            solver.net.blobs["label"].reshape(images)
            solver.step(6)
        return solver

    assert is_captured(twice(train)) == (not any(word in layer for word in ("normalize", "scale_bias", '"each"')))


def test_a_net_with_a_shared_parameter_is_the_same_with_graphs(small, twice):
    layer = "".join(
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" param {{ name: "shared" }} '
        'inner_product_param { num_output: 3 weight_filler { type: "xavier" } } } '
        for name, bottom in (("third", "more"), ("fourth", "third"))
    )
    layer += 'layer { name: "near" type: "EuclideanLoss" bottom: "fourth" bottom: "sum" top: "near" loss_weight: 0.1 }'

    def train():
        solver = small(layer, "iter_size: 2")
        solver.step(7)
        return solver

    assert is_captured(twice(train))


def test_classes_do_not_inherit_that_they_can_be_captured():
    class Counting(ReLU):
        pass

    assert ReLU.is_capturable
    assert not Counting.is_capturable


def test_memory_of_two_graphs_is_apart_on_the_pretend_gpu():
    with pretend.gpus():
        pool = torch.cuda.graph_pool_handle()
        with torch.cuda.graph(torch.cuda.CUDAGraph(), pool=pool):
            pass
        with pytest.raises(NotImplementedError), torch.cuda.graph(torch.cuda.CUDAGraph(), pool=pool):
            pass
        with pytest.raises(RuntimeError, match="cannot pin"):
            torch.zeros(2, device="cuda").pin_memory()


def test_a_loss_may_be_a_parameter(small, twice):
    layer = 'layer { name: "p" type: "Parameter" top: "p" loss_weight: 0.1 parameter_param { shape { dim: 1 } } }'

    def train():
        solver = small(layer)
        solver.step(6)
        return solver

    solver = twice(train)
    assert is_captured(solver)
    assert np.isfinite(solver.net.params["p"][0].data).all()


def test_losses_of_passes_are_kept_apart(gpu):
    net = gpu(LABELS).net
    losses = [net.forward_loss() for _ in range(7)]
    assert len({float(loss) for loss in losses}) == 7


def test_a_pass_of_a_net_with_the_same_weights_delays_a_capture_until_it_is_gone(gpu):
    solver = gpu(LABELS)
    test = solver.test_nets[0]
    test.forward()
    test.backward()
    solver.step(6)
    assert not is_captured(solver)
    solver.test_all()  # frees the graph of the backward pass
    for step in test._runner._executor.steps:
        step.places, step.entries = (), {}
    solver.step(1)
    assert is_captured(solver)


def test_errors_of_any_kind_in_a_capture_leave_a_training_as_it_is(both, monkeypatch):
    def train(solver):
        solver.step(cuda_graphs.FIRST)
        watched = solver.net._runner._executor._training._captured_passes

        def failing(*arguments):
            watched(*arguments)
            raise ValueError("that only a capture raises")

        monkeypatch.setattr(passes(solver), "_captured_passes", failing)
        solver.step(4)

    plain, graphs, solver = both(train)
    assert not is_captured(solver)
    assert_same(plain, graphs)


def test_memory_of_a_parameter_that_another_owned_may_move(small):
    layer = 'layer { name: "second" type: "InnerProduct" bottom: "x" top: "second" param { name: "w" } inner_product_param { '
    layer += 'num_output: 3 } } layer { name: "off" type: "Silence" bottom: "second" }'
    solver = small(layer)
    solver.step(6)
    assert is_captured(solver)
    solver.net.params["second"][0].reshape(2, 6)
    solver.net.params["second"][0].reshape(3, 6)
    solver.step(1)
    assert not is_captured(solver)


def test_graphs_are_freed_once_somebody_looks_at_gradients(gpu):
    solver = gpu(LABELS)
    solver.step(5)
    assert is_captured(solver)
    _ = solver.net.blobs["pool"].diff
    solver.step(1)
    assert not is_captured(solver)


def test_one_result_that_is_nan_does_not_hide_the_others():
    nan, one = torch.tensor([torch.nan]), torch.ones(3)
    captured._compare([nan, one, None], [nan, one, None], "again")
    with pytest.raises(RuntimeError, match="again, they give other losses or gradients"):
        captured._compare([nan, one, None], [nan, one + 1, None], "again")
    with pytest.raises(RuntimeError):
        captured._compare([one], [None], "again")
    with pytest.raises(RuntimeError):
        captured._compare([one], [1.01 * one], "again")
    captured._compare([one], [1.01 * one], "again", captured.IN_BFLOAT16)
    captured._compare([], [], "again")


@pytest.mark.parametrize("rule", ["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"])
def test_an_update_is_the_cpus_to_rounding(gpu, rule):
    """A rate that is a tensor is rounded to float32 before it is multiplied, as one that is a number."""
    momentum = "" if rule in ("AdaGrad", "RMSProp") else "momentum: 0.9"
    states = []
    for mode in (caffe.set_mode_gpu, caffe.set_mode_cpu):
        mode()
        solver = gpu(LABELS, "", f'type: "{rule}" {momentum} average_loss: 20')
        solver.step(7)
        states.append(state(solver))
    for mine, other in zip(*states, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)


def test_history_and_diff_are_shown_after_replayed_updates(both):
    def train(solver):
        seen = []
        for _ in range(8):
            solver.step(1)
            seen += [solver.net.params["ip"][0].peek(diff=True).copy(), *(each.cpu().clone().numpy() for each in solver.history)]
        solver.net.params["conv"][0].data[...] *= 0.5  # the first look moves it
        solver.step(1)
        assert not is_update_captured(solver)
        solver.step(8)
        return seen

    plain, graphs, solver = both(train)
    assert is_update_captured(solver)
    assert_same(plain, graphs)


@pytest.mark.parametrize(
    ("solver", "is_used"),
    [
        ("clip_gradients: 0.01", True),
        ('regularization_type: "L1" iter_size: 2', True),
        ('momentum_policy: "poly" max_momentum: 0.99 max_iter: 20', False),
        ('weight_decay_policy: "poly" max_weight_decay: 0.2 max_iter: 20', False),
        ("local_lr_auto: true", False),
    ],
)
def test_whatever_else_changes_with_the_iteration_is_not_kept_in_a_graph(both, solver, is_used):
    plain, graphs, last = both(lambda solver: solver.step(12), solver=f"momentum: 0.9 average_loss: 20 {solver}")
    assert is_captured(last)
    assert is_update_captured(last) == is_used
    assert_same(plain, graphs)


def test_settings_of_a_solver_may_be_changed_in_between(both):
    def train(solver):
        solver.step(6)
        solver.param.momentum = 0.5
        solver.step(6)
        solver.param.weight_decay = 0.2
        solver.step(6)

    plain, graphs, solver = both(train)
    assert is_update_captured(solver)
    assert_same(plain, graphs)


def test_an_update_that_waits_is_computed_and_it_is_said_once(both, monkeypatch, warnings_logged):
    def update(self, gradients, histories, rate):
        torch._foreach_mul_(gradients, rate)
        assert float(gradients[0].sum()) < 100
        return gradients

    monkeypatch.setattr(caffe.SGDSolver, "update", update)
    plain, graphs, solver = both(lambda solver: solver.step(9))
    assert is_captured(solver)
    assert not is_update_captured(solver)
    assert_same(plain, graphs)
    assert warnings_logged().count("update is not captured as a CUDA graph: _local_scalar_dense waits for the GPU") == 1


def test_a_graph_without_operations_is_found_out_in_updates(both, monkeypatch, warnings_logged):
    replay, none = pretend.Graph.replay, []

    def train(solver):
        solver.step(cuda_graphs.FIRST + 1)
        monkeypatch.setattr(pretend.Graph, "replay", lambda self: replay(self) if len(self._operations) > 12 else none.append(1))
        solver.step(5)
        monkeypatch.setattr(pretend.Graph, "replay", replay)

    plain, graphs, solver = both(train)
    assert none
    assert not is_update_captured(solver)
    assert_same(plain, graphs)
    assert "replayed, it gives other parameters" in warnings_logged()


def test_an_update_that_changes_nothing_is_not_captured(gpu, monkeypatch):
    """Whether its graph has operations could not be seen."""
    monkeypatch.setattr(caffe.SGDSolver, "update", lambda self, gradients, histories, rate: torch._foreach_mul(gradients, 0.0))
    solver = gpu(LABELS)
    solver.param.weight_decay = 0
    solver.step(8)
    assert is_captured(solver)
    assert not is_update_captured(solver)


def test_an_update_that_no_longer_may_be_captured_is_still_replayed(gpu, monkeypatch):
    solver = gpu(LABELS, "", "momentum: 0.9")
    solver._updates._tries = 1
    solver.step(cuda_graphs.FIRST + 3)
    assert is_update_captured(solver)
    replays, replay = [], pretend.Graph.replay
    monkeypatch.setattr(pretend.Graph, "replay", lambda self: replays.append(self) or replay(self))
    solver.step(1)
    assert solver._updates._captured.graph in replays


def test_an_update_of_a_derived_class_is_computed(both, monkeypatch):
    class Decaying(caffe.SGDSolver):
        def update(self, gradients, histories, rate):
            torch._foreach_mul_(gradients, 1 / (1 + self.iter))
            return super().update(gradients, histories, rate)

    assert caffe.SGDSolver.is_capturable
    assert not Decaying.is_capturable
    monkeypatch.setitem(solver_types._TYPES, "SGD", Decaying)
    plain, graphs, solver = both(lambda solver: solver.step(9))
    assert is_captured(solver)
    assert not is_update_captured(solver)
    assert_same(plain, graphs)


@pytest.mark.parametrize("call", [1, 2], ids=["before the update", "after it"])
@pytest.mark.parametrize("rule", ["SGD", "Adam"])
def test_memory_that_runs_out_while_an_update_is_captured_leaves_a_training_as_it_is(
    both, monkeypatch, rule, call, warnings_logged
):
    clones = updates._clones

    def train(solver):
        calls = []

        def full(tensors):
            calls.append(1)
            if len(calls) == call:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return clones(tensors)

        monkeypatch.setattr(updates, "_clones", full)
        solver.step(cuda_graphs.FIRST + 5)
        monkeypatch.setattr(updates, "_clones", clones)

    plain, graphs, solver = both(train, solver=f'type: "{rule}" momentum: 0.9 average_loss: 20')
    assert not is_update_captured(solver)
    assert_same(plain, graphs)
    assert warnings_logged().count("update is not captured as a CUDA graph: CUDA out of memory") == 1


def test_after_many_replays_passes_and_updates_may_be_captured_as_often_again(gpu, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "WORTH", 4)
    solver = gpu(LABELS)
    solver.step(cuda_graphs.FIRST + 2)
    tries = passes(solver)._tries, solver._updates._tries
    assert max(tries) < cuda_graphs.TRIES
    solver.step(6)
    assert (passes(solver)._tries, solver._updates._tries) == (cuda_graphs.TRIES, cuda_graphs.TRIES)

"""Learning-rate policies: the rate of each iteration, and that reading it changes nothing."""

import math
import re

import pytest

import caffe
from caffe.proto import caffe_pb2
from caffe.training import local_rates, policies
from caffe.training.plateau import Plateau

NET = """
layer { name: "x" type: "DummyData" top: "x" top: "y" dummy_data_param { shape { dim: 2 dim: 3 } data_filler { value: 1 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param { num_output: 3 } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "y" top: "loss" }
"""


def parameter(policy, **values):
    return caffe_pb2.SolverParameter(lr_policy=policy, base_lr=0.5, **values)


@pytest.mark.parametrize(
    ("param", "iteration", "rate"),
    [
        (parameter("fixed"), 1000, 0.5),
        (parameter("step", gamma=0.25, stepsize=10), 9, 0.5),
        (parameter("step", gamma=0.25, stepsize=10), 10, 0.125),
        (parameter("step", gamma=0.25, stepsize=10), 29, 0.03125),
        (parameter("exp", gamma=0.5), 3, 0.0625),
        (parameter("inv", gamma=0.5, power=2), 2, 0.125),
        (parameter("multistep", gamma=0.5, stepvalue=[5, 5, 20]), 4, 0.5),
        (parameter("multistep", gamma=0.5, stepvalue=[5, 5, 20]), 5, 0.125),
        (parameter("multistep", gamma=0.5, stepvalue=[5, 5, 20]), 20, 0.0625),
        (parameter("poly", power=2, max_iter=4), 2, 0.125),
        (parameter("sigmoid", gamma=-1, stepsize=7), 7, 0.25),
        (parameter("sigmoid", gamma=-1, stepsize=7), 8, 0.5 / (1 + math.e)),
        (parameter("multifixed", stagelr=[0.25, 2], stageiter=[5, 9]), 6, 2),
    ],
)
def test_learning_rate_of_an_iteration(param, iteration, rate):
    assert policies.learning_rate(param, iteration) == rate
    assert policies.learning_rate(param, 0) == pytest.approx(policies.POLICIES[param.lr_policy](param, 0))


def test_every_policy_has_a_case():
    cases = {mark.args[1][index][0].lr_policy for mark in test_learning_rate_of_an_iteration.pytestmark for index in range(13)}
    assert cases == set(policies.POLICIES)


@pytest.fixture
def solver(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "solver.prototxt").write_text(
        'net: "net.prototxt" base_lr: 0.5 lr_policy: "multistep" gamma: 0.5 stepvalue: 2 stepvalue: 4 max_iter: 9'
        ' solver_mode: CPU snapshot_prefix: "s"'
    )
    return caffe.get_solver("solver.prototxt")


def test_reading_the_learning_rate_changes_nothing(solver, tmp_path):
    solver.step(4)
    solver.snapshot("before")
    with caffe.log_to_file(tmp_path / "log", stderr=False):
        assert [solver.learning_rate() for _ in range(3)] == [0.125] * 3
    assert (tmp_path / "log").read_text() == ""
    solver.snapshot("after")
    assert solver.current_step == 1
    before, after = (
        caffe_pb2.SolverState.FromString((tmp_path / f"{stem}.solverstate").read_bytes()) for stem in ("before", "after")
    )
    assert (before.current_step, before.iter) == (1, 4)
    after.learned_net = before.learned_net
    assert after == before


def test_each_step_is_logged_once_and_a_resumed_training_logs_only_later_ones(solver, tmp_path):
    def steps(run):
        with caffe.log_to_file(tmp_path / "log", stderr=False):
            run()
        found = re.findall(r"sgd_solver.cpp:48\] MultiStep Status: Iteration (\d+), step = (\d+)", (tmp_path / "log").read_text())
        (tmp_path / "log").unlink()
        return found

    assert steps(lambda: solver.step(3)) == [("2", "1")]
    solver.snapshot("three")
    assert steps(lambda: solver.step(3)) == [("4", "2")]
    resumed = caffe.get_solver("solver.prototxt")
    resumed.restore("three.solverstate")
    assert steps(lambda: resumed.step(3)) == [("4", "2")]


# ---- forks


@pytest.mark.parametrize(
    ("iteration", "rate"), [(0, 0.25), (520, 0.25), (521, 2.0), (16000, 2.0), (16001, 0.5), (32000, 0.5), (40000, 0.5)]
)
def test_multifixed_gives_the_rate_of_the_stage_up_to_its_last_iteration(iteration, rate):
    param = caffe_pb2.SolverParameter(lr_policy="multifixed", stagelr=[0.25, 2, 0.5], stageiter=[520, 16000, 32000])
    assert policies.learning_rate(param, iteration) == rate


def test_multifixed_needs_a_rate_for_each_stage():
    with pytest.raises(caffe.SolverError) as error:
        policies.check_policy(caffe_pb2.SolverParameter(lr_policy="multifixed", stagelr=[1]), "solver.prototxt")
    assert error.value.found == "1 values of stagelr and 0 of stageiter"


@pytest.mark.parametrize(
    ("values", "iteration", "rate"),
    [
        ({"warmup_iter": 4, "warmup_start_lr": 0.25}, 0, 0.25),
        ({"warmup_iter": 4, "warmup_start_lr": 0.25}, 2, 0.375),
        ({"warmup_iter": 4, "warmup_start_lr": 0.25}, 4, 0.5),
        ({"rampup_interval": 4, "rampup_lr": 0.25}, 0, 0.25),
        ({"rampup_interval": 4, "rampup_lr": 0.25}, 2, 0.3125),
        ({"rampup_interval": 4}, 1, 0.03125),
        ({"rampup_interval": 4}, 4, 0.5),
        ({"rampup_interval": 4, "min_lr": 0.125}, 1, 0.125),
        ({"lr_policy": "step", "gamma": 0.5, "stepsize": 1, "min_lr": 0.0625}, 9, 0.0625),
        ({"lr_policy": "poly", "power": 2, "max_iter": 4, "min_lr": 0.25}, 2, 0.3125),
        ({"lr_policy": "poly", "power": 2, "max_iter": 4, "min_lr": 0.25}, 4, 0.25),
    ],
)
def test_warmup_rampup_and_the_least_rate(values, iteration, rate):
    assert policies.learning_rate(parameter(values.pop("lr_policy", "fixed"), **values), iteration) == rate


def test_momentum_grows_with_a_rate_that_warms_up():
    param = parameter("fixed", momentum=0.5, warmup_iter=4, warmup_start_lr=0.25)  # rates 1/4, 5/16, 3/8, 7/16, then 1/2
    assert [policies.momentum(param, iteration) for iteration in (0, 1, 4)] == [0.5, 0.625, 0.5]
    assert policies.momentum(parameter("fixed", momentum=0.5, warmup_iter=4), 1) == 0.5  # after a rate of 0


@pytest.mark.parametrize(
    ("settings", "share"),
    # The weights 3 and 4 have norm 5, and their gradient, twice as large, 10. base_lr is 0.5; lr_mult has no effect.
    [
        ("local_lr_auto: true local_gw_ratio: 0.25", 0.5 * 0.25 * 5 / 10),
        ("local_lr_auto: true local_gw_ratio: 0.25 weight_decay: 2", 2 * 0.5 * 0.25 * 5 / (10 + 2 * 5)),
        ("larc: true larc_eta: 0.25", 0.5 * 0.25 * 5 / 10),
        ("larc: true larc_eta: 0.25 momentum: 0.5", 0.5 * 0.5 * 0.25 * 5 / 10),
        ('larc: true larc_eta: 0.25 larc_policy: "clip"', 0.25 * 5 / 10),
        ('larc: true larc_eta: 8 larc_policy: "clip"', 0.5),
    ],
)
def test_rates_by_norms_of_weights_and_gradients(tmp_path, settings, share):
    (tmp_path / "net.prototxt").write_text(
        """layer { name: "x" type: "DummyData" top: "x" dummy_data_param { shape { dim: 1 dim: 1 } data_filler { value: 1 } } }
        layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" param { lr_mult: 3 }
          inner_product_param { num_output: 2 bias_term: false } }
        layer { name: "loss" type: "Reduction" bottom: "y" top: "l" loss_weight: 1 reduction_param { operation: SUMSQ } }"""
    )
    (tmp_path / "solver.prototxt").write_text(
        f'net: "{tmp_path}/net.prototxt" base_lr: 0.5 lr_policy: "fixed" max_iter: 1 solver_mode: CPU {settings}'
    )
    solver = caffe.get_solver(str(tmp_path / "solver.prototxt"))
    weights = solver.net.params["ip"][0].data
    weights[...] = [[3], [4]]
    solver.step(1)
    assert weights[:, 0] == pytest.approx([3 - share * 6, 4 - share * 8])


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"larc": True, "type": "Adam"}, "larc with type Adam"),
        ({"larc": True, "local_lr_auto": True}, "both local_lr_auto and larc"),
        ({"larc": True, "larc_policy": "none"}, 'larc_policy "none"'),
    ],
)
def test_settings_of_rates_by_norms_that_do_not_go_together(values, found):
    with pytest.raises(caffe.SolverError) as error:
        local_rates.check(caffe_pb2.SolverParameter(**values), "solver.prototxt")
    assert error.value.found == found


def test_a_plateau_ends_after_a_window_without_a_lower_loss():
    watched = Plateau([3, 2])
    losses = [5, 4, 6, 4, 4, 3, 9, 9, 9, 9]  # minima at 1 and 5
    steps, ended = 0, []
    for iteration, loss in enumerate(losses):
        if watched.ends(iteration, loss, steps):
            steps += 1
            ended.append(iteration)
    assert ended == [4, 7]


def test_the_rate_falls_at_plateaus_and_a_resumed_training_knows_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.prototxt").write_text(NET.replace("value: 1", "value: 0"))  # a loss of 0 from the start
    (tmp_path / "solver.prototxt").write_text(
        'net: "net.prototxt" base_lr: 1 lr_policy: "plateau" gamma: 0.5 plateau_winsize: 3 plateau_winsize: 2 max_iter: 9'
        ' solver_mode: CPU snapshot_prefix: "s"'
    )

    def rates(solver, count):
        seen = []
        for _ in range(count):
            solver.step(1)
            seen.append(solver.learning_rate())
        return seen

    solver = caffe.get_solver("solver.prototxt")
    assert rates(solver, 4) == [1, 1, 1, 0.5]
    solver.snapshot("four")
    expected = rates(solver, 3)
    assert expected == [0.5, 0.25, 0.25]
    resumed = caffe.get_solver("solver.prototxt")
    resumed.restore("four.solverstate")
    assert rates(resumed, 3) == expected


@pytest.mark.parametrize(
    ("values", "iteration", "expected"),
    [
        ({"momentum_policy": "poly", "max_momentum": 0.75}, 2, 0.625),
        ({"momentum_policy": "poly", "max_momentum": 0.75, "momentum_power": 2}, 2, 0.5625),
        ({"momentum_policy": "opt"}, 0, (1 - 0.5 * math.sqrt(0.5)) ** 2),
        ({"momentum_policy": "opt", "max_momentum": 0.25}, 0, 0.25),
        ({}, 2, 0.5),
    ],
)
def test_momentum_by_a_policy(values, iteration, expected):
    assert policies.momentum(parameter("fixed", momentum=0.5, max_iter=4, **values), iteration) == expected


def test_weight_decay_by_a_policy():
    param = parameter("fixed", weight_decay=0.5, max_weight_decay=1, weight_decay_policy="poly", weight_decay_power=2, max_iter=4)
    assert [policies.weight_decay(param, iteration) for iteration in (0, 2, 4)] == [0.5, 0.625, 1]


def test_an_update_uses_momentum_and_decay_of_its_iteration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.prototxt").write_text(
        """layer { name: "p" type: "Parameter" top: "p" parameter_param { shape { dim: 1 } blob_filler { value: 8 } } }
        layer { name: "l" type: "Reduction" bottom: "p" top: "l" loss_weight: 1 }"""
    )
    (tmp_path / "solver.prototxt").write_text(
        """net: "net.prototxt" base_lr: 1 lr_policy: "fixed" max_iter: 2 solver_mode: CPU momentum: 0 momentum_policy: "poly"
        max_momentum: 1 weight_decay: 0 weight_decay_policy: "poly" max_weight_decay: 1"""
    )
    solver = caffe.get_solver("solver.prototxt")
    weight = solver.net.params["p"][0].data
    solver.step(1)
    assert weight.item() == 7  # the gradient, 1
    solver.step(1)
    assert weight.item() == 7 - (0.5 * 1 + 1 + 0.5 * 7)  # half of the last update, the gradient, and half of the weight


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"momentum_policy": "none"}, 'momentum_policy "none"'),
        ({"weight_decay_policy": "opt"}, 'weight_decay_policy "opt"'),
        ({"weight_decay_policy": "poly"}, 'weight_decay_policy "poly" without max_iter'),
        ({"momentum_policy": "opt", "type": "Adam"}, 'momentum_policy "opt" with type Adam and lr_policy "fixed"'),
    ],
)
def test_policies_that_do_not_exist_or_do_not_go_together(values, found):
    with pytest.raises(caffe.SolverError) as error:
        policies.check_policy(parameter("fixed", **values), "solver.prototxt")
    assert error.value.found == found

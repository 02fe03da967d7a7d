"""Learning-rate policies: the rate of each iteration, and that reading it changes nothing."""

import math
import re

import pytest

import caffe
from caffe.proto import caffe_pb2
from caffe.training import policies

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
    ],
)
def test_learning_rate_of_an_iteration(param, iteration, rate):
    assert policies.learning_rate(param, iteration) == rate
    assert policies.learning_rate(param, 0) == pytest.approx(policies.POLICIES[param.lr_policy](param, 0))


def test_every_policy_has_a_case():
    cases = {mark.args[1][index][0].lr_policy for mark in test_learning_rate_of_an_iteration.pytestmark for index in range(12)}
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

"""Sweeps: lists as values of an experiment give an experiment for each combination."""

import pytest

from pipeline.configuration.sweeps import expanded
from pipeline.errors import InputError

ONE = {"dataset": "dogs", "model": "lenet", "weights": {"file": "w"}, "features": ["ip1"], "solver": {"stepvalue": [5, 9]}}


def test_an_experiment_without_lists_is_unchanged():
    made, sweeps = expanded({"one": ONE})
    assert made == {"one": ONE}
    assert sweeps == {}


def test_each_combination_of_the_lists_becomes_an_experiment():
    given = {**ONE, "batch_size": [8, 16], "solver": {"base_lr": [0.1, 0.01], "stepvalue": [5, 9], "max_iter": 10}}
    made, sweeps = expanded({"a": given, "b": ONE})
    assert list(made) == ["a-8-0.1", "a-8-0.01", "a-16-0.1", "a-16-0.01", "b"]
    assert made["a-16-0.1"] == {**ONE, "batch_size": 16, "solver": {"base_lr": 0.1, "stepvalue": [5, 9], "max_iter": 10}}
    assert sweeps == {
        "a": {"keys": ["batch_size", "base_lr"], "members": {name: [*map(float, name.split("-")[1:])] for name in list(made)[:4]}}
    }


def test_epochs_are_swept_and_step_epochs_stay_a_list():
    made, _ = expanded({"a": {**ONE, "batch_norm": ["learn", "freeze"], "solver": {"epochs": [10, 20], "step_epochs": [4, 8]}}})
    assert list(made) == ["a-learn-10", "a-learn-20", "a-freeze-10", "a-freeze-20"]
    assert made["a-freeze-10"]["solver"] == {"epochs": 10, "step_epochs": [4, 8]}


def test_keys_without_effect_for_a_strategy_are_dropped_for_it():
    made, _ = expanded({"a": {**ONE, "strategy": ["full", "features", "scratch"], "features_from": "ip1", "freeze_to": "conv1"}})
    optional = ("weights", "features_from", "freeze_to")
    assert {name: [key for key in optional if key in one] for name, one in made.items()} == {
        "a-full": ["weights", "freeze_to"],
        "a-features": ["weights", "features_from"],
        "a-scratch": [],
    }


def test_averaging_is_dropped_for_a_strategy_without_snapshots():
    made, _ = expanded({"a": {**ONE, "strategy": ["full", "features"], "export": {"average": 2, "onnx": True}}})
    assert made["a-full"]["export"] == {"average": 2, "onnx": True}
    assert made["a-features"]["export"] == {"onnx": True}


def test_strategy_features_is_not_multiplied_by_swept_training_options():
    swept = {"strategy": ["features", "full"], "batch_norm": ["learn", "freeze"], "rename_last": [True], "last_lr_mult": [1, 10]}
    solver = {"base_lr": [0.1, 0.01], "random_seed": [1, 2], "snapshot": 5}
    made, sweeps = expanded({"a": {**ONE, **swept, "early_stopping": 3, "solver": solver}})
    assert list(made)[:2] == ["a-features", "a-full-learn-True-1-0.1-1"]
    assert len(made) == 1 + 2 * 2 * 2 * 2
    assert made["a-features"] == {**{key: value for key, value in ONE.items() if key != "solver"}, "strategy": "features"}
    assert sweeps["a"]["members"]["a-features"] == ["features", None, None, None, None, None]


@pytest.mark.parametrize(
    ("swept", "key"), [({"solver": {"base_lr": [0.1, 0.01]}}, "solver.base_lr"), ({"last_lr_mult": [1, 10]}, "last_lr_mult")]
)
def test_sweeping_a_key_without_effect_is_refused(swept, key):
    with pytest.raises(InputError, match=f"experiments.a.{key}: several values, but it has no effect with strategy: features"):
        expanded({"a": {**ONE, "strategy": "features", "features_from": ["top", "middle"], **swept}})


def test_placeholders_in_weights_become_the_swept_values():
    weights = [{"file": "weights/{model}.caffemodel"}, "{batch_size}/{model}.h5", {"experiment": "base-{model}", "best": True}]
    given = {**ONE, "model": ["lenet", "nets/my net.prototxt"], "batch_size": [8], "weights": weights}
    made, _ = expanded({"a": given, "b": {**ONE, "weights": weights}})
    assert made["a-my_net-8"]["weights"] == [
        {"file": "weights/my_net.caffemodel"},
        "8/my_net.h5",
        {"experiment": "base-my_net", "best": True},
    ]
    assert made["a-lenet-8"]["weights"][0] == {"file": "weights/lenet.caffemodel"}
    assert made["b"]["weights"] == weights


def test_a_swept_prototxt_names_its_experiment_by_file_name():
    made, _ = expanded({"a": {**ONE, "model": ["lenet", "nets/my net.prototxt"]}})
    assert list(made) == ["a-lenet", "a-my_net"]


def test_identical_combinations_become_one_experiment():
    swept = {"strategy": ["full", "features"], "features_from": ["top", "middle"]}
    made, sweeps = expanded({"a": {**ONE, **swept, "batch_size": [8, 8]}})
    assert list(made) == ["a-full-8", "a-features-top", "a-features-middle"]
    assert sweeps["a"]["members"]["a-full-8"] == ["full", None, 8]


@pytest.mark.parametrize(
    "experiments", [{"a": {**ONE, "model": ["x/b", "y/b"]}}, {"a": {**ONE, "model": ["a", "b"]}, "a-b": ONE}]
)
def test_two_experiments_with_the_same_name_are_refused(experiments):
    with pytest.raises(InputError, match=r'experiments.a: two experiments "a-b"'):
        expanded(experiments)

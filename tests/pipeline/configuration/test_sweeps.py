"""Lists in the place of an experiment's values: an experiment for each combination."""

import pytest

from pipeline.configuration.sweeps import expanded
from pipeline.errors import InputError

ONE = {"dataset": "dogs", "model": "lenet", "weights": {"file": "w"}, "features": ["ip1"], "solver": {"stepvalue": [5, 9]}}


def test_an_experiment_without_lists_stays_as_it_is():
    made, sweeps = expanded({"one": ONE})
    assert made == {"one": ONE}
    assert sweeps == {}


def test_each_combination_of_the_lists_is_an_experiment():
    given = {**ONE, "batch_size": [8, 16], "solver": {"base_lr": [0.1, 0.01], "stepvalue": [5, 9], "max_iter": 10}}
    made, sweeps = expanded({"a": given, "b": ONE})
    assert list(made) == ["a-8-0.1", "a-8-0.01", "a-16-0.1", "a-16-0.01", "b"]
    assert made["a-16-0.1"] == {**ONE, "batch_size": 16, "solver": {"base_lr": 0.1, "stepvalue": [5, 9], "max_iter": 10}}
    assert sweeps == {
        "a": {"keys": ["batch_size", "base_lr"], "members": {name: [*map(float, name.split("-")[1:])] for name in list(made)[:4]}}
    }


def test_epochs_have_combinations_and_steps_stay_a_list():
    made, _ = expanded({"a": {**ONE, "batch_norm": ["learn", "freeze"], "solver": {"epochs": [10, 20], "step_epochs": [4, 8]}}})
    assert list(made) == ["a-learn-10", "a-learn-20", "a-freeze-10", "a-freeze-20"]
    assert made["a-freeze-10"]["solver"] == {"epochs": 10, "step_epochs": [4, 8]}


def test_what_has_no_effect_with_one_strategy_of_several_is_left_out_there():
    made, _ = expanded({"a": {**ONE, "strategy": ["full", "features", "scratch"], "features_from": "ip1", "freeze_to": "conv1"}})
    optional = ("weights", "features_from", "freeze_to")
    assert {name: [key for key in optional if key in one] for name, one in made.items()} == {
        "a-full": ["weights", "freeze_to"],
        "a-features": ["weights", "features_from"],
        "a-scratch": [],
    }


def test_snapshots_are_averaged_where_there_are_some():
    made, _ = expanded({"a": {**ONE, "strategy": ["full", "features"], "export": {"average": 2, "onnx": True}}})
    assert made["a-full"]["export"] == {"average": 2, "onnx": True}
    assert made["a-features"]["export"] == {"onnx": True}


def test_a_classifier_of_features_is_fitted_once_whatever_is_swept_of_a_training():
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
def test_several_values_that_have_no_effect_are_refused(swept, key):
    with pytest.raises(InputError, match=f"experiments.a.{key}: several values, but it has no effect with strategy: features"):
        expanded({"a": {**ONE, "strategy": "features", "features_from": ["top", "middle"], **swept}})


def test_a_swept_key_in_braces_in_the_weights_is_its_value():
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


def test_a_prototxt_gives_an_experiment_its_files_name():
    made, _ = expanded({"a": {**ONE, "model": ["lenet", "nets/my net.prototxt"]}})
    assert list(made) == ["a-lenet", "a-my_net"]


def test_combinations_that_differ_in_nothing_are_one():
    swept = {"strategy": ["full", "features"], "features_from": ["top", "middle"]}
    made, sweeps = expanded({"a": {**ONE, **swept, "batch_size": [8, 8]}})
    assert list(made) == ["a-full-8", "a-features-top", "a-features-middle"]
    assert sweeps["a"]["members"]["a-full-8"] == ["full", None, 8]


@pytest.mark.parametrize(
    "experiments", [{"a": {**ONE, "model": ["x/b", "y/b"]}}, {"a": {**ONE, "model": ["a", "b"]}, "a-b": ONE}]
)
def test_two_experiments_of_one_name_are_refused(experiments):
    with pytest.raises(InputError, match=r'experiments.a: two experiments "a-b"'):
        expanded(experiments)

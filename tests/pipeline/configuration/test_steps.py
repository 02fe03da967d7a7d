"""The options that each step gets from a config: exactly those that it uses, so that a change reruns only what it affects."""

import copy

import pytest

from pipeline.configuration import check_config
from pipeline.configuration.steps import options_of, patience_of
from pipeline.options.config import STEPS

CONFIG = {
    "datasets": {
        "cats": {"source": {"list": "cats.csv"}, "augmentation": {"rotation": 10}},
        "dogs": {"source": {"folder": "dogs"}, "augmentation": {"copies": 3, "blur": 1}},
        "digits": {"source": {"published": "mnist", "copy": "files"}},
    },
    "experiments": {
        "base": {"dataset": "cats", "model": "lenet", "features": ["ip1"], "export": {"average": 3}, "solver": {"snapshot": 1}},
        "tuned": {"dataset": "dogs", "model": "lenet", "weights": {"experiment": "base"}, "strategy": "auto"},
        "swept": {"dataset": "cats", "model": "lenet", "solver": {"base_lr": [0.1, 0.2]}},
    },
}


def make_config(change=lambda config: None):
    config = copy.deepcopy(CONFIG)
    change(config)
    return check_config(config, "config.yaml")


def step_options(step, change=lambda config: None, **names):
    return options_of(make_config(change), step, names)


TRAIN = {"dataset": "dogs", "part": "train"}
RESIZE = {"size": {"height": 256, "width": 256}, "resize_mode": "squash", "interpolation": "linear", "color": "color"}


def test_a_step_gets_its_options_with_their_defaults():
    options = step_options("dataset.resize", dataset="cats")
    assert options.keys() == STEPS["dataset.resize"].model_fields.keys()
    assert options.items() >= RESIZE.items()
    assert step_options("sources.published", dataset="digits") == {"source": {"copy": "files"}}


def set_key(part, name, **keys):
    return lambda config: config[part][name].update(keys)


@pytest.mark.parametrize(
    ("step", "names", "change"),
    [
        ("dataset.resize", {"dataset": "cats"}, set_key("datasets", "cats", seed=5, duplicates="drop", split={"val": 0.3})),
        ("dataset.download", {"dataset": "cats"}, set_key("datasets", "cats", source={"list": "cats.csv", "retries": 9})),
        ("dataset.label", {"dataset": "cats"}, set_key("datasets", "cats", size={"height": 9}, split={"balance": "weights"})),
        ("dataset.database", {"dataset": "cats", "part": "train"}, set_key("datasets", "cats", augmentation={"rotation": 20})),
        ("dataset.database", {"dataset": "dogs", "part": "val"}, set_key("datasets", "dogs", augmentation={"copies": 4}, seed=2)),
        ("nets.prototxt", {"experiment": "base"}, set_key("experiments", "base", early_stopping=3, pictures={"count": 5})),
        ("nets.prototxt", {"experiment": "tuned"}, set_key("experiments", "tuned", strategy="features")),
        ("training.train", {"experiment": "base"}, set_key("experiments", "base", features=["ip2"], best=True)),
        ("inference.features", {"experiment": "base"}, set_key("experiments", "base", pictures={"count": 5})),
    ],
)
def test_a_key_that_a_step_does_not_use_leaves_its_options_unchanged(step, names, change):
    assert step_options(step, **names) == step_options(step, change, **names)


@pytest.mark.parametrize(
    ("step", "names", "change"),
    [
        ("dataset.resize", {"dataset": "cats"}, set_key("datasets", "cats", interpolation="area")),
        ("dataset.download", {"dataset": "cats"}, set_key("datasets", "cats", source={"list": "cats.csv", "max_bytes": 9})),
        ("dataset.label", {"dataset": "cats"}, set_key("datasets", "cats", split={"balance": "repeat"})),
        (
            "dataset.database",
            {"dataset": "dogs", "part": "train"},
            set_key("datasets", "dogs", augmentation={"copies": 4, "blur": 1}),
        ),
        ("dataset.database", TRAIN, set_key("datasets", "dogs", seed=2)),
        ("nets.prototxt", {"experiment": "base"}, set_key("datasets", "cats", augmentation={"rotation": 20})),
        ("nets.prototxt", {"experiment": "base"}, set_key("experiments", "base", rename_last=True)),
        ("training.train", {"experiment": "base"}, set_key("experiments", "base", early_stopping=2)),
        ("training.linear", {"experiment": "tuned"}, set_key("datasets", "dogs", split={"balance": "weights"})),
        ("report.visualize", {"experiment": "base"}, lambda config: config.update(compute="gpu")),
        ("inference.features", {"experiment": "base"}, lambda config: config.update(numerics="fast")),
        ("nets.prototxt", {"experiment": "base"}, set_key("experiments", "base", numerics="reproducible")),
        ("export.average", {"experiment": "base"}, set_key("experiments", "base", export={"average": 2}, solver={"snapshot": 1})),
    ],
)
def test_a_key_that_a_step_uses_changes_its_options(step, names, change):
    assert step_options(step, **names) != step_options(step, change, **names)


def test_file_urls_are_allowed_only_for_a_folder():
    assert step_options("dataset.download", dataset="dogs")["source"]["allow_file"]
    assert not step_options("dataset.download", dataset="cats")["source"]["allow_file"]


def test_patience_and_limits_together_are_all_download_options():
    limits, patience = step_options("dataset.download", dataset="cats")["source"], patience_of(make_config(), "cats")["source"]
    assert not limits.keys() & patience.keys()
    assert limits | patience == STEPS["dataset.download"]().source.model_dump()


def test_numerics_are_those_of_the_experiment_else_of_the_config():
    def change(config):
        config["numerics"] = "fast"
        config["experiments"]["base"]["numerics"] = "reproducible"

    for step in ("nets.prototxt", "inference.evaluate", "inference.features", "report.visualize"):
        numerics = [step_options(step, change, experiment=name)["numerics"] for name in ("base", "tuned")]
        assert numerics == ["reproducible", "fast"], step
    assert step_options("inference.evaluate", experiment="base")["numerics"] == "fp32"


def test_a_member_of_a_sweep_may_diverge():
    assert step_options("training.train", experiment="swept-0.1")["tolerate_divergence"]
    assert not step_options("training.train", experiment="base")["tolerate_divergence"]


def test_augmentation_goes_to_the_records_or_to_the_net():
    assert step_options("nets.prototxt", experiment="base")["augmentation"] == {"rotation": 10}
    assert "augmentation" not in step_options("nets.prototxt", experiment="tuned")
    assert step_options("dataset.database", dataset="dogs", part="train")["augmentation"] == {"blur": 1}
    assert "augmentation" not in step_options("dataset.database", dataset="dogs", part="val")


def test_a_comparison_has_all_experiments_and_sweeps():
    options = step_options("report.comparison")
    assert options["names"] == ["base", "tuned", "swept-0.1", "swept-0.2"]
    assert options["datasets"] == ["cats", "dogs", "cats", "cats"]
    assert list(options["sweeps"]) == ["swept"]


def test_neighbours_use_the_blob_with_that_file_name():
    assert step_options("report.neighbours", experiment="base", blob="ip1") == {"blob": "ip1"}

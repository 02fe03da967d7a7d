"""What is said of a config: every problem at once, with its key, its value and what is allowed."""

import copy

import pytest
import yaml

from pipeline.configuration import checked
from pipeline.errors import InputError
from tests.conftest import ROOT

SCHEMA = ROOT / "config/schema.yaml"
GOOD = {
    "datasets": {"cats": {"source": {"list": "cats.csv"}}},
    "experiments": {"breeds": {"dataset": "cats", "model": "lenet"}},
}


def problems(change) -> list[str]:
    config = copy.deepcopy(GOOD)
    change(config)
    with pytest.raises(InputError) as error:
        checked(config, "my.yaml", SCHEMA)
    return str(error.value).splitlines()


def test_defaults_are_filled_in_at_every_depth():
    config = checked(GOOD, "my.yaml", SCHEMA)
    assert config["compute"] == "cpu"
    assert config["datasets"]["cats"]["size"] == {"height": 256, "width": 256}
    assert config["datasets"]["cats"]["split"] == {"by": "fraction"}
    assert config["experiments"]["breeds"]["weights"] == {}
    assert "compute" not in GOOD


def test_the_embedded_example_is_good():
    checked(yaml.safe_load((ROOT / "config/config.yaml").read_text()), "config/config.yaml", SCHEMA)


CASES = {
    "a typo in a key": (
        lambda c: c["datasets"]["cats"].update(sise={"height": 28}),
        'my.yaml: datasets.cats.sise: unknown key; did you mean "size"?',
    ),
    "a value out of range": (
        lambda c: c["datasets"]["cats"].update(split={"val": 1.2}),
        "my.yaml: datasets.cats.split.val: 1.2 is not between 0 and 1",
    ),
    "a value of another kind": (
        lambda c: c["datasets"]["cats"].update(shard_size="many"),
        "my.yaml: datasets.cats.shard_size: 'many' is not a whole number",
    ),
    "a word that is none of the choices": (
        lambda c: c["datasets"]["cats"].update(color="grey"),
        "my.yaml: datasets.cats.color: 'grey' is not one of color, gray; did you mean \"gray\"?",
    ),
    "a missing key": (lambda c: c["datasets"]["cats"].pop("source"), "my.yaml: datasets.cats: source is missing"),
    "an unknown dataset": (
        lambda c: c["experiments"]["breeds"].update(dataset="cat"),
        "my.yaml: experiments.breeds.dataset: 'cat' is not one of cats; did you mean \"cats\"?",
    ),
    "an unknown model": (
        lambda c: c["experiments"]["breeds"].update(model="lenett"),
        "my.yaml: experiments.breeds.model: 'lenett' is not one of lenet, cifar10_quick, caffenet; did you mean \"lenet\"?",
    ),
    "experiments that start from one another": (
        lambda c: c["experiments"]["breeds"].update(weights={"experiment": "breeds"}),
        "my.yaml: experiments.breeds.weights.experiment: breeds → breeds goes in a circle",
    ),
}


@pytest.mark.parametrize(("change", "said"), CASES.values(), ids=CASES)
def test_a_problem_is_named_with_its_key_its_value_and_what_is_allowed(change, said):
    assert problems(change) == [said]


def test_all_problems_are_shown_at_once():
    def change(config):
        config["compute"] = "tpu"
        config["datasets"]["cats"]["seed"] = -1
        config["experiments"]["breeds"]["modle"] = config["experiments"]["breeds"].pop("model")

    assert len(problems(change)) == 4  # the misspelt key is unknown, and the right one missing

"""Check a config against its schema and its own cross-references, and fill in the defaults; all errors at once."""

from pathlib import Path
from typing import Any

from pipeline.configuration import datasets, experiments, keys, limits, sweeps, weights
from pipeline.configuration.keys import mapping, mappings
from pipeline.errors import InputError
from pipeline.options.base import schema_of, with_defaults
from pipeline.options.config import Config
from pipeline.options.problems import problems as schema_problems


def check_config(config: dict[str, Any], path: str) -> dict[str, Any]:
    """The config with defaults filled in, and one experiment for each combination of a sweep, which `sweeps` lists.

    Raises one InputError that lists every problem, a line each.

    path  the config file, for the errors
    """
    schema = schema_of(Config)
    problems = [*limits.repeated(Path(path)), *limits.not_finite(config), *limits.too_long(config)]
    swept: dict[str, dict[str, Any]] = {}
    if isinstance(config.get("experiments"), dict):
        expanded, swept = sweeps.expanded(config["experiments"])
        config = {**config, "experiments": expanded}
    problems += schema_problems(config, schema)
    for kind, checks in (("datasets", datasets), ("experiments", experiments)):
        for name, given in mappings(config.get(kind)).items():
            problems += checks.without_effect(name, given)
    config = with_defaults(config, schema)
    sets, trainings = (mappings(config.get(kind)) for kind in ("datasets", "experiments"))
    for training in trainings.values():
        if isinstance(training.get("weights"), str | list):
            training["weights"] = weights.as_mappings(training["weights"])
    for dataset in sets.values():
        if isinstance(other := mapping(dataset.get("source")).get("dataset"), str):
            dataset |= {key: sets[other][key] for key in keys.OF_IMAGES if key in sets.get(other, {})}
    problems += _cross_checked(sets, trainings)
    if problems:
        raise InputError("", "\n".join(f"{path}: {problem}" for problem in problems))
    config["sweeps"] = swept
    return config


def _cross_checked(sets: dict[str, dict[str, Any]], trainings: dict[str, dict[str, Any]]) -> list[str]:
    """Mistakes that the schema cannot express: in names that refer to one another, templates and Caffe's solver.

    Values of a wrong type are skipped, as the schema reports them.
    """
    found = [problem for name in sets for problem in datasets.problems(name, sets)]
    for name, training in trainings.items():
        found += [f"experiments.{name}.{problem}" for problem in experiments.problems(training, sets)]
        found += [f"experiments.{name}.weights{problem}" for problem in weights.problems(name, trainings)]
        found += [f"experiments.{name}.dataset: {problem}" for problem in weights.of_channels(training, trainings, sets)]
    return found

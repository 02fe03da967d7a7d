"""Experiments whose config has lists in the place of values: one for each combination.

    tuned: {dataset: dogs, model: resnet50, strategy: [full, half], solver: {base_lr: [0.01, 0.001]}}

is the four experiments tuned-full-0.01, tuned-full-0.001, tuned-half-0.01 and tuned-half-0.001. In what `weights` says a key in
braces, as in `weights/{model}.caffemodel`, stands for the value as it is in the experiment's name.
"""

import copy
import itertools
from collections.abc import Mapping
from typing import Any

from pipeline.errors import InputError
from pipeline.nets import solver_fields

KEYS = (
    *("dataset", "model", "strategy", "features_from", "freeze_to", "batch_norm"),
    *("rename_last", "last_lr_mult", "batch_size"),
)
"""Keys of an experiment that may have a list; besides, the solver's fields that have one value, and epochs."""
WITHOUT_EFFECT = {
    "full": ("features_from",),
    "features": ("freeze_to", "batch_norm", "rename_last", "last_lr_mult", "batch_size", "early_stopping", "solver"),
    "scratch": ("weights", "skip_layers", "features_from", "freeze_to", "batch_norm"),
}
"""Keys that have none with a strategy, left out where another of the sweep wants them; with other strategies, FROZEN.
The net of `features` is only tested."""
FROZEN = ("features_from", "freeze_to")


def expanded(experiments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The experiments, with one for each combination that differs from the others; and {sweep: {"keys": …, "members": …}}.

    keys     what has several values, in the config's order; the solver's fields by their names alone
    members  {experiment: its values of these keys; None where a key has no effect with its strategy}

    Raises InputError where two combinations would have one name, an experiment of that name is there, or a list has no effect.
    """
    made, sweeps = {}, {}
    for name, experiment in experiments.items():
        lists = _lists(experiment) if isinstance(name, str) else {}
        if not lists:
            made[name] = experiment
            continue
        if experiment.get("strategy") == "features":
            for part, key in lists:
                if (part or key) in WITHOUT_EFFECT["features"]:
                    where = ".".join(filter(None, ("experiments", name, part, key)))
                    raise InputError(where, "several values", "it has no effect with strategy: features", "remove it")
        members: dict[str, list[Any]] = {}
        for values in itertools.product(*lists.values()):
            one = copy.deepcopy(experiment)
            for (part, key), value in zip(lists, values, strict=True):
                (one[part] if part else one)[key] = value
            if ("", "strategy") in lists:
                for key in WITHOUT_EFFECT.get(one["strategy"], FROZEN):
                    one.pop(key, None)
                if one["strategy"] == "features" and isinstance(one.get("export"), dict):
                    one["export"].pop("average", None)  # of snapshots, which it has none of
            kept = [(one.get(part, {}) if part else one).get(key) for part, key in lists]
            if kept in members.values():
                continue
            if "weights" in one:
                words = {key: _word(value) for (_, key), value in zip(lists, kept, strict=True) if value is not None}
                one["weights"] = _filled_in(one["weights"], words)
            member = "-".join([name, *(_word(value) for value in kept if value is not None)])
            if member in members or member in experiments:
                raise InputError(
                    f"experiments.{name}", f'two experiments "{member}"', "each combination has a name of its own", "rename one"
                )
            members[member] = kept
            made[member] = one
        sweeps[name] = {"keys": [key for _, key in lists], "members": members}
    return made, sweeps


def _lists(experiment: object) -> dict[tuple[str, str], list[Any]]:
    """{("" or "solver", key): its values} of the keys that have a list of one value or more."""
    if not isinstance(experiment, dict):
        return {}
    solver = experiment.get("solver") if isinstance(experiment.get("solver"), dict) else {}
    single = {"epochs", *(key for key, field in solver_fields.FIELDS.items() if not field.is_repeated)}
    fields = [("solver", key) for key in solver if key in single]
    both = [*(("", key) for key in experiment if key in KEYS), *fields]
    values = {(part, key): (solver if part else experiment)[key] for part, key in both}
    return {key: value for key, value in values.items() if isinstance(value, list) and value}


def _filled_in(weights: object, words: dict[str, str]) -> object:
    """Weights with each key in braces replaced by its word."""
    if isinstance(weights, dict):
        return {key: _filled_in(value, words) for key, value in weights.items()}
    if isinstance(weights, list):
        return [_filled_in(one, words) for one in weights]
    if isinstance(weights, str):
        for key, word in words.items():
            weights = weights.replace(f"{{{key}}}", word)
    return weights


def _word(value: object) -> str:
    """A value as a part of a name: a path's stem, and no characters but letters, digits, `_`, `.` and `-`."""
    word = str(value).rsplit("/", 1)[-1].removesuffix(".prototxt")
    return "".join(letter if letter.isalnum() or letter in "_.-" else "_" for letter in word)

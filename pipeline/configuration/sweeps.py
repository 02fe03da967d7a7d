"""Sweeps: an experiment whose config has lists in place of values becomes one experiment per combination.

    tuned: {dataset: dogs, model: resnet50, strategy: [full, half], solver: {base_lr: [0.01, 0.001]}}

becomes tuned-full-0.01, tuned-full-0.001, tuned-half-0.01 and tuned-half-0.001. In `weights` a key in braces, as in
`weights/{model}.caffemodel`, is replaced by the value as the experiment's name has it.
"""

import copy
import itertools
from collections.abc import Mapping
from typing import Any

from pipeline.configuration.keys import mapping
from pipeline.errors import InputError
from pipeline.nets import solver_fields

KEYS = ("dataset", "model", "strategy", "features_from", "freeze_to", "batch_norm", "rename_last", "last_lr_mult", "batch_size")
"""Keys of an experiment that may have a list, as may the solver's fields that take one value, and epochs."""
WITHOUT_EFFECT = {
    "full": ("features_from",),
    "features": ("freeze_to", "batch_norm", "rename_last", "last_lr_mult", "batch_size", "early_stopping", "solver"),
    "scratch": ("weights", "skip_layers", "features_from", "freeze_to", "batch_norm"),
}
"""Keys without effect with a strategy, removed from a sweep's experiments of this strategy; for other strategies, FROZEN.
The net of `features` is only tested."""
FROZEN = ("features_from", "freeze_to")


def expanded(experiments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The experiments, with one for each distinct combination of a sweep; and {sweep: {"keys": …, "members": …}}.

    keys     those with a list, in the config's order; fields of the solver without `solver.`
    members  {experiment: its values of these keys; None if a key has no effect with its strategy}

    Raises InputError if two experiments would have the same name, or a list has no effect.
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
            single = copy.deepcopy(experiment)
            for (part, key), value in zip(lists, values, strict=True):
                (single[part] if part else single)[key] = value
            if ("", "strategy") in lists:
                for key in WITHOUT_EFFECT.get(single["strategy"], FROZEN):
                    single.pop(key, None)
                if single["strategy"] == "features":
                    mapping(single.get("export")).pop("average", None)  # there are no snapshots
            kept = [(single.get(part, {}) if part else single).get(key) for part, key in lists]
            if kept in members.values():
                continue
            words = {key: _word(value) for (_, key), value in zip(lists, kept, strict=True) if value is not None}
            if "weights" in single:
                single["weights"] = _filled_in(single["weights"], words)
            member = "-".join([name, *words.values()])
            if member in members or member in experiments:
                raise InputError(f"experiments.{name}", f'two experiments "{member}"', "names have to be unique", "rename one")
            members[member] = kept
            made[member] = single
        sweeps[name] = {"keys": [key for _, key in lists], "members": members}
    return made, sweeps


def _lists(experiment: object) -> dict[tuple[str, str], list[Any]]:
    """{("" or "solver", key): its values} of the keys that have a list, unless it is empty."""
    fields = {"epochs", *(key for key, field in solver_fields.FIELDS.items() if not field.is_repeated)}
    values = {("", key): value for key, value in mapping(experiment).items() if key in KEYS}
    values |= {("solver", key): value for key, value in mapping(mapping(experiment).get("solver")).items() if key in fields}
    return {key: value for key, value in values.items() if isinstance(value, list) and value}


def _filled_in(weights: object, words: dict[str, str]) -> object:
    """Weights with each key in braces replaced by its word."""
    if isinstance(weights, dict):
        return {key: _filled_in(value, words) for key, value in weights.items()}
    if isinstance(weights, list):
        return [_filled_in(value, words) for value in weights]
    if isinstance(weights, str):
        for key, word in words.items():
            weights = weights.replace(f"{{{key}}}", word)
    return weights


def _word(value: object) -> str:
    """A value as part of a name: a path's last part, of letters, digits, `_`, `.` and `-` alone."""
    word = str(value).rsplit("/", 1)[-1].removesuffix(".prototxt")
    return "".join(letter if letter.isalnum() or letter in "_.-" else "_" for letter in word)

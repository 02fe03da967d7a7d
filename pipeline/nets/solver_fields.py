"""Fields of Caffe's SolverParameter from plain values, and what is wrong with those that do not fit."""

import itertools
from typing import Any

import caffe
from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.options.problems import number_hint

FIELDS = caffe_pb2.SolverParameter.DESCRIPTOR.fields_by_name
OURS = {
    "net": "the nets are written from model",
    "net_param": "the nets are written from model",
    "train_net": "the nets are written from model",
    "train_net_param": "the nets are written from model",
    "test_net": "the nets are written from model",
    "test_net_param": "the nets are written from model",
    "test_iter": "testing covers the validation set",
    "solver_mode": "say compute: cpu or compute: gpu",
    "device_id": "a free GPU is taken",
    "snapshot_prefix": "snapshots go to the experiment's folder",
    "weights": "use the experiment's weights",
}
"""Fields that the workflow sets itself, and why a config may not."""

EPOCHS = {"epochs": ("max_iter",), "step_epochs": ("stepsize", "stepvalue")}
"""What a config may say in epochs, in the place of Caffe's fields, which the prototxt step works out."""
DEFAULT_EPOCHS = 20
"""How long a training is, where the config does not say it."""

_AT_STEPS = "what the rate is multiplied by at each step, such as 0.1"
POLICIES = {
    "step": {"stepsize": "iterations from step to step, or step_epochs", "gamma": _AT_STEPS},
    "multistep": {"stepvalue": "a list of the steps' iterations, or step_epochs", "gamma": _AT_STEPS},
    "exp": {"gamma": "what the rate is multiplied by at each iteration, such as 0.9999"},
    "inv": {"gamma": "how fast the rate falls, such as 0.0001", "power": "such as 0.75"},
    "poly": {"power": "1 for a straight line"},
    "sigmoid": {"gamma": "how fast the rate changes around stepsize, below 0 where it falls, such as -0.01"},
}
"""What a policy of the learning rate needs, where Caffe's default of 0 or none makes the rate 0 or constant."""


def assign(param: caffe_pb2.SolverParameter, name: str, value: Any) -> None:
    """Set one field; a list for a repeated one, a name for an enum. Raises InputError whose place is the field's name."""
    if name not in FIELDS:
        raise InputError(name, "no field of Caffe's SolverParameter", do=caffe.nearest(str(name), FIELDS))
    field = FIELDS[name]
    choices = field.enum_type.values_by_name if field.enum_type else {}
    if choices and value not in choices:
        raise InputError(name, f"{value!r} is not one of {', '.join(choices)}")
    try:
        if isinstance(value, list):
            getattr(param, name).extend(value)
        else:
            setattr(param, name, choices[value].number if choices else value)
    except (TypeError, ValueError, AttributeError):
        raise InputError(name, f"{value!r} is not {_kind(field)}", do=number_hint(value)) from None


def problems(values: dict[str, Any]) -> list[str]:
    """What is wrong with the fields that a config gives, a line each, such as `base_lr: 'fast' is not a number`."""
    found = _of_epochs(values) + _of_policy(values)
    for name, value in values.items():
        if name in EPOCHS:
            continue
        if name in OURS:
            found.append(f"{name}: set by the workflow; {OURS[name]}")
            continue
        try:
            assign(caffe_pb2.SolverParameter(), name, value)
        except InputError as error:
            found.append(str(error))
    return found


def _of_epochs(values: dict[str, Any]) -> list[str]:
    """What is wrong with the fields that are given in epochs."""
    found = []
    for name, fields in EPOCHS.items():
        if name not in values:
            continue
        steps = values[name] if name == "step_epochs" and isinstance(values[name], list) else [values[name]]
        if not steps or not all(isinstance(step, int | float) and not isinstance(step, bool) and step > 0 for step in steps):
            wanted = "a number above 0" + (" or a list of such" if name == "step_epochs" else "")
            found.append(f"{name}: {values[name]!r} is not {wanted}")
        elif any(later <= earlier for earlier, later in itertools.pairwise(steps)):
            found.append(f"{name}: {values[name]!r} does not rise")
        elif name == "step_epochs" and (ends := _epochs(values)) and steps[-1] >= ends:
            found.append(f"{name}: {steps[-1]} has no effect, for training ends after {ends} epochs")
        found += [f"{name}: {field} says it too; remove one of them" for field in fields if field in values]
    if "step_epochs" in values:
        wanted = "multistep" if isinstance(values["step_epochs"], list) else "step"
        if values.get("lr_policy", wanted) != wanted:
            found.append(f"step_epochs: no effect with lr_policy: {values['lr_policy']}; remove one, or use lr_policy: {wanted}")
    return found


def _epochs(values: dict[str, Any]) -> int | float | None:
    """How many epochs are trained, where that is known without the dataset."""
    epochs = values.get("epochs", None if "max_iter" in values else DEFAULT_EPOCHS)
    return epochs if isinstance(epochs, int | float) else None


def _of_policy(values: dict[str, Any]) -> list[str]:
    """What is wrong with how the learning rate changes: what its policy lacks, and steps at which nothing happens."""
    policy, found = values.get("lr_policy"), []
    if "step_epochs" in values:
        return []  # it gives all of this
    if policy is None:
        for name in ("gamma", "power", "stepsize", "stepvalue"):
            if name in values:
                kinds = " or ".join(kind for kind, needed in POLICIES.items() if name in needed)
                found.append(f"{name}: no effect with lr_policy: fixed, the default; give lr_policy: {kinds}, or remove it")
    needed = POLICIES.get(policy, {}) if isinstance(policy, str) else {}
    found += [f"lr_policy: {policy} without {name}; give {name}, {hint}" for name, hint in needed.items() if name not in values]
    steps, last = values.get("stepvalue"), values.get("max_iter")
    if not isinstance(steps, list) or not steps or not all(isinstance(step, int) for step in steps):
        return found
    if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        found.append(f"stepvalue: {steps!r} does not rise")
    elif isinstance(last, int) and steps[-1] >= last:
        found.append(f"stepvalue: {steps[-1]} has no effect, for training ends after {last} iterations")
    return found


def _kind(field: Any) -> str:
    """What a field takes, in words."""
    if field.message_type:
        return "for a config to set"
    numbers = {field.CPPTYPE_FLOAT: "number", field.CPPTYPE_DOUBLE: "number", field.CPPTYPE_STRING: "text"}
    kind = "true or false" if field.cpp_type == field.CPPTYPE_BOOL else numbers.get(field.cpp_type, "whole number")
    if field.is_repeated:
        return f"a list, each a {kind}"
    return kind if kind.startswith("true") else f"a {kind}"

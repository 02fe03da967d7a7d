"""Fields of Caffe's SolverParameter: set them from plain values, and check those of a config."""

import itertools
from typing import Any

import caffe
from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.options.problems import number_hint

FIELDS = caffe_pb2.SolverParameter.DESCRIPTOR.fields_by_name
_NETS = ("net", "net_param", "train_net", "train_net_param", "test_net", "test_net_param")
OURS = {
    **dict.fromkeys(_NETS, "the nets are written from model"),
    "test_iter": "testing covers the validation set",
    "solver_mode": "say compute: cpu or compute: gpu",
    "numerics": "say numerics: in the config or the experiment",
    "device_id": "a free GPU is taken",
    "snapshot_prefix": "snapshots go to the experiment's folder",
    "weights": "use the experiment's weights",
}
"""Fields that the workflow sets, and why a config may not."""

EPOCHS = {"epochs": ("max_iter",), "step_epochs": ("stepsize", "stepvalue")}
"""Keys of a config that give numbers of epochs, and Caffe's fields that the prototxt step computes from them."""
DEFAULT_EPOCHS = 20
"""Epochs of a training, by default."""

_AT_STEPS = "what the rate is multiplied by at each step, such as 0.1"
POLICIES = {
    "step": {"stepsize": "iterations from step to step, or step_epochs", "gamma": _AT_STEPS},
    "multistep": {"stepvalue": "a list of the steps' iterations, or step_epochs", "gamma": _AT_STEPS},
    "exp": {"gamma": "what the rate is multiplied by at each iteration, such as 0.9999"},
    "inv": {"gamma": "how fast the rate falls, such as 0.0001", "power": "such as 0.75"},
    "poly": {"power": "1 for a straight line"},
    "sigmoid": {"gamma": "how fast the rate changes around stepsize, below 0 where it falls, such as -0.01"},
}
"""Fields that a learning-rate policy needs because Caffe's default of 0 or none makes the rate 0 or constant, with a hint."""


def assign(param: caffe_pb2.SolverParameter, name: str, value: Any) -> None:
    """Set one field, repeated ones from a list, enums from a name. Raises InputError with the field's name as its place."""
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
    """Errors in the fields that a config gives, a line each, such as `base_lr: 'fast' is not a number`."""
    found = _of_epochs(values) + _of_policy(values)
    for name, value in values.items():
        if name in OURS:
            found.append(f"{name}: set by the workflow; {OURS[name]}")
        elif name not in EPOCHS:
            try:
                assign(caffe_pb2.SolverParameter(), name, value)
            except InputError as error:
                found.append(str(error))
    return found


def _of_epochs(values: dict[str, Any]) -> list[str]:
    """Errors in the fields that are given in epochs."""
    found = []
    for name, fields in EPOCHS.items():
        if name not in values:
            continue
        steps = values[name] if name == "step_epochs" and isinstance(values[name], list) else [values[name]]
        if not steps or not all(isinstance(step, int | float) and not isinstance(step, bool) and step > 0 for step in steps):
            expected = "a number above 0" + (" or a list of such" if name == "step_epochs" else "")
            found.append(f"{name}: {values[name]!r} is not {expected}")
        elif any(later <= earlier for earlier, later in itertools.pairwise(steps)):
            found.append(f"{name}: {values[name]!r} does not rise")
        elif name == "step_epochs" and (ends := _epochs(values)) and steps[-1] >= ends:
            found.append(f"{name}: {steps[-1]} has no effect, for training ends after {ends} epochs")
        found += [f"{name}: {field} says it too; remove one of them" for field in fields if field in values]
    if "step_epochs" in values:
        policy = "multistep" if isinstance(values["step_epochs"], list) else "step"
        if values.get("lr_policy", policy) != policy:
            found.append(f"step_epochs: no effect with lr_policy: {values['lr_policy']}; remove one, or use lr_policy: {policy}")
    return found


def _epochs(values: dict[str, Any]) -> int | float | None:
    """The number of epochs, if it is known without the dataset."""
    epochs = values.get("epochs", None if "max_iter" in values else DEFAULT_EPOCHS)
    return epochs if isinstance(epochs, int | float) else None


def _of_policy(values: dict[str, Any]) -> list[str]:
    """Errors in the learning-rate schedule: fields that its policy lacks, and steps without effect."""
    policy, found = values.get("lr_policy"), []
    if "step_epochs" in values:
        return []  # which determines all of it
    for name in ("gamma", "power", "stepsize", "stepvalue"):
        if name in values and policy is None:
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
    """The kind of value that a field takes, for messages."""
    if field.message_type:
        return "for a config to set"
    if field.cpp_type == field.CPPTYPE_BOOL:
        return "true or false"
    kinds = {field.CPPTYPE_FLOAT: "number", field.CPPTYPE_DOUBLE: "number", field.CPPTYPE_STRING: "text"}
    kind = kinds.get(field.cpp_type, "whole number")
    return f"a list, each a {kind}" if field.is_repeated else f"a {kind}"

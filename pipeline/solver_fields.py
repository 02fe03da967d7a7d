"""Fields of Caffe's SolverParameter from plain values, and what is wrong with those that do not fit."""

from __future__ import annotations

import itertools

import caffe
from caffe.proto import caffe_pb2
from pipeline.errors import InputError

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


def assign(param: caffe_pb2.SolverParameter, name: str, value) -> None:
    """Set one field; a list for a repeated one, a name for an enum. Raises InputError whose place is the field's name."""
    if name not in FIELDS:
        raise InputError(name, "no field of Caffe's SolverParameter", do=caffe.nearest(name, FIELDS))
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
        raise InputError(name, f"{value!r} is not {_kind(field)}", do=_number_hint(value)) from None


def problems(values: dict) -> list[str]:
    """What is wrong with the fields that a config gives, a line each, such as `base_lr: 'fast' is not a number`."""
    found = _of_epochs(values)
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


def _of_epochs(values: dict) -> list[str]:
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
        elif isinstance(epochs := values.get("epochs"), int | float) and name == "step_epochs" and steps[-1] >= epochs:
            found.append(f"{name}: {steps[-1]} has no effect, for training ends after {epochs} epochs")
        found += [f"{name}: {field} says it too; remove one of them" for field in fields if field in values]
    if "step_epochs" in values:
        wanted = "multistep" if isinstance(values["step_epochs"], list) else "step"
        if values.get("lr_policy", wanted) != wanted:
            found.append(f"step_epochs: no effect with lr_policy: {values['lr_policy']}; remove one, or use lr_policy: {wanted}")
    return found


def _number_hint(value) -> str:
    """YAML takes 1e-3 for a text."""
    try:
        return f"write {float(value)!r}" if isinstance(value, str) else ""
    except ValueError:
        return ""


def _kind(field) -> str:
    """What a field takes, in words."""
    if field.message_type:
        return "for a config to set"
    numbers = {field.CPPTYPE_FLOAT: "number", field.CPPTYPE_DOUBLE: "number", field.CPPTYPE_STRING: "text"}
    kind = "true or false" if field.cpp_type == field.CPPTYPE_BOOL else numbers.get(field.cpp_type, "whole number")
    if field.is_repeated:
        return f"a list, each a {kind}"
    return kind if kind.startswith("true") else f"a {kind}"

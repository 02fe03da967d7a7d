"""Check a config against its schema and its own cross-references, and fill in the defaults; all errors at once."""

from __future__ import annotations

import copy
from pathlib import Path

import jsonschema
import yaml

import caffe
from pipeline.errors import InputError
from pipeline.models import TEMPLATES


def checked(config: dict, path: str, schema_file: Path) -> dict:
    """The config with defaults filled in; raises one InputError that lists every problem, a line each.

    path         the config file, as the errors name it
    schema_file  a JSON schema, as YAML
    """
    schema = yaml.safe_load(schema_file.read_text())
    validator = jsonschema.Draft202012Validator(schema)
    problems = [problem for error in validator.iter_errors(config) for problem in _explained(error)]
    if not problems:
        config = _with_defaults(config, schema)
        problems = _cross_checked(config)
    if problems:
        raise InputError("", "\n".join(f"{path}: {problem}" for problem in problems))
    return config


def _explained(error: jsonschema.ValidationError) -> list[str]:
    """One line for each thing that a schema error says: the key, the value, what is allowed."""
    key = ".".join(map(str, error.absolute_path))
    value, allowed = error.instance, error.validator_value
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = [name for name in value if name not in known]
        prefix = f"{key}." if key else ""
        return [
            f"{prefix}{name}: unknown key; " + (caffe.nearest(name, known) or f"the known ones are {', '.join(known)}")
            for name in unknown
        ]
    if error.validator == "required":
        missing = [name for name in allowed if name not in value]
        return [f"{key}: {name} is missing" if key else f"{name} is missing" for name in missing]
    if error.validator == "enum":
        hint = caffe.nearest(str(value), map(str, allowed))
        return [f"{key}: {value!r} is not one of {', '.join(map(str, allowed))}" + (f"; {hint}" if hint else "")]
    if error.validator == "type":
        return [f"{key}: {value!r} is not {_article(allowed)}"]
    limits = {
        name: error.schema[name]
        for name in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
        if name in error.schema
    }
    if error.validator in limits:
        low = limits.get("minimum", limits.get("exclusiveMinimum"))
        high = limits.get("maximum", limits.get("exclusiveMaximum"))
        return [
            f"{key}: {value!r} is not between {low:g} and {high:g}"
            if high is not None
            else f"{key}: {value!r} is less than {low:g}"
        ]
    if error.validator == "pattern":
        return [f"{key}: {value!r} is no name; letters, digits, _ and - are allowed"]
    if error.validator == "propertyNames":
        return [f"{key}: {error.instance!r} is no name; letters, digits, _ and - are allowed"]
    return [f"{key}: {error.message}"]


def _article(kind: str | list[str]) -> str:
    names = {"object": "a mapping", "array": "a list", "string": "a text", "integer": "a whole number", "number": "a number"}
    return " or ".join(names.get(name, name) for name in ([kind] if isinstance(kind, str) else kind))


def _with_defaults(config: dict, schema: dict) -> dict:
    config = copy.deepcopy(config)
    _fill(config, schema, schema)
    return config


def _fill(value: dict, schema: dict, root: dict) -> None:
    """Add what is missing and has a default, at every depth; references are followed."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    for name, part in schema.get("properties", {}).items():
        if name not in value and "default" in part:
            value[name] = copy.deepcopy(part["default"])
        if isinstance(value.get(name), dict):
            _fill(value[name], part, root)
    rest = schema.get("additionalProperties")
    if isinstance(rest, dict):
        for inner in value.values():
            _fill(inner, rest, root)


def _cross_checked(config: dict) -> list[str]:
    """What the schema cannot say: names that refer to one another, and what a template is for."""
    datasets, experiments = config["datasets"], config["experiments"]
    problems = []
    for name, dataset in datasets.items():
        split = dataset["split"]
        if split["by"] == "column" and "val" in split:
            problems.append(
                f"datasets.{name}.split.val: {split['val']} has no effect with by: column; remove it, or use by: fraction"
            )
    for name, experiment in experiments.items():
        key = f"experiments.{name}"
        problems += _known(f"{key}.dataset", experiment["dataset"], datasets)
        problems += _known(f"{key}.model", experiment["model"], TEMPLATES)
        source = experiment["weights"].get("experiment")
        if source:
            problems += _known(f"{key}.weights.experiment", source, experiments)
            chain = [name]
            while source in experiments and source not in chain:
                chain.append(source)
                source = experiments[source].get("weights", {}).get("experiment")
            if source in chain:
                problems.append(f"{key}.weights.experiment: {' → '.join([*chain, source])} goes in a circle")
    return problems


def _known(key: str, name: str, known: dict) -> list[str]:
    if name in known:
        return []
    hint = caffe.nearest(name, known)
    return [f"{key}: {name!r} is not one of {', '.join(known)}" + (f"; {hint}" if hint else "")]

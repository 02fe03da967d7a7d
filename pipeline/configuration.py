"""Check a config against its schema and its own cross-references, and fill in the defaults; all errors at once."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

import jsonschema
import yaml

import caffe
from pipeline import solver_fields
from pipeline.errors import InputError
from pipeline.models import TEMPLATES

SOURCE_FLAGS = ("list", "folder", "root", "val_labels", "sample", "seed")
"""Keys of a source that the shards step takes as flags."""
DOWNLOAD_FLAGS = (
    *("allow_file", "allow_private", "ignore_opt_out", "min_yield", "concurrency", "per_host", "timeout", "total_timeout"),
    *("max_bytes", "max_pixels", "max_redirects", "retries"),
)
"""Keys of a source that the download step takes as flags."""


def checked(config: dict, path: str, schema_file: Path) -> dict:
    """The config with defaults filled in; raises one InputError that lists every problem, a line each.

    path         the config file, as the errors name it
    schema_file  a JSON schema, as YAML
    """
    schema = yaml.safe_load(schema_file.read_text())
    validator = jsonschema.Draft202012Validator(schema)
    problems = [problem for error in validator.iter_errors(config) for problem in _explained(error)]
    config = _with_defaults(config, schema)
    problems += _cross_checked(config)
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
            if isinstance(inner, dict):
                _fill(inner, rest, root)


def last_layer(experiment: dict) -> str:
    """The name of an experiment's classifier: its template's, or with the dataset's name behind it where it is renamed."""
    last = TEMPLATES[experiment["model"]].last
    return f"{last}_{experiment['dataset']}" if experiment["rename_last"] else last


def _cross_checked(config: dict) -> list[str]:
    """What the schema cannot say: names that refer to one another, and what a template and Caffe's solver have.

    What is of another kind than the schema wants has been found there, and is passed over here.
    """
    datasets, experiments = (_mappings(config.get(kind)) for kind in ("datasets", "experiments"))
    problems = []
    for name, dataset in datasets.items():
        if isinstance(dataset.get("source"), dict):
            problems += [f"datasets.{name}.source: {problem}" for problem in _of_source(dataset["source"])]
        split = _mapping(dataset.get("split"))
        if split.get("by") == "column" and "val" in split:
            value = split["val"]
            problems.append(f"datasets.{name}.split.val: {value} has no effect with by: column; remove it, or use by: fraction")
    for name, experiment in experiments.items():
        problems += [f"experiments.{name}.{problem}" for problem in _of_experiment(experiment, datasets)]
        problems += [f"experiments.{name}.weights.experiment: {problem}" for problem in _origin(name, experiments)]
    return problems


def _of_source(source: dict) -> list[str]:
    """What is wrong with where a dataset's images come from."""
    kinds = [kind for kind in ("list", "folder", "published") if kind in source]
    problems = [] if len(kinds) == 1 else [f"{' and '.join(kinds) or 'none'} given; it has one of list, folder and published"]
    for key, kind in (("copy", "published"), ("root", "list"), ("val_labels", "folder")):
        if key in source and kinds and kind not in kinds:
            problems.append(f"{key} has no effect without {kind}")
    return problems


def _of_experiment(experiment: dict, datasets: dict) -> list[str]:
    """What is wrong with one experiment by itself."""
    dataset, model = experiment.get("dataset"), experiment.get("model")
    problems = [f"solver.{problem}" for problem in solver_fields.problems(_mapping(experiment.get("solver")))]
    if isinstance(dataset, str):
        problems += [f"dataset: {problem}" for problem in _unknown(dataset, datasets)]
    if isinstance(model, str):
        problems += [f"model: {problem}" for problem in _unknown(model, TEMPLATES)]
    if isinstance(dataset, str) and isinstance(model, str) and model in TEMPLATES and isinstance(experiment["features"], list):
        blobs = TEMPLATES[model].blobs(last_layer(experiment))
        wanted = [blob for blob in experiment["features"] if isinstance(blob, str)]
        problems += [f"features: {problem}" for blob in wanted for problem in _unknown(blob, blobs)]
    return problems


def _origin(name: str, experiments: dict) -> list[str]:
    """What is wrong with the experiment that another takes its weights from."""
    chain, source = [name], _source(experiments[name])
    if source is None:
        return []
    if source not in experiments:
        return _unknown(source, experiments)
    while source in experiments and source not in chain:
        chain.append(source)
        source = _source(experiments[source])
    return [f"{' → '.join([*chain, source])} goes in a circle"] if source == name else []


def _source(experiment: dict) -> str | None:
    source = _mapping(experiment.get("weights")).get("experiment")
    return source if isinstance(source, str) else None


def _mapping(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _mappings(value: object) -> dict[str, dict]:
    """{name: mapping}, with an empty mapping for what is none."""
    return {name: _mapping(inner) for name, inner in _mapping(value).items()}


def _unknown(name: str, known: Iterable[str]) -> list[str]:
    """What is wrong with a name that is none of the known ones."""
    if name in known:
        return []
    names = [str(one) for one in known]
    hint = caffe.nearest(name, names)
    return [f"{name!r} is not one of {', '.join(names)}" + (f"; {hint}" if hint else "")]

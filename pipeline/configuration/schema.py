"""What a schema finds in a config, in a line each, and the defaults that it has."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import yaml

import caffe
from pipeline.nets import solver_fields

LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Bytes that file systems and Linux have for the name of a file, and for a path."""
NO_NAME = " is no name; letters, digits, _ and - are allowed, - not at its beginning"


def problems(config: dict, schema: dict) -> list[str]:
    """What is wrong with each key by itself: the key, the value, what is allowed."""
    validator = jsonschema.Draft202012Validator(schema)
    return [problem for error in validator.iter_errors(config) for problem in _explained(error)]


def with_defaults(config: dict, schema: dict) -> dict:
    """A copy of a config in which nothing is missing that has a default."""
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


def repeated(path: Path) -> Iterator[str]:
    """Keys that a file has twice in one mapping, of which YAML takes the last one."""

    def within(node: yaml.Node, key: str) -> Iterator[str]:
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for name, value in node.value:
                inner = f"{key}.{name.value}" if key else str(name.value)
                if inner in seen:
                    yield f"{inner}: given again in line {name.start_mark.line + 1}; rename one of them, or remove it"
                seen.add(inner)
                yield from within(value, inner)

    if path.is_file():
        yield from within(yaml.compose(path.read_text(encoding="utf-8"), yaml.CSafeLoader), "")


def not_finite(config: dict) -> Iterator[str]:
    """Values that are no numbers, though YAML takes them for some."""
    for key, value in _leaves(config):
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{key}: {value} is no number to reckon with"


def too_long(config: dict) -> Iterator[str]:
    """Paths that no file system has, as they have a part of more than 255 bytes (umlauts have two), or more than 4095 in all."""
    for key, value in _leaves(config):
        if isinstance(value, str) and "://" not in value:
            longest = max(len(part.encode(errors="surrogateescape")) for part in value.split("/"))
            if longest > LONGEST_NAME or len(value.encode(errors="surrogateescape")) > LONGEST_PATH:
                limits = f"names of files have at most {LONGEST_NAME} bytes, paths {LONGEST_PATH}"
                yield f"{key}: {value[:40]!r}… is too long: {limits}"


def _leaves(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """(key, value) of each value of a config that is neither a mapping nor a list."""
    if not isinstance(value, dict | list):
        yield key, value
        return
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(inner, f"{key}.{name}" if key else str(name))


def _explained(error: jsonschema.ValidationError) -> list[str]:
    """One line for each thing that a schema error says: the key, the value, what is allowed."""
    key = ".".join(map(str, error.absolute_path))
    value, allowed = error.instance, error.validator_value
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = [name for name in value if name not in known]
        prefix = f"{key}." if key else ""
        return [
            f"{prefix}{name}: unknown key; " + (caffe.nearest(str(name), known) or f"the known ones are {', '.join(known)}")
            for name in unknown
        ]
    if error.validator == "required":
        missing = [name for name in allowed if name not in value]
        return [f"{key}: {name} is missing" if key else f"{name} is missing" for name in missing]
    if error.validator == "enum":
        hint = caffe.nearest(str(value), map(str, allowed))
        return [f"{key}: {value!r} is not one of {', '.join(map(str, allowed))}" + (f"; {hint}" if hint else "")]
    if error.validator == "maxLength":
        return [f"{key}: the name {value[:40]!r}… has {len(value)} characters; files are named after it, so at most {allowed}"]
    if error.validator == "type" and "propertyNames" in error.schema_path:
        return [f"{key}: the name {value!r} is no text; put it into quotation marks"]
    if error.validator == "type":
        hint = solver_fields.number_hint(value) if allowed in ("number", "integer") else ""
        return [f"{key}: {value!r} is not {_article(allowed)}" + (f"; {hint}" if hint else "")]
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
        is_path = "description" in error.schema
        return [f"{key}: {value!r}{': ' + error.schema['description'] if is_path else NO_NAME}"]
    if error.validator == "propertyNames":
        return [f"{key}: {error.instance!r}{NO_NAME}"]
    return [f"{key}: {error.message}"]


def _article(kind: str | list[str]) -> str:
    names = {"object": "a mapping", "array": "a list", "string": "a text", "integer": "a whole number", "number": "a number"}
    names["boolean"] = "true or false"
    return " or ".join(names.get(name, name) for name in ([kind] if isinstance(kind, str) else kind))

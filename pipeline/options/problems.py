"""Mistakes in options, one line each: the key, the value, what is allowed, the nearest name."""

import math
from typing import Any

import jsonschema
import yaml

import caffe
from pipeline.options.base import PATH

NO_NAME = " is no name; letters, digits, _ and - are allowed, - not at its beginning"
NO_PATH = ': a path has {}no control characters, and no "-" at its beginning, as options have; rename it'


def problems(values: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """What is wrong with each key by itself: the key, the value, what is allowed."""
    validator = jsonschema.Draft202012Validator(schema)
    return [problem for error in validator.iter_errors(values) for problem in _explained(error)]


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
        hint = number_hint(value) if allowed in ("number", "integer") else ""
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
        if "propertyNames" in error.schema_path:
            return [f"{key}: {value!r}{NO_NAME}"]
        return [f"{key}: {value!r}{NO_PATH.format('no braces, ' if allowed == PATH else '')}"]
    if error.validator == "propertyNames":
        return [f"{key}: {error.instance!r}{NO_NAME}"]
    return [f"{key}: {error.message}"]


def _article(kind: str | list[str]) -> str:
    names = {"object": "a mapping", "array": "a list", "string": "a text", "integer": "a whole number", "number": "a number"}
    names["boolean"] = "true or false"
    return " or ".join(names.get(name, name) for name in ([kind] if isinstance(kind, str) else kind))


def number_hint(value: object) -> str:
    """YAML takes 1e-3 for a text, as it has no point."""
    try:
        number = float(value) if isinstance(value, str) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        return ""
    return f"write {yaml.safe_dump(int(number) if number.is_integer() else number).split()[0]}"

"""Mistakes in options, one line each: the key, the value, what is allowed, the most similar name."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import caffe
from pipeline.options.base import PATH

if TYPE_CHECKING:
    import jsonschema

KINDS = {
    "object": "a mapping",
    "array": "a list",
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}
"""Types of a JSON schema, as messages name them."""
NO_NAME = " is not a valid name; letters, digits, _ and - are allowed, - not at its beginning"
NO_PATH = ': a path has {}no control characters, and no "-" at its beginning, as options have; rename it'


def problems(values: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """One line for each value that violates the schema: the key, the value, what is allowed."""
    import jsonschema  # slow to import, and steps with right options need it not

    validator = jsonschema.Draft202012Validator(schema)
    return [problem for error in validator.iter_errors(values) for problem in _explained(error)]


def _explained(error: jsonschema.ValidationError) -> list[str]:
    """The lines of one schema error."""
    key = ".".join(map(str, error.absolute_path))
    value, allowed = error.instance, error.validator_value
    if error.validator == "additionalProperties":
        known, prefix = error.schema.get("properties", {}), f"{key}." if key else ""
        return [
            f"{prefix}{name}: unknown key; " + (caffe.nearest(str(name), known) or f"the known ones are {', '.join(known)}")
            for name in value
            if name not in known
        ]
    if error.validator == "required":
        return [f"{key}: {name} is missing" if key else f"{name} is missing" for name in allowed if name not in value]
    if error.validator == "enum":
        hint = caffe.nearest(str(value), map(str, allowed))
        return [f"{key}: {value!r} is not one of {', '.join(map(str, allowed))}" + (f"; {hint}" if hint else "")]
    if error.validator == "maxLength":
        return [f"{key}: the name {value[:40]!r}… has {len(value)} characters; files are named after it, so at most {allowed}"]
    if error.validator == "type" and "propertyNames" in error.schema_path:
        return [f"{key}: the name {value!r} is not a text; put it into quotation marks"]
    if error.validator == "type":
        hint = number_hint(value) if allowed in ("number", "integer") else ""
        kinds = " or ".join(KINDS[kind] for kind in ([allowed] if isinstance(allowed, str) else allowed))
        return [f"{key}: {value!r} is not {kinds}" + (f"; {hint}" if hint else "")]
    if error.validator in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
        low, high = (error.schema.get(name, error.schema.get(f"exclusive{name.title()}")) for name in ("minimum", "maximum"))
        return [f"{key}: {value!r} is " + (f"less than {low:g}" if high is None else f"not between {low:g} and {high:g}")]
    if error.validator == "pattern":
        if "propertyNames" in error.schema_path:
            return [f"{key}: {value!r}{NO_NAME}"]
        return [f"{key}: {value!r}{NO_PATH.format('no braces, ' if allowed == PATH else '')}"]
    return [f"{key}: {error.message}"]


def number_hint(value: object) -> str:
    """How to write a number that YAML reads as a text, such as 1e-3, which has no point; "" for anything else."""
    try:
        number = float(value) if isinstance(value, str) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        return ""
    import yaml

    return f"write {yaml.safe_dump(int(number) if number.is_integer() else number).split()[0]}"

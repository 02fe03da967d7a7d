"""Base class of all models of options, and the JSON schema of a model."""

import copy
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema
from pydantic.json_schema import GenerateJsonSchema

PATH = "^[^-{}\\x00-\\x1f\\x7f][^{}\\x00-\\x1f\\x7f]*$"
"""Paths in a config: Snakemake takes what is in braces for a wildcard, and commands a leading dash for an option."""
FilePath = Annotated[
    Path,
    BeforeValidator(lambda value: Path(value) if isinstance(value, str) else value),
    WithJsonSchema({"type": "string", "pattern": PATH}),
]
PathText = Annotated[str, WithJsonSchema({"type": "string", "pattern": PATH})]


class Options(BaseModel):
    """Options of a step, or a part of them, described by their docstrings. Fields that are None are left to the step."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, defer_build=True)


Numerics = Literal["reproducible", "fp32", "fast"]


class Device(Options):
    """Where and how a net is computed."""

    gpu: bool = False
    numerics: Numerics = "fp32"


class _Schema(GenerateJsonSchema):
    """A key that may be left out is not null; the default of a mapping is an empty one, which is filled in key by key."""

    def nullable_schema(self, schema: Any) -> dict[str, Any]:
        return self.generate_inner(schema["schema"])

    def encode_default(self, dft: Any) -> Any:
        return {} if isinstance(dft, Options) else super().encode_default(dft)


def schema_of(model: type[Options]) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a model."""
    schema: dict[str, Any] = _pruned(model.model_json_schema(schema_generator=_Schema))
    return schema


def resolved(part: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """A part of a schema with its reference replaced by the definition; keys beside the reference override it."""
    return root["$defs"][part["$ref"].rsplit("/", 1)[1]] | part if "$ref" in part else part


def _pruned(value: Any) -> Any:
    """A schema without titles, null defaults and types of enumerations, which would report one mistake twice."""
    if not isinstance(value, dict):
        return [_pruned(item) for item in value] if isinstance(value, list) else value
    left_out = {"title"} | ({"type"} if "enum" in value else set()) | ({"default"} if value.get("default", 0) is None else set())
    text = {"description": " ".join(value["description"].split())} if isinstance(value.get("description"), str) else {}
    return {key: _pruned(inner) for key, inner in value.items() if key not in left_out} | text


def with_defaults(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None) -> Any:
    """A copy of a value of a config in which each missing key has its default from the schema, at every depth.

    root  the schema with the definitions, if `schema` is a part of it
    """
    if not isinstance(value, dict):
        return copy.deepcopy(value)
    root = root or schema
    schema = resolved(schema, root)
    parts, rest = schema.get("properties", {}), schema.get("additionalProperties")
    missing = {name: part["default"] for name, part in parts.items() if "default" in part and name not in value}
    other = rest if isinstance(rest, dict) else {}
    return {name: with_defaults(inner, parts.get(name, other), root) for name, inner in (value | missing).items()}

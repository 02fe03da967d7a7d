"""Options of a step on its command line: a flag for each field of the step's model, or `--options JSON`, as rules give them."""

from __future__ import annotations

import argparse
import enum
import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipeline.errors import InputError
from pipeline.options.base import Options, schema_of

Model = TypeVar("Model", bound=Options)


def add_flags(parser: argparse.ArgumentParser, model: type[Options]) -> None:
    """Add `--options` and a flag for each field of a model: those of nested models, too, unless they are one flag."""
    parser.add_argument(
        "--options", type=_json("--options"), action="append", default=[], metavar="JSON", help="options as one JSON object"
    )
    for path, field in _fields(model):
        kind, several = _kind(field.annotation), {}
        if get_origin(kind) is list:
            kind, several = _kind(get_args(kind)[0]), {"nargs": "+", "action": "extend"}
        default = "" if field.is_required() or field.default in (None, False, "", []) else f" (default: {_text(field.default)})"
        help = " ".join(f"{field.description or ''}{default}".split()).replace("%", "%%")
        name, common = flag(path), {"dest": path, "default": argparse.SUPPRESS, "help": help}
        if kind is bool:
            parser.add_argument(name, action="store_true", **common)
        elif choices := _choices(kind):
            parser.add_argument(name, choices=choices, **several, **common)
        elif kind in (int, float):
            parser.add_argument(name, type=kind, metavar=kind.__name__.upper(), **several, **common)
        else:
            is_json = get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, Options))
            metavar = "JSON" if is_json else path.rsplit(".", 1)[-1].upper()
            parser.add_argument(name, type=_json(name) if is_json else str, metavar=metavar, **several, **common)


def read_flags(arguments: argparse.Namespace, model: type[Model]) -> Model:
    """The options that a command line gives; a flag overrides `--options`.

    Raises InputError with a line for each mistake.
    """
    values: dict[str, Any] = {}
    for given in arguments.options:
        _merge(values, given)
    for path in (path for path, _ in _fields(model) if hasattr(arguments, path)):
        inner = getattr(arguments, path)
        for word in reversed(path.split(".")):
            inner = {word: inner}
        _merge(values, inner)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        from pipeline.options.problems import problems  # its libraries are slow to load, and most command lines are right

        found = problems(values, schema_of(model)) or [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise InputError("", "\n".join(_with_flag(line, model) for line in found)) from None


def flag(path: str) -> str:
    """The flag of the field at a path, such as --resize-mode: its last name."""
    return f"--{path.rsplit('.', 1)[-1].replace('_', '-')}"


def _json(name: str) -> Callable[[str], dict[str, Any]]:
    """A function that reads the JSON object of a flag; it raises InputError for anything else."""

    def read(text: str) -> dict[str, Any]:
        try:
            values = json.loads(text)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise InputError(name, text, "a JSON object is wanted", """as in '{"KEY": VALUE}'""")
        return values

    return read


def _fields(model: type[Options], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Path and field of each flag, such as size.height."""
    for name, field in model.model_fields.items():
        path, kind = prefix + (field.alias or name), _kind(field.annotation)
        if isinstance(kind, type) and issubclass(kind, Options) and not kind.one_flag:
            yield from _fields(kind, f"{path}.")
        else:
            yield path, field


def _kind(annotation: Any) -> Any:
    """A type without None and without annotations: int for int | None."""
    while True:
        inner = [kind for kind in get_args(annotation) if kind is not type(None)]
        if hasattr(annotation, "__metadata__") or type(None) in get_args(annotation):
            annotation = inner[0]
        else:
            return annotation


def _choices(kind: Any) -> list[str]:
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return [member.value for member in kind]
    return list(get_args(kind)) if str(get_origin(kind)) == "typing.Literal" else []


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _merge(values: dict[str, Any], others: dict[str, Any]) -> None:
    """Put the others into the values, at every depth."""
    for key, value in others.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value


def _with_flag(line: str, model: type[Options]) -> str:
    """A problem's line that names the flag in the place of the key."""
    if line.endswith(" is missing") and ":" not in line:
        return f"--{line.replace('_', '-')}"
    key, _, rest = line.partition(": ")
    path = next((path for path, _ in _fields(model) if key == path or key.startswith(f"{path}.")), None)
    if path is None:
        return line
    return ": ".join([flag(path) + key.removeprefix(path), rest])

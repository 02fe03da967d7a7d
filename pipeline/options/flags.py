"""Options of a step on its command line: a flag for each field of the step's model, or `--options JSON`, as rules give them."""

import argparse
import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.errors import InputError
from pipeline.options.base import Options, resolved, schema_of

Model = TypeVar("Model", bound=Options)


def add_flags(parser: argparse.ArgumentParser, model: type[Options]) -> None:
    """Add `--options`, and a flag for each field of a model and of its nested models; an optional nested model is one flag."""
    name = "--options"
    parser.add_argument(name, type=_json(name), action="append", default=[], metavar="JSON", help="options as one JSON object")
    for path, part in leaves(schema_of(model)):
        name, item, default = flag(path), part.get("items", part), part.get("default")
        shown = " ".join(default) if isinstance(default, list) else default
        text = part.get("description", "") + (f" (default: {shown})" if shown or (shown == 0 and default is not False) else "")
        how: dict[str, Any] = {"dest": path, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
        if item.get("type") == "boolean":
            parser.add_argument(name, action="store_true", **how)
            continue
        kinds = {"integer": (int, "N"), "number": (float, "X"), "object": (_json(name), "JSON")}
        how["type"], metavar = kinds.get(item.get("type", ""), (str, name.removeprefix("--").upper()))
        how |= {"choices": item["enum"]} if "enum" in item else {"metavar": metavar}
        how |= {"nargs": "+", "action": "extend"} if "items" in part else {}
        parser.add_argument(name, **how)


def read_flags(arguments: argparse.Namespace, model: type[Model]) -> Model:
    """The options that a command line gives; a flag overrides `--options`.

    Raises InputError with a line for each mistake.
    """
    values: dict[str, Any] = {}
    for given in arguments.options:
        _merge(values, given)
    schema = schema_of(model)
    for path in (path for path, _ in leaves(schema) if hasattr(arguments, path)):
        inner = getattr(arguments, path)
        for word in reversed(path.split(".")):
            inner = {word: inner}
        _merge(values, inner)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        from pipeline.options.problems import problems  # its libraries are slow to load, and most command lines are right

        found = problems(values, schema) or [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise InputError("", "\n".join(_with_flag(line, schema) for line in found)) from None


def flag(path: str) -> str:
    """The flag of the field at a path: its last name, as in --resize-mode."""
    return f"--{path.rsplit('.', 1)[-1].replace('_', '-')}"


def leaves(part: dict[str, Any], root: dict[str, Any] | None = None, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Path, such as size.height, and schema of each field that has a flag.

    root  the schema with the definitions, if `part` is nested in it
    """
    for name, inner in part["properties"].items():
        inner = resolved(inner, root or part)
        is_model = inner.get("additionalProperties") is False
        if is_model and ("default" in inner or name in part.get("required", [])):
            yield from leaves(inner, root or part, f"{prefix}{name}.")
        else:
            yield prefix + name, inner


def _json(name: str) -> Callable[[str], dict[str, Any]]:
    """The parser of a flag whose value is a JSON object; it raises InputError for anything else."""

    def read(text: str) -> dict[str, Any]:
        try:
            values = json.loads(text)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise InputError(name, text, "it takes a JSON object", """as in '{"KEY": VALUE}'""")
        return values

    return read


def _merge(values: dict[str, Any], others: dict[str, Any]) -> None:
    """Update a mapping and the mappings in it, at every depth."""
    for key, value in others.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value


def _with_flag(line: str, schema: dict[str, Any]) -> str:
    """A problem's line with the flag in place of the key."""
    if line.endswith(" is missing") and ":" not in line:
        return f"--{line.replace('_', '-')}"
    key, _, rest = line.partition(": ")
    path = next((path for path, _ in leaves(schema) if key == path or key.startswith(f"{path}.")), None)
    return line if path is None else f"{flag(path)}{key.removeprefix(path)}: {rest}"

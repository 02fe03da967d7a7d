"""Read the param_str of the built-in versions of known Python layers: settings by name, or numbers in a fixed order."""

import ast
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

from caffe.engine.layer import Layer
from caffe.errors import nearest


class Check(NamedTuple):
    """What a setting must be: in words, and as a function."""

    expected: str
    holds: Callable[[Any], bool]


class Setting(NamedTuple):
    """A setting of a layer: what it must be, and its default; None if it must be given."""

    check: Check
    default: Any = None


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any, least: float, most: float = float("inf")) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def _are_numbers(value: Any, count: int | None, least: float) -> bool:
    right = isinstance(value, (list, tuple)) and len(value) == (count or max(1, len(value)))
    return right and all(_is_number(each, least) for each in value)


_LEAST, _ENDLESS = 1e-9, float("inf")
COUNT = Check("an integer of at least 1", lambda value: _is_whole(value, 1))
COUNT_OR_ALL = Check("an integer of at least 1, or -1 for all", lambda value: _is_whole(value, 1) or value == -1)
WHOLE = Check("an integer of at least 0", lambda value: _is_whole(value, 0))
NUMBER = Check("a number", lambda value: _is_number(value, -_ENDLESS))
NOT_NEGATIVE = Check("a number of at least 0", lambda value: _is_number(value, 0))
FRACTION = Check("a number from 0 to 1", lambda value: _is_number(value, 0, 1))
WEIGHT = Check(
    "a number between 0 and 1, or below 0 for equal weights",
    lambda value: _is_number(value, -_ENDLESS, 1) and value not in (0, 1),
)
SWITCH = Check("True or False", lambda value: isinstance(value, bool))
SIZES = Check("a list of numbers larger than 0", lambda value: _are_numbers(value, None, _LEAST))
FRACTIONS = Check(
    "a list of numbers from 0 to 1", lambda value: _are_numbers(value, None, 0) and all(each <= 1 for each in value)
)
FOUR = Check("a list of 4 numbers", lambda value: _are_numbers(value, 4, -_ENDLESS))
FOUR_POSITIVE = Check("a list of 4 numbers larger than 0", lambda value: _are_numbers(value, 4, _LEAST))


def settings(layer: Layer, known: Mapping[str, Setting]) -> SimpleNamespace:
    """The settings of a layer as attributes: those in its param_str, and the defaults of the others.

    A param_str is a Python dictionary, with or without its braces, or YAML: `'feat_stride': 16`.
    Raises LayerError if it is neither, if a name is unknown or missing, or if a value is not what the setting must be.
    """
    text = layer.param.python_param.param_str
    given = parsed(text)
    example = ", ".join(f"'{name}': …" for name, setting in known.items() if setting.default is None)
    if not isinstance(given, dict):
        raise layer.error(f"param_str {text!r}", f'it must have settings by name: "{example or next(iter(known))}"')
    for name, value in given.items():
        if name not in known:
            do = nearest(str(name), known)
            raise layer.error(f"param_str with the setting {name!r}", f"the built-in layer has {', '.join(known)}", do)
        if not known[name].check.holds(value):
            raise layer.error(f"param_str with {name} {value!r}", f"it must be {known[name].check.expected}")
    for name, setting in known.items():
        if setting.default is None and name not in given:
            raise layer.error(f"param_str {text!r} without {name}", f"it must have {name}, {setting.check.expected}")
    return SimpleNamespace(**{name: given.get(name, setting.default) for name, setting in known.items()})


def parsed(text: str) -> Any:
    """A param_str as what it says: a dictionary, or what YAML has of it; None if it is neither."""
    if not text.strip():
        return {}
    for form in (text, "{" + text + "}"):
        try:
            if isinstance(value := ast.literal_eval(form.strip()), dict):
                return value
        except (ValueError, SyntaxError, TypeError):
            continue
    import yaml  # for these layers alone, not at each start

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def numbers(layer: Layer, known: Mapping[str, Setting]) -> SimpleNamespace:
    """The settings of a layer whose param_str is their values in the order of `known`, separated by commas: `1248, 352, 16`.

    Those at the end that have a default may be left out. Raises LayerError as `settings`.
    """
    text = layer.param.python_param.param_str
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    required = [name for name, setting in known.items() if setting.default is None]
    if not len(required) <= len(parts) <= len(known):
        raise layer.error(f"param_str {text!r}", f"it must be {', '.join(known)}, separated by commas")
    values = {}
    for (name, setting), part in zip(known.items(), parts, strict=False):
        try:
            values[name] = ast.literal_eval(part)
        except (ValueError, SyntaxError):
            values[name] = None
        if not setting.check.holds(values[name]):
            raise layer.error(f"param_str {text!r} with {name} {part}", f"it must be {setting.check.expected}")
    return SimpleNamespace(**{name: values.get(name, setting.default) for name, setting in known.items()})

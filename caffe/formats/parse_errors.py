"""Explain why a prototxt cannot be parsed: a brace that is not closed, a misspelt or misplaced field, a missing quote."""

import functools
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from google.protobuf import text_format

from caffe.errors import ParseError, nearest
from caffe.formats import forks, upgrade
from caffe.proto import caffe_pb2

_NO_FIELD = re.compile(r'Message type "caffe\.([\w.]+)" has no field named "([^"]+)"')
_NO_VALUE = re.compile(r'Enum type "caffe\.([\w.]+)" has no value named (\S+)\.$')
_NO_STRING = re.compile(r"Expected string but found: '(\w[^']*)'$")
_SPLIT_NAME = re.compile(r"\w+(?:[ \t-]+\w+)+(?=\s*[:{])")
# Comments and strings are tokens, so that no brace inside them counts.
_BRACES = re.compile(
    r"""\#.* | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' | (?P<open>(?:(?P<field>\w+)\s*:?\s*)?[{<]) | (?P<close>[}>])""",
    re.VERBOSE,
)
_SINCE_V1 = {"blobs_lr": "param { lr_mult: … }", "weight_decay": "param { decay_mult: … }"}
"""Fields of the V1 format's `layers`, and what a `layer` has in their place."""


class Opened(NamedTuple):
    """A message whose brace is open.

    indent  how far its line is indented
    blame   the field and line to name if it is not closed: its own, or those of a message inside it, see `_opened`
    """

    field: str
    indent: int
    blame: str


def explain(path: os.PathLike[str] | str, text: str, root: Any, error: text_format.ParseError) -> ParseError:
    """Convert an error of text_format: file and line, the cause, and the nearest name for an unknown one.

    root  descriptor of the message that was read
    """
    line, column = error.GetLine(), error.GetColumn()
    where = f"{path}:{line}" if line else str(path)
    message = re.sub(r"^\d+:\d+ : ", "", str(error))
    lines = text.split("\n")
    opened = _opened(text[: sum(len(before) + 1 for before in lines[: line - 1]) + column - 1])
    left = _opened(text)
    if message == 'Expected "}".' and left:
        return ParseError(where, _not_closed(left), do="add the missing }")
    if message.endswith("got }.") and not opened:
        return ParseError(where, "a } that closes nothing", do="remove it, or the } too many before it")
    if match := _NO_FIELD.search(message):
        owner, field = match.groups()
        return _unknown_field(where, owner, _split_name(lines[line - 1], column, _descriptor(owner)) or field, root, opened, left)
    if match := _NO_VALUE.search(message):
        return _unknown_value(where, match[1], match[2])
    if match := _NO_STRING.search(message):
        value = match[1]
        name = upgrade.v1_type(caffe_pb2.V1LayerParameter.LayerType.Value(value)) if value in upgrade.V1_TYPES else value
        return ParseError(where, f"{value} without quotes", "it must be a string", f'write "{name}"')
    owners = _path(root, opened)
    if line and len(owners) > len(opened) and (name := _split_name(lines[line - 1], column, owners[-1])):
        return _unknown_field(where, _name_of(owners[-1]), name, root, opened, left)
    return ParseError(where, re.sub(r"\s+", " ", message).strip())


def _unknown_field(where: str, owner: str, field: str, root: Any, opened: list[Opened], left: list[Opened]) -> ParseError:
    """Error for a field that a message does not have: misspelt, in two words, of another message or another format."""
    known = [field.name for field in _descriptor(owner).fields]
    found = f'{owner} has no field "{field}"'
    if (joined := re.sub(r"[ \t-]+", "_", field)) in known:
        return ParseError(where, found, do=f'did you mean "{joined}"?')
    # The innermost message that has the field, of those that enclose the one it is in.
    owners = _path(root, opened)[: len(opened)]
    enclosing = next((depth for depth in reversed(range(len(owners))) if field in owners[depth].fields_by_name), None)
    if enclosing is not None:
        inner = opened[enclosing:]
        if left:
            return ParseError(where, f"{_not_closed(inner)}: {found}", do=f"add the missing }} before {field}")
        outer = opened[enclosing - 1].field if enclosing else _name_of(root)
        return ParseError(where, found, f"{outer} has", f"close {inner[0].blame} before it")
    if owner == "LayerParameter" and field in _SINCE_V1:
        return ParseError(where, found, "the V1 format's `layers` has", f"write {_SINCE_V1[field]}")
    if owner == "NetParameter" and field in caffe_pb2.SolverParameter.DESCRIPTOR.fields_by_name:
        return ParseError(where, found, "a solver has", "give the net's prototxt here, not the solver's")
    if owner == "SolverParameter" and field in caffe_pb2.NetParameter.DESCRIPTOR.fields_by_name:
        return ParseError(where, found, "a net has", "give the solver's prototxt here, not the net's")
    if fork := forks.fork_of(owner, field):
        return ParseError(where, found, f"{fork} has", "leave it out if the net does without it")
    if hint := nearest(field, known):
        return ParseError(where, found, do=hint)
    inside = [part.name for part in _descriptor(owner).fields if part.message_type and field in part.message_type.fields_by_name]
    return ParseError(where, found, do=f"it belongs in {' or '.join(inside)}" if inside else f"{owner} has {', '.join(known)}")


def _unknown_value(where: str, owner: str, value: str) -> ParseError:
    """Error for an unknown enum value: misspelt, in quotes, or a current type name in a V1 net of 2014."""
    known = list(_descriptor(owner).values_by_name)
    bare = value.strip("\"'")
    if fork := forks.fork_of(owner, bare):
        return ParseError(where, f"{owner} has no value {value}", f"{fork} has")
    if bare in known:
        hint = f"write {bare} without quotes"
    elif bare in map(upgrade.v1_type, upgrade.V1_TYPES.values()) and owner == "V1LayerParameter.LayerType":
        hint = f'`layers` is the V1 format of 2014; write layer {{ type: "{bare}" }}'
    else:
        hint = nearest(bare, known) or f"there are {', '.join(known)}"
    return ParseError(where, f"{owner} has no value {value}", do=hint)


def _split_name(line: str, column: int, owner: Any) -> str:
    """The words at a column of a line that are a field's name once they are joined, as `max iter` is; "" if they are not."""
    for match in _SPLIT_NAME.finditer(line):
        if match.start() < column <= match.end():
            words = list(re.finditer(r"\w+", match[0]))
            for word in words[:-1]:
                name = match[0][word.start() :]
                if re.sub(r"[ \t-]+", "_", name) in owner.fields_by_name:
                    return name
    return ""


# ---- braces


def _opened(text: str) -> list[Opened]:
    """The messages that are open at the end of a text, outermost first.

    Where a } is indented as the message around the one that it closes, the inner one was probably not meant, and gets the blame.
    """
    opened: list[Opened] = []
    line, counted = 1, 0
    for token in _BRACES.finditer(text):
        if not token["open"] and not token["close"]:
            continue
        line += text.count("\n", counted, token.start())
        counted = token.start()
        before = text[text.rfind("\n", 0, token.start()) + 1 : token.start()]
        indent = len(before.expandtabs()) - len(before.expandtabs().lstrip())
        if token["open"]:
            opened.append(Opened(token["field"] or "", indent, f"{token['field'] or '{'} of line {line}"))
        elif opened:
            closed = opened.pop()
            if not before.strip() and opened and indent == opened[-1].indent < closed.indent:
                opened[-1] = opened[-1]._replace(blame=closed.blame)
    return opened


def _not_closed(opened: Sequence[Opened]) -> str:
    return f"{' and '.join(message.blame for message in opened[:-4:-1])} {'is' if len(opened) == 1 else 'are'} not closed"


def _path(root: Any, opened: Sequence[Opened]) -> list[Any]:
    """Descriptors of the root and of each open message, as far as they are fields of the schema."""
    path = [root]
    for message in opened:
        field = path[-1].fields_by_name.get(message.field)
        if field is None or field.message_type is None:
            break
        path.append(field.message_type)
    return path


def _name_of(descriptor: Any) -> str:
    return str(descriptor.full_name).removeprefix("caffe.")


def _descriptor(name: str) -> Any:
    """The descriptor of a message or enum of the schema, such as `PoolingParameter.PoolMethod`."""
    return functools.reduce(getattr, name.split("."), caffe_pb2).DESCRIPTOR

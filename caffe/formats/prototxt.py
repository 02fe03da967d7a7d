"""Nets and solvers as files: text and binary, of any version, read into today's messages."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from pathlib import Path

from google.protobuf import text_format
from google.protobuf.message import DecodeError, Message

from caffe.errors import FileError, ParseError, nearest
from caffe.formats import upgrade
from caffe.formats.files import written_whole
from caffe.proto import caffe_pb2


def read_net(path: str) -> caffe_pb2.NetParameter:
    """The net in a prototxt, upgraded from older formats where needed; layers as written, not filtered by phase."""
    net = read_text(path, caffe_pb2.NetParameter())
    upgrade.upgrade_net(net, str(path))
    return net


def read_solver(path: str) -> caffe_pb2.SolverParameter:
    """The solver in a prototxt, upgraded from older formats where needed."""
    solver = read_text(path, caffe_pb2.SolverParameter())
    upgrade.upgrade_solver(solver, str(path))
    return solver


def read_weights(path: str) -> caffe_pb2.WeightsParameter:
    """The names and blobs of the layers in a .caffemodel of any version, BVLC Caffe's or a fork's."""
    weights = read_binary(path, caffe_pb2.WeightsParameter(), "a .caffemodel")
    if not weights.layer and not weights.layers:
        raise FileError(path, "no layers", "a .caffemodel holds the layers of a net", "check that this is a weights file")
    return weights


def write_prototxt(path: str, message: Message, comments: Mapping[str, str] | None = None) -> None:
    """Write a message as text.

    comments  {field: what is said of it}, each before the first line of its field
    """
    lines, left = [], dict(comments or {})
    for line in text_of(message).split("\n"):
        comment = left.pop(line.split(":")[0], None)
        lines += [f"# {comment}", line] if comment else [line]
    Path(path).write_text("\n".join(lines))


def write_binary(path: str, message: Message) -> None:
    """Write a message in binary; whole or not at all, even after a power failure."""
    with written_whole(path, sync=True) as part:
        part.write_bytes(message.SerializeToString())


_WHOLE = re.compile(r"^(\s*\w+: -?\d+)\.0$", re.MULTILINE)


def text_of(message: Message) -> str:
    """A message as prototxt, as C++ prints it: whole numbers without a decimal point."""
    return _WHOLE.sub(r"\1", text_format.MessageToString(message))


def read_binary(path: str, message: Message, what: str | None = None) -> Message:
    """Fill `message` from a binary file; `what` it is meant to be, for the error."""
    content = _bytes(path)
    what = what or f"a binary {message.DESCRIPTOR.name}"
    try:
        message.ParseFromString(content)
    except DecodeError as error:
        raise FileError(path, f"not {what} ({len(content)} bytes)", do="the file is damaged, or of another kind") from error
    return message


def read_text(path: str, message: Message) -> Message:
    """Fill `message` from a prototxt; what does not parse is named with its line."""
    try:
        text_format.Parse(_text(path), message)
    except text_format.ParseError as error:
        raise _explained(path, error) from None
    return message


def _text(path: str) -> str:
    """The text of a prototxt: UTF-8, with or without the mark that editors put before it, or any other encoding of ASCII.

    Caffe knows no encodings, so that comments may be written in each; without UTF-8, a character stands for a byte.
    """
    content = _bytes(path)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise FileError(path, "text in UTF-16", "a prototxt is plain text", "save it as UTF-8")
    if b"\0" in content:
        raise FileError(path, "not a text file", "a prototxt is wanted", "a .caffemodel is given as weights")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise FileError(path, "no such file") from None
    except OSError as error:
        raise FileError(path, f"cannot be read ({error.strerror})") from None
    except ValueError as error:  # a name that no file can have
        raise FileError(repr(path), f"cannot be read ({error})") from None


_NO_FIELD = re.compile(r'Message type "caffe\.([\w.]+)" has no field named "([^"]+)"')
_NO_VALUE = re.compile(r'Enum type "caffe\.([\w.]+)" has no value named (\S+)\.$')
_NO_STRING = re.compile(r"Expected string but found: '(\w[^']*)'$")


def _explained(path: str, error: text_format.ParseError) -> ParseError:
    """A text_format error as ours: file and line, and the nearest name where one is unknown."""
    line = error.GetLine()
    where = f"{path}:{line}" if line else str(path)
    message = re.sub(r"^\d+:\d+ : ", "", str(error))
    if found := _NO_FIELD.search(message):
        owner, field = found.groups()
        known = [field.name for field in _described(owner).fields]
        return ParseError(where, f'{owner} has no field "{field}"', do=nearest(field, known) or f"{owner} has {', '.join(known)}")
    if found := _NO_VALUE.search(message):
        return _unknown_value(where, found[1], found[2])
    if found := _NO_STRING.search(message):
        value = found[1]
        today = upgrade.v1_type(caffe_pb2.V1LayerParameter.LayerType.Value(value)) if value in upgrade.V1_TYPES else value
        return ParseError(where, f"{value} without quotes", "a string is wanted", f'write "{today}"')
    return ParseError(where, re.sub(r"\s+", " ", message).strip())


def _unknown_value(where: str, owner: str, value: str) -> ParseError:
    """A value that an enum does not have: misspelt, in quotes, or a type of today in a net of 2014."""
    known = list(_described(owner).values_by_name)
    bare = value.strip("\"'")
    if bare in known:
        hint = f"write {bare} without quotes"
    elif bare in map(upgrade.v1_type, upgrade.V1_TYPES.values()) and owner == "V1LayerParameter.LayerType":
        hint = f'layers is the form of 2014; write layer {{ type: "{bare}" }}'
    else:
        hint = nearest(bare, known) or f"there are {', '.join(known)}"
    return ParseError(where, f"{owner} has no value {value}", do=hint)


def _described(name: str):
    """The descriptor of a message or enum of the schema, such as `PoolingParameter.PoolMethod`."""
    found = caffe_pb2
    for part in name.split("."):
        found = getattr(found, part)
    return found.DESCRIPTOR


# Comments and strings are tokens so that what they hold is none; of strings, only the type of 2013's padding layers matters.
_TOKENS = re.compile(
    r"""\#.* | (?P<padding>\btype\s*:\s*["']padding["']) | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*'
    | (?P<layer>\blayers?\s*:?\s*)?(?P<open>[{<]) | (?P<close>[}>])""",
    re.VERBOSE,
)


def layer_lines(path: str) -> list[int]:
    """Line of each top-level `layer {` or `layers {` of a prototxt, in order; empty where the file cannot be read as text.

    Padding layers are left out, as they are when the net is upgraded.
    """
    try:
        text = _text(path)
    except FileError:
        return []
    lines, depth, line, counted = [], 0, 1, 0
    for token in _TOKENS.finditer(text):
        if token["open"]:
            if depth == 0 and token["layer"]:
                line += text.count("\n", counted, token.start())
                counted = token.start()
                lines.append(line)
            depth += 1
        elif token["close"]:
            depth -= 1
        elif token["padding"] and depth == 2 and lines:
            lines.pop()
    return lines


def layer_places(path: str, net: caffe_pb2.NetParameter) -> list[str]:
    """Where each layer of the net that was read from a prototxt stands, as errors name it: `train.prototxt:17: layer "conv1"`."""
    return placed(path, net, layer_lines(path))


def placed(path: str, net: caffe_pb2.NetParameter, lines: list[int]) -> list[str]:
    """As `layer_places`; of a net that comes from no file, `lines` is empty."""
    # An Input layer made from `input:` fields stands before the file's own layers.
    numbers = dict(enumerate(lines, len(net.layer) - len(lines)))
    lines_of = (f":{numbers[index]}" if index in numbers else "" for index in range(len(net.layer)))
    return [f'{Path(path)}{line}: layer "{layer.name}"' for line, layer in zip(lines_of, net.layer, strict=True)]

"""Read and write prototxt and binary files of nets and solvers; older formats are upgraded."""

import codecs
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from google.protobuf import text_format
from google.protobuf.message import DecodeError, Message

from caffe import events
from caffe.errors import FileError
from caffe.formats import parse_errors, upgrade
from caffe.formats.files import read_bytes, written_whole
from caffe.proto import caffe_pb2

M = TypeVar("M", bound=Message)


def read_net(path: os.PathLike[str] | str) -> caffe_pb2.NetParameter:
    """Read the net in a prototxt, upgraded to the current format; layers are not filtered by phase."""
    net = read_prototxt(path, caffe_pb2.NetParameter())
    upgrade.upgrade_net(net, str(path))
    return net


def read_solver(path: os.PathLike[str] | str) -> caffe_pb2.SolverParameter:
    """Read the solver in a prototxt, upgraded to the current format."""
    solver = _read_text(path, caffe_pb2.SolverParameter(), first_device)
    upgrade.upgrade_solver(solver, str(path))
    return solver


def read_weights(path: os.PathLike[str] | str) -> caffe_pb2.WeightsParameter:
    """Read the names and blobs of the layers in a .caffemodel of any version, BVLC Caffe's or a fork's."""
    weights = read_binary(path, caffe_pb2.WeightsParameter(), "a .caffemodel")
    if not weights.layer and not weights.layers:
        raise FileError(path, "no layers", "a .caffemodel holds the layers of a net", "check that this is a weights file")
    return weights


def write_prototxt(path: os.PathLike[str] | str, message: Message, comments: Mapping[str, str] | None = None) -> None:
    """Write a message as text; `comments`, {field: comment}, are written before the first line of their fields."""
    lines: list[str] = []
    left = dict(comments or {})
    for line in text_of(message).split("\n"):
        comment = left.pop(line.split(":")[0], None)
        lines += [f"# {comment}", line] if comment else [line]
    Path(path).write_text("\n".join(lines))


def write_binary(path: os.PathLike[str] | str, message: Message) -> None:
    """Write a message in binary format, atomically; the file is whole even after a power failure."""
    with written_whole(path, sync=True) as part:
        part.write_bytes(message.SerializeToString())


_WHOLE = re.compile(r"^(\s*\w+: -?\d+)\.0$", re.MULTILINE)


def text_of(message: Message) -> str:
    """Format a message as prototxt like C++: whole numbers without a decimal point."""
    return _WHOLE.sub(r"\1", text_format.MessageToString(message))


def read_binary(path: os.PathLike[str] | str, message: M, what: str | None = None) -> M:
    """Fill `message` from a binary file; `what` names the expected kind of file in errors."""
    content = read_bytes(path)
    what = what or f"a binary {message.DESCRIPTOR.name}"
    try:
        message.ParseFromString(content)
    except DecodeError as error:
        raise FileError(path, f"not {what} ({len(content)} bytes)", do="the file is damaged or of another kind") from error
    return message


_DEVICES = re.compile(r"#.*|\bdevice_id\s*:\s*\[\s*(\d+)[\d\s,]*\]")


def first_device(text: str) -> str:
    """A solver's text with the first of a list of devices, device_id: [0, 1], which yjxiong/caffe trains on; ours are -gpu's."""

    def replaced(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        events.devices_left_out(match[0])
        return f"device_id: {match[1]}" + "\n" * match[0].count("\n")

    return _DEVICES.sub(replaced, text)


def read_prototxt(path: os.PathLike[str] | str, message: M) -> M:
    """Fill `message` from a prototxt. Raises ParseError with the line."""
    return _read_text(path, message, str)


def _read_text(path: os.PathLike[str] | str, message: M, changed: Callable[[str], str]) -> M:
    text = changed(_text(path))
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise parse_errors.explain(path, text, message.DESCRIPTOR, error) from None
    return message


def _text(path: os.PathLike[str] | str) -> str:
    """Read the text of a prototxt: UTF-8, with or without byte order mark, or else Latin-1.

    Caffe ignores encodings, so that comments may be in any superset of ASCII.
    """
    content = read_bytes(path)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise FileError(path, "text in UTF-16", "a prototxt is plain text", "save it as UTF-8")
    if b"\0" in content:
        raise FileError(path, "not a text file", "a prototxt is expected here", "pass a .caffemodel as weights")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


# Comments and strings are tokens, so that nothing inside them matches; of strings, only the type of V0's padding layers matters.
_TOKENS = re.compile(
    r"""\#.* | (?P<padding>\btype\s*:\s*["']padding["']) | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*'
    | (?P<layer>\blayers?\s*:?\s*)?(?P<open>[{<]) | (?P<close>[}>])""",
    re.VERBOSE,
)


def layer_lines(path: os.PathLike[str] | str) -> list[int]:
    """Line of each top-level `layer {` or `layers {` of a prototxt but padding layers, as upgraded; empty if it is not text."""
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


def layer_places(path: os.PathLike[str] | str, net: caffe_pb2.NetParameter) -> list[str]:
    """Location of each layer of a net read from a prototxt, as in error messages: `train.prototxt:17: layer "conv1"`."""
    return places_at(path, net, layer_lines(path))


def places_at(path: os.PathLike[str] | str, net: caffe_pb2.NetParameter, lines: list[int]) -> list[str]:
    """As `layer_places`, from the lines of the layers; empty for a net that was not read from a file."""
    # An Input layer made from `input:` fields precedes the file's own layers.
    numbers = dict(enumerate(lines, len(net.layer) - len(lines)))
    lines_of = (f":{numbers[index]}" if index in numbers else "" for index in range(len(net.layer)))
    return [f'{Path(path)}{line}: layer "{layer.name}"' for line, layer in zip(lines_of, net.layer, strict=True)]

"""caffe upgrade_net_proto_text: upgrade a net's prototxt to the current format."""

import copy
from collections.abc import Callable

from caffe import events
from caffe.commands import flags
from caffe.formats import prototxt, upgrade
from caffe.formats.prototxt import M
from caffe.proto import caffe_pb2

V0_V1 = "of any version (V0 of 2013, V1 of 2014)"


def main(argv: list[str]) -> int:
    """`caffe upgrade_net_proto_text OLD NEW`; exit code 1 if fields were dropped."""
    return run("upgrade_net_proto_text", f"a net's prototxt {V0_V1}", caffe_pb2.NetParameter(), upgrade.upgrade_net, argv)


def run(command: str, what: str, message: M, upgrade_message: Callable[[M, str], list[str] | None], argv: list[str]) -> int:
    """Run a command that upgrades a file; the last word of its name is the file's format, text or binary.

    message          an empty message of the file's type
    upgrade_message  upgrades a message read from a path, in place; returns the problems, if any
    """
    form = command.rpartition("_")[2]
    parser = flags.parser(command, f"Upgrade {what} to the current format.")
    parser.add_argument("old", type=flags.existing, help="the file to read")
    parser.add_argument("new", type=flags.path, help="the file to write")
    arguments = parser.parse_args(argv)
    with flags.logging(arguments):
        (prototxt.read_prototxt if form == "text" else prototxt.read_binary)(arguments.old, message)
        before = copy.deepcopy(message)
        problems = upgrade_message(message, arguments.old)
        if problems:
            events.file_upgrade_incomplete[command]()
        elif message == before:
            events.file_latest[command](arguments.old)
        (prototxt.write_prototxt if form == "text" else prototxt.write_binary)(arguments.new, message)
        events.file_upgraded[command](message.DESCRIPTOR.name, form, arguments.new)
    return int(bool(problems))

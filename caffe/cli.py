"""The command `caffe`: dispatches to the modules of caffe.commands."""

import importlib
import re
import shlex
import sys
from pathlib import Path

from caffe.commands import former
from caffe.errors import Error, nearest

COMMANDS = {
    "train": "train or fine-tune a net",
    "test": "score a net",
    "time": "benchmark a net and its layers",
    "device_query": "show the properties of GPUs",
    "convert_imageset": "write a list of images as a database",
    "convert_mnist_data": "write MNIST's files as a database",
    "convert_cifar_data": "write CIFAR-10's files as databases",
    "convert_mnist_siamese_data": "write random pairs of MNIST's images as a LevelDB",
    "compute_image_mean": "compute the mean image of a database",
    "extract_features": "write blobs of a net to databases",
    "upgrade_net_proto_text": "upgrade a net's prototxt to the current format",
    "upgrade_net_proto_binary": "upgrade a .caffemodel to the current format",
    "upgrade_solver_proto_text": "upgrade a solver's prototxt to the current format",
    "draw_net": "draw a net with Graphviz",
    "parse_log": "extract tables of learning rate, loss and outputs from a training log",
}
_PROGRAMS = {*COMMANDS, *former.PROGRAMS} - {"train", "test", "time"}
"""What runs under its own name, as `build/tools/NAME` of a BVLC Caffe build does, through a link to `caffe`."""
# glog's flags, which scripts pass; here the log always goes to standard error.
_IGNORED = re.compile(r"--?(also)?logtostderr(=.*)?$")


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit code. A caffe.Error becomes one line on standard error and 1.

    Through a link that has the name of one of BVLC Caffe's programs (`convert_imageset`, `train_net.bin`), that program is run.
    A command line of 2014 is run with a warning that gives today's.
    """
    words = [*_program(sys.argv[0]), *sys.argv[1:]] if argv is None else argv
    arguments = [word for word in words if not _IGNORED.match(word)]
    if not arguments or arguments[0] in ("-h", "-help", "--help", "help"):
        print(usage())
        return 0 if arguments else 1
    if arguments[0] in ("-version", "--version"):
        from caffe import __version__

        print(f"caffe version {__version__}")
        return 0
    try:
        today = former.translate(arguments)
        if today != arguments:
            print(f"warning: not a command of today's Caffe; running: caffe {shlex.join(today)}", file=sys.stderr)
        arguments = today
        name = _take_command(arguments)
        return int(importlib.import_module(f"caffe.commands.{name}").main(arguments))
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _program(path: str) -> list[str]:
    """The command that a link's name stands for, without `.bin` or `.exe`; none for `caffe` itself."""
    name = re.sub(r"\.(bin|exe)$", "", Path(path).name)
    return [name] if name in _PROGRAMS else []


def usage() -> str:
    """The help text, with one command on each line."""
    lines = [f"  {name:27}{text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: caffe COMMAND …", "", *lines, "", "caffe COMMAND --help shows the command's arguments."])


def _take_command(arguments: list[str]) -> str:
    """Remove the command's name from the arguments and return it; as with gflags, it may follow flags."""
    name = arguments[0]
    if name.startswith("-"):
        name = next((argument for argument in arguments if argument in COMMANDS), name)
    if name in COMMANDS:
        arguments.remove(name)
        return name
    hint = nearest(name, (*COMMANDS, *former.PROGRAMS, *former.COMMANDS)) or "caffe --help lists the commands"
    raise Error(f"caffe {name}", "no such command", do=hint)

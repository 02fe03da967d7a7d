"""The command `caffe`: dispatches to the modules of caffe.commands."""

import importlib
import re
import sys

from caffe.errors import Error, nearest

COMMANDS = {
    "train": "train or fine-tune a net",
    "test": "score a net",
    "time": "benchmark a net and its layers",
    "device_query": "show the properties of GPUs",
    "convert_imageset": "write a list of images as a database",
    "compute_image_mean": "compute the mean image of a database",
    "extract_features": "write blobs of a net to databases",
    "upgrade_net_proto_text": "upgrade a net's prototxt to the current format",
    "upgrade_net_proto_binary": "upgrade a .caffemodel to the current format",
    "upgrade_solver_proto_text": "upgrade a solver's prototxt to the current format",
    "draw_net": "draw a net with Graphviz",
    "parse_log": "extract tables of learning rate, loss and outputs from a training log",
}

# The programs of 2014: the command that replaced each, and the flags for its arguments.
_FORMER = {
    "train_net": ("train", ("-solver", "-snapshot")),
    "finetune_net": ("train", ("-solver", "-weights")),
    "test_net": ("test", ("-model", "-weights", "-iterations")),
    "net_speed_benchmark": ("time", ("-model", "-iterations")),
}
# glog's flags, which scripts pass; here the log always goes to standard error.
_IGNORED = re.compile(r"--?(also)?logtostderr(=.*)?$")
_PLACEHOLDERS = {"-solver": "solver.prototxt", "-snapshot": "x.solverstate", "-weights": "x.caffemodel", "-model": "net.prototxt"}


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit code. A caffe.Error becomes one line on standard error and 1."""
    arguments = [argument for argument in (sys.argv[1:] if argv is None else argv) if not _IGNORED.match(argument)]
    if not arguments or arguments[0] in ("-h", "-help", "--help", "help"):
        print(usage())
        return 0 if arguments else 1
    if arguments[0] in ("-version", "--version"):
        from caffe import __version__

        print(f"caffe version {__version__}")
        return 0
    try:
        name = _take_command(arguments)
        return int(importlib.import_module(f"caffe.commands.{name}").main(arguments))
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


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
    if name in _FORMER:
        raise Error(f"caffe {name}", "a program of 2014", do=f"use: {current_command(name, arguments[1:])}")
    hint = nearest(name, (*COMMANDS, *_FORMER)) or "caffe --help lists the commands"
    raise Error(f"caffe {name}", "no such command", do=hint)


def current_command(name: str, arguments: list[str]) -> str:
    """Translate a command line of 2014: `train_net solver.prototxt` to `caffe train -solver solver.prototxt`."""
    command, flags = _FORMER[name]
    given = [argument for argument in arguments if argument not in ("CPU", "GPU")]
    values = given[: len(flags)] or [_PLACEHOLDERS[flag] for flag in flags if flag in _PLACEHOLDERS]
    gpu = ["-gpu", (given[len(flags) :] or ["0"])[0]] if "GPU" in arguments else []
    parts = [part for flag, value in zip(flags, values, strict=False) for part in (flag, value)]
    return " ".join(["caffe", command, *parts, *gpu])

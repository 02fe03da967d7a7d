"""The command `caffe`: finds the module in caffe.commands that a command's name stands for."""

from __future__ import annotations

import importlib
import re
import sys

from caffe.errors import Error, nearest

COMMANDS = {
    "train": "train or fine-tune a net",
    "test": "score a net",
    "time": "measure a net and its layers",
    "device_query": "say what is known of the GPUs",
    "convert_imageset": "write a list of images as a database",
    "compute_image_mean": "write the mean image of a database",
    "extract_features": "write blobs of a net as databases",
    "upgrade_net_proto_text": "write an old net's prototxt in today's form",
    "upgrade_net_proto_binary": "write an old .caffemodel in today's form",
    "upgrade_solver_proto_text": "write an old solver's prototxt in today's form",
    "draw_net": "draw a net",
    "parse_log": "write the figures of a training log as tables",
}

# The programs of 2014, and how their arguments are given now.
_FORMER = {
    "train_net": ("train", ("-solver", "-snapshot")),
    "finetune_net": ("train", ("-solver", "-weights")),
    "test_net": ("test", ("-model", "-weights", "-iterations")),
    "net_speed_benchmark": ("time", ("-model", "-iterations")),
}
# Where the log goes in any case; scripts say it all the same.
_ALWAYS = re.compile(r"--?(also)?logtostderr(=.*)?$")
_SHOWN = {"-solver": "solver.prototxt", "-snapshot": "x.solverstate", "-weights": "x.caffemodel", "-model": "net.prototxt"}


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit code. A caffe.Error becomes one line on standard error and 1."""
    arguments = [argument for argument in (sys.argv[1:] if argv is None else argv) if not _ALWAYS.match(argument)]
    if not arguments or arguments[0] in ("-h", "-help", "--help", "help"):
        print(usage())
        return 0 if arguments else 1
    if arguments[0] in ("-version", "--version"):
        from caffe import __version__

        print(f"caffe version {__version__}")
        return 0
    try:
        name = _command(arguments)
        return importlib.import_module(f"caffe.commands.{name}").main(arguments)
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def usage() -> str:
    """The commands, one a line."""
    lines = [f"  {name:27}{text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: caffe COMMAND …", "", *lines, "", "caffe COMMAND --help says what the command takes."])


def _command(arguments: list[str]) -> str:
    """Take the command's name out of the arguments; as with gflags it may stand behind flags."""
    name = arguments[0]
    if name.startswith("-"):
        name = next((argument for argument in arguments if argument in COMMANDS), name)
    if name in COMMANDS:
        arguments.remove(name)
        return name
    if name in _FORMER:
        raise Error(f"caffe {name}", "a program of 2014", do=f"type now: {today(name, arguments[1:])}")
    hint = nearest(name, (*COMMANDS, *_FORMER)) or "caffe --help lists the commands"
    raise Error(f"caffe {name}", "no such command", do=hint)


def today(name: str, arguments: list[str]) -> str:
    """What a command line of 2014 is now: `train_net solver.prototxt` is `caffe train -solver solver.prototxt`."""
    command, flags = _FORMER[name]
    given = [argument for argument in arguments if argument not in ("CPU", "GPU")]
    values = given[: len(flags)] or [_SHOWN[flag] for flag in flags if flag in _SHOWN]
    gpu = ["-gpu", (given[len(flags) :] or ["0"])[0]] if "GPU" in arguments else []
    parts = [part for flag, value in zip(flags, values, strict=False) for part in (flag, value)]
    return " ".join(["caffe", command, *parts, *gpu])

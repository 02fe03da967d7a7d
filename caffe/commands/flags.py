"""Command-line flags like Caffe's (gflags): -flag value, --flag value, -flag=value or --flag=value."""

import argparse
import contextlib
import getpass
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from caffe import events, glog
from caffe.errors import Error
from caffe.numerics import NUMERICS

# In BVLC Caffe train, test, time and device_query are one program, so that each accepts these flags, used or not.
_SHARED_FLAGS: tuple[str, ...] = ("gpu", "level", "stage", "solver", "model", "weights", "snapshot", "iterations", "phase")
_SHARED_FLAGS += ("sigint_effect", "sighup_effect")
BACKENDS = ("lmdb", "leveldb")


def parser(command: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """An argument parser with the log flags, which every command has."""
    result = argparse.ArgumentParser(
        prog=f"caffe {command}",
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("-help", action="help", help=argparse.SUPPRESS)
    log = result.add_argument_group("log")
    add(log, "log_dir", "directory for a copy of the log", default=os.environ.get("GLOG_log_dir", ""))  # noqa: SIM112 - glog spells it so
    add(log, "minloglevel", "minimum severity shown: 0 info, 1 warning, 2 error", default=None, type=int)
    return result


def add(group: argparse._ActionsContainer, name: str, help: str, default: str | int | None = "", **options: Any) -> None:
    """Add a flag that takes a value."""
    group.add_argument(f"-{name}", f"--{name}", dest=name, help=help, default=default, **options)


def add_switch(group: argparse._ActionsContainer, name: str, help: str) -> None:
    """Add a boolean flag: -gray, -nogray."""
    group.add_argument(f"-{name}", f"--{name}", action="store_true", help=help)
    group.add_argument(f"-no{name}", f"--no{name}", action="store_false", dest=name, help=argparse.SUPPRESS)


def plain_switch(word: str) -> str:
    """Normalise a boolean of gflags with a value: -gray=True to -gray, -gray=false to -nogray."""
    match = re.fullmatch(r"--?(\w+)=(?:(true|t|1|yes|y)|false|f|0|no|n)", word, re.IGNORECASE)
    return f"-{'' if match[2] else 'no'}{match[1]}" if match else word


def path(word: str) -> str:
    """A path; if it does not exist as typed, backslashes separate folders, as on Windows."""
    return word if os.path.lexists(word) else word.replace("\\", "/")


def existing(word: str) -> str:
    """The path of a file to read, as `path` has it.

    A shell makes `.a.prototxt` of `.\\a.prototxt`: if only a.prototxt is there, it is read, with a warning on standard error.
    """
    name = path(word)
    if re.match(r"\.[^./]", name) and not os.path.lexists(name) and Path(name[1:]).is_file():
        print(f"warning: {name}: no such file; reading {name[1:]} (a shell drops the backslash of .\\)", file=sys.stderr)
        return name[1:]
    return name


def snapshot(word: str) -> str:
    """The path of a .solverstate or .solverstate.h5 to read, as `existing` has it.

    If only the other of the two is there, it is read, with a warning: BVLC Caffe's train_full.sh asks for one where its solver
    writes the other.
    """
    name = existing(word)
    other = name.removesuffix(".h5") if name.endswith(".h5") else f"{name}.h5"
    if not name or os.path.lexists(name) or not Path(other).is_file():
        return name
    print(f"warning: {name}: no such file; reading {other}", file=sys.stderr)
    return other


def paths(words: str) -> str:
    """Comma-separated paths, each as `path` has it."""
    return ",".join(map(path, words.split(",")))


def files(words: str) -> str:
    """Comma-separated paths of files to read, each as `existing` has it."""
    return ",".join(map(existing, words.split(",")))


def add_net_flags(result: argparse.ArgumentParser) -> None:
    """The flags that choose a device and the state of a net."""
    add(result, "gpu", "comma-separated device IDs, or all; without it, the CPU")
    add(result, "level", "level of the net's state (default: 0)", default=0, type=int)
    add(result, "stage", "comma-separated stages of the net's state")
    add_numerics(result)


def add_numerics(result: argparse.ArgumentParser) -> None:
    """The flag that chooses how nets compute."""
    add(
        result,
        "numerics",
        "reproducible, fp32 or fast (default: fp32, or the solver's `numerics`)",
        choices=("", *NUMERICS),
        metavar="HOW",
    )


def parse(command: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Parse the flags of train, test, time or device_query, with -iterations at least 1; warn of those that only others use."""
    arguments, rest = command.parse_known_args(argv)
    others = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in _SHARED_FLAGS:
        add(others, name, "", default=argparse.SUPPRESS)
    unused, unknown = others.parse_known_args(rest)
    if unknown:
        command.error(f"unrecognized arguments: {' '.join(unknown)}")
    for name in vars(unused):
        events.flag_unused(name, command.prog)
    if getattr(arguments, "iterations", 1) < 1:
        raise Error(command.prog, f"-iterations {arguments.iterations}", "it must be at least 1")
    return arguments


@contextlib.contextmanager
def logging(arguments: argparse.Namespace) -> Iterator[None]:
    """Apply the log flags while the block runs."""
    if arguments.minloglevel is not None:
        glog.init_log(arguments.minloglevel)
    with contextlib.ExitStack() as stack:
        if arguments.log_dir:
            stamp = time.strftime("%Y%m%d-%H%M%S")
            name = f"caffe.{socket.gethostname()}.{getpass.getuser()}.log.INFO.{stamp}.{os.getpid()}"
            stack.enter_context(glog.log_to_file(Path(arguments.log_dir) / name))
            # A link of a fixed name to the newest log.
            newest = Path(arguments.log_dir) / "caffe.INFO"
            newest.unlink(missing_ok=True)
            newest.symlink_to(name)
        yield

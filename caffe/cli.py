"""The command `caffe`: `caffe train --solver solver.prototxt [--weights a.caffemodel] [--snapshot x.solverstate]`."""

from __future__ import annotations

import argparse
import signal
import sys

from caffe.errors import Error

_EFFECTS = ("stop", "snapshot", "none")


def main(argv: list[str] | None = None) -> None:
    """Run a command; a caffe.Error becomes one line on standard error and exit code 1."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="caffe", description="Train and test nets as BVLC Caffe does.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="command")
    train_parser = commands.add_parser("train", help="train or fine-tune a net", allow_abbrev=False)
    train_parser.set_defaults(command=train)
    # Caffe's flags are accepted with one dash and with two.
    for name, text in (
        ("solver", "the solver prototxt"),
        ("weights", "weights to start from: .caffemodel files, separated by commas"),
        ("snapshot", "a .solverstate to go on from"),
        ("gpu", "GPU number to compute on"),
        ("stage", "stages of the net's state, separated by commas"),
    ):
        train_parser.add_argument(f"-{name}", f"--{name}", default="", help=text, required=name == "solver")
    train_parser.add_argument("-level", "--level", type=int, default=0, help="level of the net's state")
    for name, default in (("sigint_effect", "stop"), ("sighup_effect", "snapshot")):
        help_text = f"what the signal does (default: {default})"
        train_parser.add_argument(f"-{name}", f"--{name}", choices=_EFFECTS, default=default, help=help_text)
    return parser


def train(arguments: argparse.Namespace) -> None:
    """Train a net as its solver says."""
    import torch

    from caffe import glog, mode, prototxt
    from caffe.proto import caffe_pb2
    from caffe.solver_types import get_solver

    if arguments.snapshot and arguments.weights:
        raise Error("caffe train", "both --snapshot and --weights", "one of them is wanted", "a snapshot brings its own weights")
    param = prototxt.read_solver(arguments.solver)
    wants_gpu = param.solver_mode == caffe_pb2.SolverParameter.GPU
    if arguments.gpu:
        number = "0" if arguments.gpu == "all" else arguments.gpu
        if not number.isdigit():
            raise Error("caffe train", f"--gpu {arguments.gpu}", "the number of one GPU is wanted")
        mode.set_device(int(number))
        mode.set_mode_gpu()
        glog.info("caffe.cpp:204", f"Using GPUs {number}")
    elif wants_gpu and torch.cuda.is_available():
        mode.set_device(param.device_id)
        mode.set_mode_gpu()
        glog.info("caffe.cpp:204", f"Using GPUs {param.device_id}")
    else:
        if wants_gpu and param.HasField("solver_mode"):
            glog.warning("caffe.cpp:197", "solver_mode is GPU, but there is no CUDA device.")
        glog.info("caffe.cpp:197", "Use CPU.")
        mode.set_mode_cpu()
    param.train_state.level = arguments.level
    param.train_state.stage.extend(arguments.stage.split(","))
    param.weights.extend(filter(None, [arguments.weights]))
    solver = get_solver(arguments.solver, param)
    for number, effect in ((signal.SIGINT, arguments.sigint_effect), (signal.SIGHUP, arguments.sighup_effect)):
        if effect != "none":
            signal.signal(number, lambda *_, effect=effect: solver.request(effect))
    glog.info("caffe.cpp:239", "Starting Optimization")
    solver.solve(arguments.snapshot or None)
    glog.info("caffe.cpp:250", "Optimization Done.")

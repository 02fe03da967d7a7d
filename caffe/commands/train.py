"""caffe train: train or fine-tune a net by its solver."""

from __future__ import annotations

import signal
from argparse import Namespace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from caffe import events
from caffe.commands import flags, parallel
from caffe.commands.parallel import ALONE, Place
from caffe.errors import Error
from caffe.formats.files import check_exists
from caffe.proto.caffe_pb2 import SolverParameter

if TYPE_CHECKING:
    from caffe.training.solver import Solver

_EFFECTS = ("stop", "snapshot", "none")
_PARALLEL = """\
Data parallel on several GPUs (-gpu 0,1 or -gpu all), or in several processes started by a launcher, each process
reads its own records: the effective batch size is multiplied by their number. A launcher such as torchrun sets RANK,
WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for each process:

  torchrun --nproc-per-node 2 -m caffe train -solver solver.prototxt

Each process uses the GPU at index LOCAL_RANK of -gpu, if the solver or -gpu asks for GPUs.
The first process logs, tests and snapshots; a signal to it (Ctrl-C) stops all after the current iteration."""


def main(argv: list[str]) -> int:
    """`caffe train -solver solver.prototxt [-weights a.caffemodel] [-snapshot x.solverstate]`."""
    parser = flags.parser("train", "Train or fine-tune a net.", _PARALLEL)
    flags.add(parser, "solver", "the solver's prototxt", required=True, type=flags.existing)
    flags.add(parser, "weights", "weights to start from: comma-separated .caffemodel or .caffemodel.h5 files", type=flags.files)
    flags.add(parser, "snapshot", "a .solverstate or .solverstate.h5 to resume from", type=flags.snapshot)
    flags.add_net_flags(parser)
    for name, default in (("sigint_effect", "stop"), ("sighup_effect", "snapshot")):
        flags.add(parser, name, f"effect of the signal (default: {default})", default=default, choices=_EFFECTS)
    arguments = flags.parse(parser, argv)
    _check_start(arguments.snapshot, arguments.weights)
    place = parallel.place_from_environment()
    if not place.is_first:
        arguments.log_dir, arguments.minloglevel = "", max(1, arguments.minloglevel or 0)
    with flags.logging(arguments):
        train(arguments, place)
    return 0


def _check_start(snapshot: str, weights: str) -> None:
    """Raise an error for files of -snapshot and -weights that are missing or of the other flag, before nets are built."""
    if snapshot and weights:
        raise Error("caffe train", "both -snapshot and -weights", "only one may be given", "a snapshot has its own weights")
    if _kind(snapshot) == ".caffemodel":
        state = snapshot.replace(".caffemodel", ".solverstate")
        do = f"use -weights {snapshot} to start from these weights, or -snapshot {state} to resume"
        raise Error(f"-snapshot {snapshot}", "weights", "-snapshot takes a .solverstate", do)
    for path in filter(None, weights.split(",")):
        if _kind(path) == ".solverstate":
            raise Error(f"-weights {path}", "a solver state", "-weights takes a .caffemodel", f"use -snapshot {path} to resume")
    if snapshot:
        check_exists(snapshot)


def _kind(path: str) -> str:
    """The suffix of a file of weights or of a solver state, without that of HDF5."""
    return Path(path.strip().removesuffix(".h5")).suffix


def train(arguments: Namespace, place: Place) -> None:
    """Train a net as one of a launcher's processes, or alone; on several GPUs with one process for each."""
    import torch

    from caffe.engine import mode
    from caffe.formats import prototxt

    param = prototxt.read_solver(arguments.solver)
    gpus = _gpus(arguments.gpu, param, place)
    if gpus:
        events.train_on_gpus(", ".join(map(str, gpus)))
        for number in gpus:
            mode.set_device(number)
            events.train_gpu_named(number, torch.cuda.get_device_name(number))
        param.device_id = gpus[0]
    else:
        events.train_on_cpu()
    param.train_state.level = arguments.level
    param.train_state.stage.extend(arguments.stage.split(","))
    if arguments.numerics:
        param.numerics = arguments.numerics
    if arguments.snapshot or arguments.weights:
        param.ClearField("weights")
        param.weights.extend(filter(None, [arguments.weights]))
    if len(gpus) > 1:
        parallel.spawn(_optimise, arguments, param, gpus)
    else:
        _optimise(arguments, param, gpus[0] if gpus else None, place)
    events.train_ended()


def _gpus(flag: str, param: SolverParameter, place: Place) -> list[int]:
    """Device IDs to train on, from -gpu or else from the solver; empty for the CPU, also if the solver's GPU does not exist.

    Under a launcher the result is this process's one GPU.
    """
    import torch

    from caffe.commands import devices

    if flag or not param.HasField("solver_mode") or param.solver_mode == SolverParameter.CPU:
        return _own_gpu(devices.parse_gpus(flag), place)
    if torch.cuda.is_available():
        return [param.device_id] if place is ALONE else _own_gpu(devices.parse_gpus("all"), place)
    events.train_gpu_missing()
    return []


def _own_gpu(gpus: list[int], place: Place) -> list[int]:
    """The GPU of a launcher's process, by LOCAL_RANK; or the only visible one."""
    if place is ALONE or len(gpus) < 2:
        return gpus
    if place.local >= len(gpus):
        raise Error(f"LOCAL_RANK={place.local}", f"{len(gpus)} GPUs", do="start at most one process per GPU")
    return [gpus[place.local]]


def _optimise(arguments: Namespace, param: SolverParameter, gpu: int | None, place: Place, met: Event | None = None) -> None:
    """Create the solver, install its signal handlers, train to the end; `met` is set when all processes have joined."""
    from caffe import preflight
    from caffe.commands import devices
    from caffe.training.solver_types import get_solver

    devices.select(gpu)
    with parallel.joined(place, met):
        solver = get_solver(arguments.solver, parallel.solver_of(param, place))
        if place.is_first:
            _handle_signal(solver, signal.SIGINT, arguments.sigint_effect)
            _handle_signal(solver, signal.SIGHUP, arguments.sighup_effect)
        if arguments.snapshot:
            events.snapshot_given(arguments.snapshot)
            solver.restore(arguments.snapshot)
        elif place.is_first:
            for finding in preflight.quick(solver):
                events.train_doubtful(finding, arguments.solver)
        if place.count > 1:
            parallel.connect(solver, place)
        events.train_begun()
        solver.solve()
        solver.close()


def _handle_signal(solver: Solver, number: signal.Signals, effect: str) -> None:
    """Make a signal stop the solver or write a snapshot after the current iteration; "none" ignores it."""
    if effect == "none":
        signal.signal(number, signal.SIG_IGN)
    else:
        signal.signal(number, lambda *_: solver.request(effect))

"""caffe train: train or fine-tune a net as its solver says."""

from __future__ import annotations

import signal
import threading

from caffe import events
from caffe.commands import flags, together
from caffe.commands.together import ALONE, Place
from caffe.errors import Error

_EFFECTS = ("stop", "snapshot", "none")
_TOGETHER = """\
On several GPUs (-gpu 0,1 or -gpu all), or in several processes that a launcher starts, each process reads
records of its own: the batch size is multiplied by their number. A launcher gives each process RANK,
WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as torchrun does:

  torchrun --nproc-per-node 2 -m caffe train -solver solver.prototxt

Each process takes the GPU number LOCAL_RANK, of those that -gpu names, where the solver or -gpu asks for GPUs.
The first process logs, tests and snapshots; a signal to it (Ctrl-C) stops all after one iteration."""


def main(argv: list[str]) -> int:
    """`caffe train -solver solver.prototxt [-weights a.caffemodel] [-snapshot x.solverstate]`."""
    parser = flags.parser(
        "train",
        "Train or fine-tune a net.",
        _TOGETHER,
    )
    flags.add(parser, "solver", "the solver's prototxt", required=True)
    flags.add(parser, "weights", "weights to start from: .caffemodel or .caffemodel.h5 files, separated by commas")
    flags.add(parser, "snapshot", "a .solverstate to go on from")
    flags.add_net_flags(parser)
    for name, default in (("sigint_effect", "stop"), ("sighup_effect", "snapshot")):
        flags.add(parser, name, f"what the signal does (default: {default})", default=default, choices=_EFFECTS)
    arguments = flags.parse(parser, argv)
    if arguments.snapshot and arguments.weights:
        raise Error("caffe train", "both -snapshot and -weights", "one of them is wanted", "a snapshot brings its own weights")
    place = together.place_from_environment()
    if not place.is_first:
        arguments.log_dir, arguments.minloglevel = "", max(1, arguments.minloglevel or 0)
    with flags.logging(arguments):
        train(arguments, place)
    return 0


def train(arguments, place: Place) -> None:
    """Train a net: as one of several processes of a launcher, or alone, on several GPUs with a process for each."""
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
    if arguments.snapshot or arguments.weights:
        param.ClearField("weights")
        param.weights.extend(filter(None, [arguments.weights]))
    if len(gpus) > 1:
        together.spawn(_optimise, arguments, param, gpus)
    else:
        _optimise(arguments, param, gpus[0] if gpus else None, place)
    events.train_ended()


def _gpus(flag: str, param, place: Place) -> list[int]:
    """The GPUs to train on, by -gpu or else by the solver; a solver that wants a GPU where there is none trains on the CPU.

    Under a launcher the result is the one GPU of this process.
    """
    import torch

    from caffe.commands import devices
    from caffe.proto import caffe_pb2

    if flag or not param.HasField("solver_mode") or param.solver_mode == caffe_pb2.SolverParameter.CPU:
        return _own(devices.numbers(flag), place)
    if torch.cuda.is_available():
        return [param.device_id] if place is ALONE else _own(devices.numbers("all"), place)
    events.train_gpu_missing()
    return []


def _own(gpus: list[int], place: Place) -> list[int]:
    """The GPU of a launcher's process, by its number on its host; a launcher may also let each process see only its own."""
    if place is ALONE or len(gpus) < 2:
        return gpus
    if place.local >= len(gpus):
        raise Error(f"LOCAL_RANK={place.local}", f"{len(gpus)} GPUs", do="start at most one process for each GPU")
    return [gpus[place.local]]


def _use(gpu: int | None) -> None:
    """Compute on a GPU, or on the CPU."""
    from caffe.engine import mode

    if gpu is None:
        mode.set_mode_cpu()
    else:
        mode.set_device(gpu)
        mode.set_mode_gpu()


def _optimise(arguments, param, gpu: int | None, place: Place, met: threading.Event | None = None) -> None:
    """Make the solver, let signals reach it, and train to the end.

    met  set as soon as all processes have met, where there are several
    """
    from caffe.training.solver_types import get_solver

    _use(gpu)
    with together.joined(place, met):
        solver = get_solver(arguments.solver, together.share_of(param, place))
        if place.is_first:
            for name, effect in (("SIGINT", arguments.sigint_effect), ("SIGHUP", arguments.sighup_effect)):
                if hasattr(signal, name):
                    _let_ask(solver, getattr(signal, name), effect)
        if arguments.snapshot:
            events.snapshot_given(arguments.snapshot)
            solver.restore(arguments.snapshot)
        if place.count > 1:
            together.connect(solver, place)
        events.train_begun()
        solver.solve()
        solver.close()


def _let_ask(solver, number: int, effect: str) -> None:
    """Let a signal stop the solver or make it snapshot, after the iteration that runs; "none" leaves it to go on."""
    if effect == "none":
        signal.signal(number, signal.SIG_IGN)
    else:
        signal.signal(number, lambda *_: solver.request(effect))

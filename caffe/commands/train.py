"""caffe train: train or fine-tune a net as its solver says."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import connection

from caffe import glog
from caffe.commands import flags
from caffe.errors import Error

_EFFECTS = ("stop", "snapshot", "none")
_OF_THE_FIRST = ("display", "snapshot", "test_interval", "test_iter", "test_net", "test_net_param", "test_state")


def main(argv: list[str]) -> int:
    """`caffe train -solver solver.prototxt [-weights a.caffemodel] [-snapshot x.solverstate]`."""
    parser = flags.parser(
        "train",
        "Train or fine-tune a net.",
        "On several GPUs, each has batches of its own: the batch size is multiplied by their number.",
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
    with flags.logging(arguments):
        train(arguments)
    return 0


def train(arguments) -> None:
    """Train a net, on several GPUs with a process for each."""
    import torch

    from caffe import mode, prototxt

    param = prototxt.read_solver(arguments.solver)
    gpus = _gpus(arguments.gpu, param)
    if gpus:
        glog.info("caffe.cpp:204", f"Using GPUs {', '.join(map(str, gpus))}")
        for number in gpus:
            mode.set_device(number)
            glog.info("caffe.cpp:209", f"GPU {number}: {torch.cuda.get_device_name(number)}")
        param.device_id = gpus[0]
    else:
        glog.info("caffe.cpp:197", "Use CPU.")
    _use(gpus[0] if gpus else None)
    param.train_state.level = arguments.level
    param.train_state.stage.extend(arguments.stage.split(","))
    if arguments.snapshot or arguments.weights:
        param.ClearField("weights")
        param.weights.extend(filter(None, [arguments.weights]))
    if len(gpus) > 1:
        _train_together(arguments, param, gpus)
    else:
        _optimise(arguments, param)
    glog.info("caffe.cpp:250", "Optimization Done.")


def _gpus(flag: str, param) -> list[int]:
    """The GPUs to train on, by -gpu or else by the solver; a solver that wants a GPU where there is none trains on the CPU."""
    import torch

    from caffe.commands import devices
    from caffe.proto import caffe_pb2

    if flag or not param.HasField("solver_mode") or param.solver_mode == caffe_pb2.SolverParameter.CPU:
        return devices.numbers(flag)
    if torch.cuda.is_available():
        return [param.device_id]
    glog.warning("caffe.cpp:197", "solver_mode is GPU, but there is no CUDA device.")
    return []


def _use(gpu: int | None) -> None:
    """Compute on a GPU, or on the CPU."""
    from caffe import mode

    if gpu is None:
        mode.set_mode_cpu()
    else:
        mode.set_device(gpu)
        mode.set_mode_gpu()


def _optimise(arguments, param, join=None) -> None:
    """Make the solver, let signals reach it, and train to the end.

    join  what is done with the solver before it trains
    """
    from caffe.solver_types import get_solver

    solver = get_solver(arguments.solver, param)
    for name, effect in (("SIGINT", arguments.sigint_effect), ("SIGHUP", arguments.sighup_effect)):
        if hasattr(signal, name):
            _let_ask(solver, getattr(signal, name), effect)
    if arguments.snapshot:
        glog.info("caffe.cpp:235", f"Resuming from {arguments.snapshot}")
        solver.restore(arguments.snapshot)
    if join is not None:
        join(solver)
    glog.info("caffe.cpp:239", "Starting Optimization")
    solver.solve()
    solver.close()


def _let_ask(solver, number: int, effect: str) -> None:
    """Let a signal stop the solver or make it snapshot, after the iteration that runs; "none" leaves it to go on."""
    if effect == "none":
        signal.signal(number, signal.SIG_IGN)
    else:
        signal.signal(number, lambda *_: solver.request(effect))


# ---- several GPUs


def _train_together(arguments, param, gpus: list[int | None]) -> None:
    """Train with several solvers: the first here, where signals, snapshots, tests and the log are; the others in processes.

    gpus  the device of each: a GPU's number, or None for the CPU
    """
    from caffe.nccl import NCCL

    uid = NCCL.new_uid()
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_work, args=(rank, uid, arguments, param.SerializeToString(), gpus), daemon=True)
        for rank in range(1, len(gpus))
    ]
    for worker in workers:
        worker.start()
    ended = threading.Event()
    threading.Thread(target=_end_with, args=(workers, ended), daemon=True).start()
    try:
        _be(0, len(gpus))
        _optimise(arguments, param, join=lambda solver: _join(solver, uid))
    finally:
        ended.set()
        # Where the first stops early, the others wait for its next gradients.
        for worker in workers:
            worker.terminate()
            worker.join()


def _end_with(workers, ended: threading.Event) -> None:
    """End this process where one of the others fails, as it would wait for that one's gradients for ever."""
    left = list(workers)
    while left and not ended.is_set():
        connection.wait([worker.sentinel for worker in left])
        failed = [worker for worker in left if worker.exitcode]
        if failed and not ended.is_set():
            glog.error("parallel.cpp:331", f"Solver {workers.index(failed[0]) + 1} has ended with code {failed[0].exitcode}.")
            os._exit(1)
        left = [worker for worker in left if worker.exitcode is None]


def _work(rank: int, uid: bytes, arguments, serialised: bytes, gpus: list[int | None]) -> None:
    """One of the other processes: the same solver without tests, snapshots and a log."""
    from caffe.proto import caffe_pb2
    from caffe.solver_types import get_solver

    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    glog.init_log(1)
    param = caffe_pb2.SolverParameter.FromString(serialised)
    for field in _OF_THE_FIRST:
        param.ClearField(field)
    param.snapshot_after_train = False
    if param.random_seed >= 0:
        param.random_seed += rank
    _use(gpus[rank])
    _be(rank, len(gpus))
    solver = get_solver(arguments.solver, param)
    if arguments.snapshot:
        solver.restore(arguments.snapshot)
    _join(solver, uid)
    solver.step(param.max_iter - solver.iter)


def _be(rank: int, count: int) -> None:
    """Take a place among several solvers, before any layer reads."""
    from caffe import mode

    mode.set_solver_count(count)
    mode.set_solver_rank(rank)
    mode.set_multiprocess(True)


def _join(solver, uid: bytes) -> None:
    """Begin with the first solver's parameters, and update by the mean gradient of all."""
    from caffe.nccl import NCCL

    nccl = NCCL(solver, uid)
    nccl.bcast()
    solver.add_callback(nccl.on_start, nccl.on_gradients_ready)

"""Data-parallel training in several processes, started here for `-gpu 0,1`, or by a launcher such as torchrun."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import TYPE_CHECKING

from caffe import events, glog
from caffe.errors import Error
from caffe.proto import caffe_pb2

if TYPE_CHECKING:
    from caffe.training.solver import Solver

_FIRST_ONLY = ("display", "snapshot", "test_interval", "test_iter", "test_net", "test_net_param", "test_state")
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """A process's rank among those that train one net.

    rank, count  its rank, from 0, and the number of processes
    local        its rank on its host
    uid          rendezvous address, as `caffe.NCCL` takes it
    """

    rank: int
    count: int
    local: int
    uid: str

    @property
    def is_first(self) -> bool:
        """Whether it is the process that logs, tests and snapshots."""
        return self.rank == 0


ALONE = Place(0, 1, 0, "")
Train = Callable[[argparse.Namespace, caffe_pb2.SolverParameter, int | None, Place, threading.Event], None]


def place_from_environment() -> Place:
    """This process's place, from a launcher's RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; ALONE without them."""
    given = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    if given.get("WORLD_SIZE") == "1" or not {"RANK", "WORLD_SIZE"} & given.keys():
        return ALONE
    missing = [name for name in _VARIABLES if name not in given]
    if missing:
        found = f"no {' and '.join(missing)} beside {' and '.join(given)}"
        do = "start with torchrun, or unset RANK and WORLD_SIZE to train in one process"
        raise Error("environment", found, "a launcher must set all of them", do)
    numbers = {"LOCAL_RANK": os.environ.get("LOCAL_RANK") or "0", **given}
    del numbers["MASTER_ADDR"]
    for name, value in numbers.items():
        if not value.isdecimal():
            raise Error("environment", f"{name}={value}", "it must be a whole number")
    rank, count = int(given["RANK"]), int(given["WORLD_SIZE"])
    if rank >= count:
        raise Error("environment", f"RANK={rank}", f"WORLD_SIZE={count}: ranks are 0 to {count - 1}")
    host = given["MASTER_ADDR"]
    address = f"[{host}]" if ":" in host else host
    return Place(rank, count, int(numbers["LOCAL_RANK"]), f"tcp://{address}:{given['MASTER_PORT']}")


@contextlib.contextmanager
def joined(place: Place, met: threading.Event | None = None) -> Iterator[None]:
    """Join the other processes before any layer reads, wait until all have joined, set `met`; leave them after the block."""
    if place.count == 1:
        yield
        return
    from caffe.engine import mode
    from caffe.training import nccl

    mode.set_solver_count(place.count)
    mode.set_solver_rank(place.rank)
    mode.set_multiprocess(True)
    if not place.is_first:  # the first process handles signals and tells the others
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    nccl.join(place.uid)
    if met is not None:
        met.set()
    try:
        yield
    except BaseException as error:
        nccl.leave(error)
        raise
    nccl.leave()


def solver_of(param: caffe_pb2.SolverParameter, place: Place) -> caffe_pb2.SolverParameter:
    """The solver of one process: only the first displays, tests and snapshots; each has its own random seed."""
    mine = caffe_pb2.SolverParameter()
    mine.CopyFrom(param)
    if not place.is_first:
        for field in _FIRST_ONLY:
            mine.ClearField(field)
        mine.snapshot_after_train = False
        if mine.random_seed >= 0:
            mine.random_seed += place.rank
    return mine


def connect(solver: Solver, place: Place) -> None:
    """Broadcast the first process's parameters, and average the gradients of all from now on."""
    from caffe.training import nccl

    exchange = nccl.NCCL(solver, place.uid)
    exchange.bcast()
    solver.add_callback(exchange)
    if solver.param.layer_wise_reduce:
        exchange.exchange_during_backward()
    if place.is_first:
        for layer in solver.net.layers:
            if reason := layer.batch_dependence():
                events.processes_differ(place.count, place.count, f'{layer.type} "{layer.param.name}": {reason}')


# ---- processes started by this command


def spawn(train: Train, arguments: argparse.Namespace, param: caffe_pb2.SolverParameter, gpus: Sequence[int | None]) -> None:
    """Call `train(arguments, param, gpu, place, met)` for each of `gpus` (None: the CPU): the first here, others in processes.

    met  an event that `train` sets when all processes have joined
    """
    from caffe.training.nccl import NCCL

    uid = NCCL.new_uid().decode()
    places = [Place(rank, len(gpus), rank, uid) for rank in range(len(gpus))]
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_work, args=(train, arguments, param.SerializeToString(), gpu, place), daemon=True)
        for gpu, place in zip(gpus[1:], places[1:], strict=True)
    ]
    for worker in workers:
        worker.start()
    met = threading.Event()
    _exit_with([worker.sentinel for worker in workers], "A solver has ended before training began.", met)
    try:
        train(arguments, param, gpus[0], places[0], met)
    finally:
        met.set()
        deadline = time.monotonic() + 30
        for worker in workers:
            worker.join(max(0, deadline - time.monotonic()))  # daemons still running are terminated at exit


def _work(train: Train, arguments: argparse.Namespace, serialized: bytes, gpu: int | None, place: Place) -> None:
    """Main function of a process that `spawn` started."""
    met = threading.Event()
    parent = multiprocessing.parent_process()
    assert parent is not None  # `spawn` started this process
    _exit_with([parent.sentinel], "The first solver has ended before training began.", met)
    glog.init_log(max(1, arguments.minloglevel or 0))
    try:
        train(arguments, caffe_pb2.SolverParameter.FromString(serialized), gpu, place, met)
    except Error as error:
        raise SystemExit(f"error: {error}") from None


def _exit_with(sentinels: list[int], message: str, met: threading.Event) -> None:
    """Exit this process if another one exits before all have joined; after that, `Peers` watches."""

    def watch() -> None:
        connection.wait(sentinels)
        if not met.is_set():
            events.process_failed(message)
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

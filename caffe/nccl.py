"""caffe.NCCL: several processes train one net, each on its share of the data, with one update."""

from __future__ import annotations

import atexit
import datetime
import socket
from typing import TYPE_CHECKING

import torch
import torch.distributed

from caffe import mode
from caffe.errors import Error

if TYPE_CHECKING:
    from caffe.solver import Solver

# The others wait while the first tests.
_PATIENCE = datetime.timedelta(days=1)


def has_nccl() -> bool:
    """Whether PyTorch can join GPUs by NCCL; CPUs are joined by Gloo, which is always there."""
    return torch.distributed.is_available() and torch.distributed.is_nccl_available()


def _leave() -> None:
    """Part from the others; a process that ends without is ended by Gloo's threads now and then."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class NCCL:
    """Joins the solvers of `caffe.solver_count()` processes; this one is number `caffe.solver_rank()`.

        uid = caffe.NCCL.new_uid()              once, then in each process, with its own rank:
        caffe.set_solver_count(2); caffe.set_solver_rank(rank); caffe.set_multiprocess(True)
        solver = caffe.SGDSolver("solver.prototxt")
        nccl = caffe.NCCL(solver, uid)
        nccl.bcast()
        solver.add_callback(nccl.on_start, nccl.on_gradients_ready)

    The update that every process then makes is that of the mean of all gradients, as if one batch had held all images. The
    constructor returns when all processes have arrived.
    """

    def __init__(self, solver: Solver, uid: bytes | str):
        self._solver = solver
        address = uid.decode() if isinstance(uid, bytes) else uid
        rank, count = mode.solver_rank(), mode.solver_count()
        if rank >= count:
            raise Error("NCCL", f"solver rank {rank}", f"there are {count} solvers (0 to {count - 1})")
        backend = "nccl" if mode.device().type == "cuda" else "gloo"
        try:
            torch.distributed.init_process_group(backend, init_method=address, timeout=_PATIENCE, world_size=count, rank=rank)
        except (RuntimeError, ValueError) as error:
            raise Error(
                "NCCL", f"the {count} solvers cannot meet at {address} ({error})", do="give each the same new_uid()"
            ) from error
        atexit.register(_leave)

    @staticmethod
    def new_uid() -> bytes:
        """A new meeting point for processes of this machine."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return f"tcp://127.0.0.1:{free.getsockname()[1]}".encode()

    def bcast(self) -> None:
        """Give every process the parameters of the first."""
        for blob in self._solver.net.learnable_params():
            torch.distributed.broadcast(blob.tensor, src=0)

    def on_start(self) -> None:
        """Nothing is due before an iteration: equal updates keep the parameters equal."""

    def on_gradients_ready(self) -> None:
        """Replace each gradient by its mean over all processes."""
        count = mode.solver_count()
        for blob in self._solver.net.learnable_params():
            gradient = blob.gradient_or_zeros()
            try:
                torch.distributed.all_reduce(gradient)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise Error("NCCL", f"another solver's gradients do not come ({reason})", do="see above what ended it") from error
            gradient.div_(count)

    def __call__(self, layer: int) -> None:
        """What `net.after_backward(nccl)` calls: gradients are joined all together, after the last layer's."""

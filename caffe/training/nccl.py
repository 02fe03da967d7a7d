"""caffe.NCCL: several processes train one net, each on its share of the data, with one update."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import socket
import sys
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

import torch
import torch.distributed

from caffe.engine import machine, mode
from caffe.engine.parameter import Parameter
from caffe.engine.side import show_held_views
from caffe.errors import Error
from caffe.training.peers import Peers
from caffe.training.solver import Solver

BUCKET = 2 << 20
"""Minimum number of gradients that are exchanged at once (8 MiB)."""

_MEETING = datetime.timedelta(minutes=10)
"""How long processes wait for each other at the start."""
_TRAINING = datetime.timedelta(days=7)
"""How long a collective may take: the others wait while the first one tests. `Peers` notices processes that die."""

_joined: dict[str, Peers] = {}
"""{uid: the other processes}, once this process has joined them."""


def has_nccl() -> bool:
    """Whether PyTorch can join GPUs by NCCL; CPUs are joined by Gloo, which every PyTorch has."""
    return torch.distributed.is_available() and torch.distributed.is_nccl_available()


def join(uid: bytes | str) -> Peers:
    """Meet the other processes at `uid`, as rank `caffe.solver_rank()` of `caffe.solver_count()`; once in a process.

    Returns when all have arrived; raises Error after ten minutes.
    """
    address = uid.decode() if isinstance(uid, bytes) else uid
    if address in _joined:
        return _joined[address]
    if _joined:
        raise Error("NCCL", f"a second uid {address}", f"this process has joined the solvers at {', '.join(_joined)}")
    rank, count = mode.solver_rank(), mode.solver_count()
    if rank >= count:
        raise Error("NCCL", f"solver rank {rank}", f"there are {count} solvers (0 to {count - 1})")
    from torch.distributed.rendezvous import rendezvous  # which a PyTorch without torch.distributed lacks

    backend = "nccl" if mode.device().type == "cuda" else "gloo"
    try:
        store, *_ = next(rendezvous(address, rank, count, timeout=_MEETING))
        peers = Peers(store, rank, count, urlsplit(address).hostname or socket.gethostname(), _MEETING)
        torch.distributed.init_process_group(backend, store=store, timeout=_TRAINING, world_size=count, rank=rank)
    except (RuntimeError, ValueError, OSError) as error:
        found = f"the {count} solvers cannot meet at {address} ({error})"
        raise Error("NCCL", found, do="give each the same new_uid()") from error
    _joined[address] = peers
    # A process that ends with its group alive is aborted by Gloo's threads now and then.
    atexit.register(lambda: leave(getattr(sys, "last_value", None)))
    return peers


def leave(error: BaseException | None = None) -> None:
    """Leave the other processes; if this one fails with an error, they report it and end, too."""
    if _joined:
        _, peers = _joined.popitem()
        peers.end(f"{type(error).__name__}: {error}" if error else "")
        torch.distributed.destroy_process_group()


class NCCL:
    """Joins the solvers of `caffe.solver_count()` processes; this one has rank `caffe.solver_rank()`.

        uid = caffe.NCCL.new_uid()              once, then in each process, with its own rank:
        caffe.set_solver_count(2); caffe.set_solver_rank(rank); caffe.set_multiprocess(True)
        solver = caffe.SGDSolver("solver.prototxt")
        nccl = caffe.NCCL(solver, uid)
        nccl.bcast()
        solver.add_callback(nccl)
        solver.net.after_backward(nccl)         optional: exchange gradients while the backward pass still runs

    Every process then updates by the mean of all gradients, as if one batch had held all images. Gradients are added in the order
    of ranks, and the sum is bit-identical in all processes. The constructor returns when all processes have arrived. A process
    that dies ends all others. With after_backward, changes of `diff` by earlier callbacks may be lost, as some gradients are
    already sent.
    """

    def __init__(self, solver: Solver, uid: bytes | str):
        self._solver = solver
        self._peers = join(uid)
        exchanged = [blob for blob in reversed(solver.net.learnable_params()) if blob.has_gradient]
        # In the order in which a backward pass reaches them, the unreached ones last.
        exchanged.sort(key=lambda blob: not blob.leaf.requires_grad)
        self._buckets = [_Bucket(blobs, mode.solver_count(), solver.net.device) for blobs in _split(exchanged)]
        self._sent = 0
        self._during_backward = False
        self._passes: int | None = None
        """Number of backward passes of the current iteration; None outside of iterations."""
        solver.agree_to_stop(False)

    @staticmethod
    def new_uid() -> bytes:
        """A new meeting point for processes of this machine."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return f"tcp://127.0.0.1:{free.getsockname()[1]}".encode()

    def bcast(self) -> None:
        """Give every process the parameters of the first."""
        with self._collectives():
            for blob in self._solver.net.learnable_params():
                values = blob.tensor
                rows = values.contiguous()  # memory layouts may differ between processes
                torch.distributed.broadcast(rows, src=0)
                values.copy_(rows)

    def exchange_during_backward(self) -> None:
        """Send gradients as soon as the backward pass has finished them; called by `net.after_backward(nccl)`."""
        if self._during_backward:
            return
        self._during_backward = True
        for bucket in self._buckets:
            for blob in bucket.awaited:
                hook = functools.partial(self._count, bucket)
                blob.leaf.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call] # PyTorch lacks the types

    def on_start(self) -> None:
        self._passes = self._solver.param.iter_size
        for bucket in self._buckets:
            bucket.arrived = 0

    def _count(self, bucket: _Bucket, _: torch.Tensor) -> None:
        """Count a gradient of a bucket; autograd calls this once in each backward pass for each parameter, shared or not."""
        bucket.arrived += 1
        if self._passes is None:
            return
        # Every process sends its buckets in the same order. The last one waits for the end, as it carries whether to stop.
        for bucket in self._buckets[self._sent : -1]:
            if bucket.arrived < len(bucket.awaited) * self._passes:
                return
            self._send(bucket)

    def _send(self, bucket: _Bucket) -> None:
        with self._collectives():
            if not self._sent:
                self._peers.begin_round()
            self._sent += 1
            bucket.send(self._solver.wants_to_stop())

    def on_gradients_ready(self) -> None:
        """Replace each gradient by its mean over all processes."""
        for bucket in self._buckets[self._sent :]:
            self._send(bucket)
        self._sent, self._passes = 0, None
        with self._collectives():
            for bucket in self._buckets:
                bucket.add()
            wishes = [bucket.finish() for bucket in self._buckets]
        show_held_views()
        self._solver.agree_to_stop(bool(wishes[-1] > 0))

    @contextlib.contextmanager
    def _collectives(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, Error):
                raise
            raise self._peers.failure(str(error).splitlines()[0]) from error


def _split(blobs: Iterable[Parameter]) -> list[list[Parameter]]:
    """Parameters in groups of at least BUCKET values, except the last; at least one group, which may be empty."""
    groups: list[list[Parameter]] = [[]]
    for blob in blobs:
        if sum(other.count for other in groups[-1]) >= BUCKET:
            groups.append([])
        groups[-1].append(blob)
    return groups


@machine.in_numerics
def _mean(gradients: torch.Tensor) -> torch.Tensor:
    """The mean of each process's gradients, overwriting the first's: added in the order of ranks, as iter_size adds them."""
    first, *others = gradients
    for other in others:
        first.add_(other)
    return first.mul_(1 / len(gradients))  # type: ignore[no-any-return]


class _Bucket:
    """Gradients that are exchanged at once, in a row-major buffer.

    Every process gets a share of the buffer from all, adds it up in the order of ranks, and sends the sum to all: as much traffic
    as a ring's all-reduce, but the order of sums depends on neither network nor library.
    """

    def __init__(self, blobs: list[Parameter], count: int, device: torch.device):
        self.blobs = blobs
        self._device = device
        self.arrived = 0
        """Number of gradients that backward passes have finished in this iteration."""
        self.awaited = [blob for blob in blobs if blob.leaf.requires_grad]
        """Those whose gradients a backward pass computes; parameters without a loss have none, but decay."""
        self._count = count
        length = sum(blob.count for blob in blobs) + 1
        self._length = length + -length % count

    def send(self, stop: bool) -> None:
        """Start to send each process its share of the gradients and of the flag to stop."""
        self._buffer = torch.zeros(self._length, device=self._device)
        for blob, rows in self._rows():
            gradient = blob.gradient
            if gradient is not None:
                rows.copy_(gradient)
        self._buffer[-1] = stop
        self._received = torch.empty_like(self._buffer)
        self._work = torch.distributed.all_to_all_single(self._received, self._buffer, async_op=True)

    def add(self) -> None:
        """Compute the mean of this process's share, and start to send it to all."""
        self._work.wait()
        first = _mean(self._received.view(self._count, -1))
        self._work = torch.distributed.all_gather(list(self._buffer.view(self._count, -1)), first, async_op=True)

    def finish(self) -> torch.Tensor:
        """Store the means as gradients; returns the fraction of the processes that are asked to stop, a scalar."""
        self._work.wait()
        for blob, rows in self._rows():
            blob.gradient_or_zeros().copy_(rows)
        wishes = self._buffer[-1].clone()
        del self._buffer, self._received, self._work
        return wishes

    def _rows(self) -> Iterator[tuple[Parameter, torch.Tensor]]:
        """Each parameter with its part of the buffer, in its shape."""
        start = 0
        for blob in self.blobs:
            yield blob, self._buffer[start : start + blob.count].view(blob.shape)
            start += blob.count

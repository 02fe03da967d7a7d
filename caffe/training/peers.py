"""Liveness of processes that train together: a process that dies, or ends early, ends all others within 30 seconds.

Each process holds a TCP connection to the first one, which the kernel closes when a process dies: nothing is polled, and a
process that is busy or suspended does not count as dead. A host that disappears is detected by TCP's keepalive. Messages are
lines of text: `ended ROUNDS REASON` from a process that ends (without a reason unless it fails), and `failed MESSAGE` from the
first process to all others.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

from caffe import events
from caffe.errors import Error

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

GRACE = 5.0
"""Seconds within which a process must end by itself after another one has failed."""

_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}
"""TCP's options to drop a host that has not answered for 20 seconds, as far as the system has them."""


class Peers:
    """Connections to the other processes, which tell whether they still take part.

    store     where the first process publishes its port
    rank      rank of this process, of `count`
    host      name or address of the first process's host
    patience  how long to wait until all have connected; then TimeoutError
    """

    def __init__(self, store: Store, rank: int, count: int, host: str, patience: datetime.timedelta):
        self._rank = rank
        self._links: dict[int, socket.socket] = {}
        self._names: dict[int, str] = {}
        self._changed = threading.Condition()
        self._rounds = 0
        self._ended: dict[int, int] = {}
        self._failure = ""
        self._reported = threading.Event()
        if rank == 0:
            self._accept(store, count, host, time.monotonic() + patience.total_seconds())
        else:
            self._connect(store, host, patience)
        for other in self._links:
            threading.Thread(target=self._listen, args=(other,), daemon=True, name=f"solver {other}").start()

    # ---- meeting

    def _accept(self, store: Store, count: int, host: str, deadline: float) -> None:
        """Publish a port and wait until every other process has connected; connections without the token are closed."""
        token = secrets.token_hex(16)
        with _listening(host) as server:
            store.set("peers", f"{server.getsockname()[1]} {token} {_own_name()}")
            while len(self._links) < count - 1:
                server.settimeout(max(0.1, deadline - time.monotonic()))
                link, _ = server.accept()
                try:
                    given, rank, name = _first_line(link).split(" ", 2)
                except (OSError, ValueError):
                    given, rank, name = "", "", ""
                if secrets.compare_digest(given.encode(), token.encode()):
                    self._keep(int(rank), link, name)
                else:
                    link.close()

    def _connect(self, store: Store, host: str, patience: datetime.timedelta) -> None:
        """Connect to the first process once it has published its port."""
        store.wait(["peers"], patience)
        port, token, name = store.get("peers").decode().split(" ", 2)
        link = socket.create_connection((host, int(port)), patience.total_seconds())
        link.sendall(f"{token} {self._rank} {_own_name()}\n".encode())
        self._keep(0, link, name)

    def _keep(self, other: int, link: socket.socket, name: str) -> None:
        link.settimeout(None)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            if hasattr(socket, option):
                link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._links[other], self._names[other] = link, f"solver {other} ({name})"

    # ---- watching, on a thread for each connection

    def _listen(self, other: int) -> None:
        name, link = self._names[other], self._links[other]
        with contextlib.suppress(OSError), link.makefile(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                kind, _, rest = line.rstrip("\n").partition(" ")
                if kind == "failed":
                    self._fail(rest)
                    continue
                rounds, _, reason = rest.partition(" ")
                if reason:
                    self._fail(f"{name} has ended: {reason}")
                with self._changed:
                    self._ended[other] = int(rounds)
                self._check_early_ends()
        if other not in self._ended:
            self._fail(f"{name} has died")

    def _check_early_ends(self) -> None:
        """Fail if another process has ended, but this one needs its gradients."""
        with self._changed:
            early = [(other, rounds) for other, rounds in self._ended.items() if rounds < self._rounds]
        for other, rounds in early:
            self._fail(f"{self._names[other]} has ended after {rounds} iterations, before the others")

    def _fail(self, message: str) -> None:
        """Store the first failure, tell the others, and end this process if it does not end by itself."""
        with self._changed:
            if self._failure:
                return
            # The others are told first: they learn the cause before they see this process end.
            self._send(f"failed {message}")
            self._failure = message
            self._changed.notify_all()
        threading.Thread(target=self._end_process, args=(self._reported, message), daemon=True).start()

    @staticmethod
    def _end_process(event: threading.Event, message: str) -> None:
        """Unless `event` is set soon, log `message` and exit; the main thread may wait in a collective for ever."""
        if not event.wait(GRACE):
            events.process_failed(message)
            sys.stderr.flush()
            os._exit(1)

    def _send(self, line: str) -> None:
        for link in self._links.values():
            with contextlib.suppress(OSError):
                link.sendall(f"{line}\n".encode())

    # ---- the main thread's side

    def begin_round(self) -> None:
        """Call before each exchange of gradients; an Error if another process has failed or ended."""
        with self._changed:
            self._rounds += 1
        self._check_early_ends()
        if self._failure:
            raise self.failure("")

    def failure(self, symptom: str) -> Error:
        """The Error for a collective that failed with `symptom`; names the process that died."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure, GRACE)
            message = self._failure or f"a collective operation has failed ({symptom})"
        self._reported.set()
        return Error("NCCL", message, do="see that solver's own messages")

    def end(self, reason: str = "") -> None:
        """Tell the others that this process ends, with a reason if it fails.

        If another one has failed, this one must exit soon: a collective library may wait for the dead process.
        """
        self._send(f"ended {self._rounds} {' '.join(reason.split())}")
        if self._failure:
            self._reported.set()
            threading.Thread(target=self._end_process, args=(threading.Event(), self._failure), daemon=True).start()


def _own_name() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _listening(host: str) -> socket.socket:
    """A listening socket on the address of `host`; on all addresses if that is not an address of this machine."""
    family, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    try:
        return socket.create_server(address[:2], family=family)
    except OSError:
        return socket.create_server(("", 0))


def _first_line(link: socket.socket) -> str:
    """The first line received within 10 seconds; nothing after it is read."""
    link.settimeout(10)
    line = b""
    while not line.endswith(b"\n") and len(line) < 1000 and (byte := link.recv(1)):
        line += byte
    return line.decode(errors="replace").rstrip("\n")

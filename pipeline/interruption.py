"""Signals that ask a step to stop: the first one is recorded, further ones are ignored until the step has ended."""

import contextlib
import signal
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""Ctrl-C; time limits, preemption and cancellation (Slurm, PBS); a closed terminal; warnings of LSF and Grid Engine.

The default action of each would end the process. rules/train.smk lists the same signals."""


class Interrupted(KeyboardInterrupt):
    """A step was asked to stop, and has stopped; the text says where, and what running it again does.

    number  the signal
    """

    def __init__(self, number: signal.Signals, text: str):
        super().__init__(f"interrupted by {number.name} {text}")
        self.number = number


class Interruption:
    """Records signals.

    received  the first signal, or None
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._deferred = False

    def defer(self) -> None:
        """Only record a signal from now on, for code that checks `received` when it can stop. Before, it raises Interrupted."""
        self._deferred = True

    def handle(self, number: int, _frame: object) -> None:
        """The handler of a signal."""
        if self.received is None:
            self.received = signal.Signals(number)
            if not self._deferred:
                raise Interrupted(self.received, "before training began; nothing is lost, run again")


@contextlib.contextmanager
def catch_signals() -> Iterator[Interruption]:
    """Handle SIGNALS while the block runs; those that are ignored, as SIGINT is in the background, stay ignored."""
    interruption = Interruption()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, interruption.handle)
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """Ignore SIGNALS until the process has ended."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)

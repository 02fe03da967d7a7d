"""Signals that ask a step to stop: the first one is recorded, further ones are ignored until the step has ended."""

import contextlib
import signal
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""Ctrl-C; time limits, preemption and cancellation (Slurm, PBS); a closed terminal; warnings of LSF and Grid Engine.

The default action of each would end the process. rules/train.smk lists the same signals."""


class Interrupted(KeyboardInterrupt):
    """A step has stopped on a signal; the text says where, and what happens when it is run again.

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
    """Handle SIGNALS while the block runs, except those that are ignored, as SIGINT is in the background."""
    interruption = Interruption()
    before = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) != signal.SIG_IGN}
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

"""The memory layout of a net's images: channels-last, or on a GPU in `fast` the one in which a solver's passes take less time.

Two-dimensional convolutions are faster channels-last on CPUs, and by a GPU's tensor cores; but not each of them, as those of many
groups. In `fast`, where cuDNN's algorithms are chosen by time as well, a solver's first passes are timed in both layouts. In
`fp32` they are not, so that a training gives the same numbers again.
"""

import os

import torch

from caffe import events
from caffe.engine import cuda_graphs, mode
from caffe.errors import Error

SWITCH = "CAFFE_LAYOUT"
"""Environment variable; the name of a layout, which is then used on GPUs without timing any."""
NAMES = {"channels_last": torch.channels_last, "row_major": torch.contiguous_format}
WARM, TIMED = cuda_graphs.FIRST + 2, 5
"""Passes in a layout in which cuDNN chooses algorithms and graphs are captured; and those after them that are timed, of which the
shortest counts: others may have waited for data."""
CHOSEN_AFTER = 2 * (WARM + TIMED) + WARM
"""Passes after which a layout is chosen, and its graphs are captured."""
GAIN = 0.97
"""Part of the time channels-last takes that the other layout must not exceed to be chosen."""

Layout = torch.memory_format
_Timing = tuple[torch.cuda.Event, torch.cuda.Event]


class Layouts:
    """The layout for each of a solver's passes on a device: until it is chosen, one after the other.

    is_timed  whether passes are those of a training
    """

    def __init__(self, device: torch.device, is_timed: bool):
        self._device = device
        self.usual: Layout = torch.channels_last
        given = os.environ.get(SWITCH, "") if device.type == "cuda" else ""
        if given:
            if given not in NAMES:
                raise Error(f"environment variable {SWITCH}", repr(given), f"one of {', '.join(NAMES)}")
            self.usual = NAMES[given]
        self._is_measured = is_timed and device.type == "cuda" and not given
        self._layout = self.usual
        self._passes = 0
        self._start: torch.cuda.Event | None = None
        self._timings: list[_Timing] = []
        self._milliseconds: dict[Layout, float] = {}
        self._had_failed = False
        """Whether a capture on the device had failed before the first pass."""

    def next(self) -> Layout:
        """The layout for the pass that follows."""
        if mode.numerics() != "fast":
            return self.usual
        if self._is_measured and len(self._timings) >= TIMED:
            self._milliseconds[self._layout] = min(elapsed(*each) for each in self._timings)
            self._go_on()
        return self._layout

    def _go_on(self) -> None:
        """Take the next layout; or the faster one, for good."""
        self._passes, self._timings = 0, []
        if len(self._milliseconds) == 1:
            self._layout = torch.contiguous_format
            return
        usual, other = self._milliseconds[self.usual], self._milliseconds[torch.contiguous_format]
        self._is_measured = False
        if other > GAIN * usual:
            self._layout = self.usual
        name = next(name for name, layout in NAMES.items() if layout is self._layout)
        events.layout_chosen(name, usual, other)

    def keep(self) -> None:
        """Time no more passes: the layout stays, or is that of another net."""
        self._is_measured = False

    def begin(self, layout: Layout | None) -> None:
        """Note that the GPU is given a pass, in a layout, which may not yet be that wanted."""
        if not self._is_timing() or layout is not self._layout:
            return
        if not self._passes and not self._milliseconds:
            self._had_failed = self._device in cuda_graphs.failed
        self._passes += 1
        if self._passes > WARM:
            self._start = _recorded(self._device)

    def end(self) -> None:
        """Note that it has been given the whole pass, forward and backward."""
        if self._start is not None:
            self._timings.append((self._start, _recorded(self._device)))
            self._start = None

    def _is_timing(self) -> bool:
        self._start = None
        if not self._is_measured or mode.numerics() != "fast":
            return False
        # Several GPUs have to agree on the layout in which they exchange gradients; another one may need more memory; and where a
        # GPU captures no more, passes cannot be compared with those before.
        has_failed = bool(self._milliseconds) and (self._device in cuda_graphs.failed) != self._had_failed
        if mode.solver_count() > 1 or not cuda_graphs.has_room(self._device) or has_failed:
            self._is_measured = False
            self._layout = self.usual
        return self._is_measured


def _recorded(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def elapsed(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
    """Milliseconds between two events; waits for the second."""
    end.synchronize()
    return float(start.elapsed_time(end))

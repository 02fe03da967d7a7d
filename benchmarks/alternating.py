"""Time steps of several sides in turns that alternate, so that drift of the machine affects all alike."""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Length:
    """Number of passes of a turn, and how many of them are warm-up: at first the cache has the other sides' memory."""

    passes: int
    warm_up: int

    @classmethod
    def of(cls, milliseconds: float) -> "Length":
        """For passes that take about so long."""
        if milliseconds < 50:
            return cls(20, 5)
        return cls(5, 1) if milliseconds < 400 else cls(2, 0)


def on_cpu(step: Callable[[], object], passes: int) -> list[float]:
    """Milliseconds of each pass."""
    times = []
    for _ in range(passes):
        start = time.perf_counter()
        step()
        times.append((time.perf_counter() - start) * 1000)
    return times


def on_gpu(step: Callable[[], object], passes: int) -> list[float]:
    """Milliseconds of each pass between CUDA events, which do not make the host wait after each."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(passes + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize()
    return [first.elapsed_time(second) for first, second in itertools.pairwise(events)]


def turns(
    steps: dict[str, Callable[[], object]],
    count: int,
    length: Length,
    timed: Callable[[Callable[[], object], int], list[float]] = on_cpu,
) -> dict[str, list[list[float]]]:
    """Milliseconds of each side's passes in each turn. A first turn is not counted, and every other one is in reverse order."""
    times: dict[str, list[list[float]]] = {which: [] for which in steps}
    for number in range(count + 1):
        for which in list(steps)[:: -1 if number % 2 else 1]:
            taken = timed(steps[which], length.passes)[length.warm_up :]
            if number:
                times[which].append(taken)
    return times


def median_times(steps: dict[str, Callable[[], object]], count: int, passes: int, warm_up: int) -> dict[str, float]:
    """Median milliseconds of each step, of `count` turns."""
    taken = turns(steps, count, Length(passes, warm_up))
    return {which: statistics.median(each for turn in times for each in turn) for which, times in taken.items()}

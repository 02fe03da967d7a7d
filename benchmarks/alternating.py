"""Compare steps of `caffe` and of PyTorch by hand in rounds that alternate, so that drift of the machine affects all alike."""

import statistics
import time
from collections.abc import Callable


def median_times(steps: dict[str, Callable[[], object]], rounds: int, passes: int, warm_up: int) -> dict[str, float]:
    """Median milliseconds of each step; the first round and the first `warm_up` of a round's `passes` are not counted."""
    times: dict[str, list[float]] = {which: [] for which in steps}
    for number in range(rounds + 1):
        for which, step in steps.items():
            for index in range(passes):
                start = time.perf_counter()
                step()
                if number and index >= warm_up:
                    times[which].append(time.perf_counter() - start)
    return {which: statistics.median(values) * 1000 for which, values in times.items()}


def summary(medians: dict[str, float]) -> tuple[str, float]:
    """The medians and their ratio as text, and the ratio: `caffe` to the faster of the other steps."""
    ratio = medians["caffe"] / min(value for which, value in medians.items() if which != "caffe")
    figures = ", ".join(f"{which} {value:.2f} ms" for which, value in medians.items())
    return f"{figures}; ratio {ratio:.2f}", ratio

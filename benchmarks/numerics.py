"""Benchmark a training iteration in each `numerics`, in one run, on the CPU or a GPU.

    python benchmarks/numerics.py [lenet] [cifar10_quick] [caffenet] [NET …] [--numerics fast] [--rounds 5] [--gpu] [--operations]

Rounds alternate between the numerics, so that drift of the machine affects all. Prints median milliseconds of each, and the ratio
to fp32. --operations also prints which of PyTorch's operations the time of `reproducible` goes to.
"""

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("GLOG_minloglevel", "2")

import alternating
import nets
import numpy as np
import sides
import torch

import caffe
from caffe.engine import cuda_graphs, layouts
from caffe.numerics import NUMERICS
from caffe.numerics.registry import OURS

NETS = ("lenet", "cifar10_quick", "caffenet")
"""Those that are measured by default."""


def solver_of(name: str, measured: nets.Measured, gpu: bool) -> caffe.Solver:
    """A solver that trains a net on one batch of random pixels, in bytes as images have them, and random labels."""
    with tempfile.TemporaryDirectory() as folder:
        solver = caffe.get_solver(str(sides.write_solver(name, measured, Path(folder), gpu)))
    draw = np.random.default_rng(1)
    solver.net.blobs["data"].data[...] = draw.integers(0, 256, measured.shape) - 128
    solver.net.blobs["label"].data[...] = draw.integers(0, measured.classes, measured.batch)
    return solver


def iteration(solver: caffe.Solver, numerics: str) -> Callable[[], object]:
    """A training iteration in that numerics."""

    def step() -> None:
        caffe.set_numerics(numerics)
        solver.step(1)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return step


def seconds_of_operations(step: Callable[[], object], iterations: int) -> Counter[str]:
    """Seconds in each of our implementations."""
    seconds: Counter[str] = Counter()

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **options)
            seconds[name] += time.perf_counter() - start
            return result

        return call

    originals = dict(OURS)
    OURS.update({name: timed(name, function) for name, function in originals.items()})
    for _ in range(iterations):
        step()
    OURS.update(originals)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", choices=[*nets.NETS, []], metavar="NET", help=", ".join(nets.NETS))
    parser.add_argument("--numerics", nargs="+", choices=NUMERICS, default=list(NUMERICS), help="besides fp32; all by default")
    parser.add_argument("--images", type=int, help="of a batch; by default the net's own number, of CaffeNet 16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--operations", action="store_true")
    a = parser.parse_args()
    if a.gpu:
        caffe.set_mode_gpu()
    for name in a.nets or NETS:
        measured = nets.NETS[name]
        measured = replace(measured, batch=a.images or (16 if name == "caffenet" else measured.batch))
        # A solver for each: on a GPU, passes are captured in one numerics, after the first few.
        chosen = [each for each in NUMERICS if each in ("fp32", *a.numerics)]
        steps = {numerics: iteration(solver_of(name, measured, a.gpu), numerics) for numerics in chosen}
        for numerics, step in steps.items() if a.gpu else ():
            for _ in range(layouts.CHOSEN_AFTER if numerics == "fast" else cuda_graphs.FIRST + 2):
                step()
        steps["fp32"]()
        length = alternating.Length.of(alternating.on_cpu(steps["fp32"], 1)[0])
        passes = length.passes
        medians = alternating.median_times(steps, a.rounds, passes, length.warm_up)
        figures = (f"{which} {ms:.1f} ms ({ms / medians['fp32']:.2f})" for which, ms in medians.items())
        print(f"{name}, {measured.batch} images", *figures, sep="  ", flush=True)
        if a.operations:
            seconds = seconds_of_operations(steps["reproducible"], passes)
            for operation, spent in seconds.most_common(8):
                print(f"    {operation:36}{spent / passes * 1000:9.2f} ms")


if __name__ == "__main__":
    main()

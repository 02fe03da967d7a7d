"""Benchmark a training iteration in each `numerics`, in one run, on the CPU or a GPU.

    python benchmarks/numerics.py [lenet] [cifar10_quick] [caffenet] --rounds 5 [--gpu] [--operations]

Rounds alternate between the numerics, so that drift of the machine affects all. Prints median milliseconds of each, and the ratio
to fp32. --operations also prints which of PyTorch's operations the time of `reproducible` goes to.
"""

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GLOG_minloglevel", "2")

import alternating
import numpy as np
import torch

import caffe
from caffe import layers as L
from caffe.engine import captured
from caffe.numerics import NUMERICS
from caffe.numerics.registry import OURS
from pipeline.nets.models import TEMPLATES, Last

SHAPES = {"lenet": [64, 1, 28, 28], "cifar10_quick": [100, 3, 32, 32], "caffenet": [16, 3, 227, 227]}
SOLVER = 'net: "{net}" base_lr: 1e-9 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.0005 random_seed: 1 solver_mode: {mode}'


def solver_of(name: str, mode: str) -> caffe.Solver:
    """A solver that trains a template on one batch of random pixels, in bytes as images have them, and random labels."""
    shape, n = SHAPES[name], caffe.NetSpec()
    n.data, n.label = L.Input(shape=[{"dim": shape}, {"dim": shape[:1]}], ntop=2)
    TEMPLATES[name].body(n, Last("score", 10))
    n.loss = L.SoftmaxWithLoss(n.score, n.label)
    with tempfile.TemporaryDirectory() as folder:
        net, path = Path(folder) / "net.prototxt", Path(folder) / "solver.prototxt"
        caffe.write_prototxt(net, n.to_proto())
        path.write_text(SOLVER.format(net=net, mode=mode))
        solver = caffe.get_solver(str(path))
    draw = np.random.default_rng(1)
    solver.net.blobs["data"].data[...] = draw.integers(0, 256, shape) - 128
    solver.net.blobs["label"].data[...] = draw.integers(0, 10, shape[:1])
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
    parser.add_argument("nets", nargs="*", choices=[*SHAPES, []])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--operations", action="store_true")
    a = parser.parse_args()
    if a.gpu:
        caffe.set_mode_gpu()
    for name in a.nets or SHAPES:
        passes = 2 if name == "caffenet" else 10
        # A solver for each: on a GPU, passes are captured in one numerics, after the first few.
        steps = {numerics: iteration(solver_of(name, "GPU" if a.gpu else "CPU"), numerics) for numerics in NUMERICS}
        for step in steps.values() if a.gpu else ():
            for _ in range(captured.FIRST + 2):
                step()
        medians = alternating.median_times(steps, a.rounds, passes, passes // 4)
        print(name, *(f"{which} {ms:.1f} ms ({ms / medians['fp32']:.2f})" for which, ms in medians.items()), sep="  ", flush=True)
        if a.operations:
            seconds = seconds_of_operations(steps["reproducible"], passes)
            for operation, spent in seconds.most_common(8):
                print(f"    {operation:36}{spent / passes * 1000:9.2f} ms")


if __name__ == "__main__":
    main()

"""Benchmark the kernels for GPUs against PyTorch's operations, in one run.

    python benchmarks/kernels.py [--turns 7] [--csv FILE]

For sizes of published nets: median milliseconds of the kernel and of the operations that it replaces, in alternate turns, and the
rate at which the kernel reads and writes what it has to. A kernel that fails, or gives other values, is named, and the exit is 1.
With --tiny, sizes are so small that Triton's interpreter can compute them on a processor (TRITON_INTERPRET=1).
"""

import argparse
import csv
import itertools
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("GLOG_minloglevel", "2")

import alternating
import torch
from torch import Tensor

from caffe import kernels
from caffe.kernels.rules import Rule
from caffe.layer_types import loss, normalization, response, utility
from caffe.training import solver_types

MAPS = {"CaffeNet's norm1, 256": (256, 96, 27, 27), "CaffeNet's norm2, 256": (256, 256, 13, 13)}
SUMS = {"ResNet-50's first block, 256": (256, 256, 56, 56), "ResNet-50's last block, 256": (256, 2048, 7, 7)}
LAYOUTS = {torch.channels_last: "channels-last", torch.contiguous_format: "row-major"}
SCORES = {"ImageNet, 256": (256, 1000), "21 classes of pixels, 4": (4, 21, 500, 500)}
PARAMETERS = {
    "CaffeNet's weights": [34848, 307200, 884736, 663552, 442368, 37748736, 16777216, 4096000],
    "ResNet-50's, about": [150_000] * 160,
}
TINY = 4096
"""Number of values with --tiny."""


@dataclass(frozen=True)
class Comparison:
    """A kernel, the operations that it replaces, and the bytes that either has to read and write; both give the same tensors."""

    name: str
    size: str
    kernel: Callable[[], object]
    plain: Callable[[], object]
    moved: int


def comparisons(device: torch.device, tiny: bool) -> Iterator[Comparison]:
    """All of them, one after the other, as their values take much memory."""
    from caffe.kernels import chains, softmax
    from caffe.kernels import response as lrn

    random = torch.Generator(device).manual_seed(1)

    def drawn(
        shape: tuple[int, ...], dtype: torch.dtype = torch.float32, layout: torch.memory_format = torch.contiguous_format
    ) -> Tensor:
        shape = _tiny(shape) if tiny else shape
        return torch.randn(shape, generator=random, device=device, dtype=dtype).contiguous(memory_format=layout)

    def compared(name: str, size: str, kernel: object, plain: Callable[..., object], tensors: int, *given: object) -> Comparison:
        first = given[0]
        return Comparison(
            name, size, lambda: kernel.compute(*given), lambda: plain(*given), tensors * first.numel() * first.itemsize
        )

    for dtype, (layout, name) in itertools.product((torch.float32, torch.bfloat16), LAYOUTS.items()):
        kind = f"{str(dtype).partition('.')[2]}, {name}"
        for size, shape in MAPS.items():
            x, gradient, numbers = drawn(shape, dtype, layout), drawn(shape, dtype, layout), (5, 1e-4, 0.75, 1.0)
            yield compared(f"LRN, {kind}", size, lrn.lrn, response._forward, 2, x, *numbers)
            yield compared(f"LRN's gradient, {kind}", size, lrn.lrn_backward, response._backward, 3, x, gradient, *numbers)
        for size, shape in SUMS.items():
            x, other = drawn(shape, dtype, layout), drawn(shape, dtype, layout)
            factors = torch.ones(x.shape[1], device=device)
            yield compared(f"sum and ReLU, {kind}", size, chains.sum_relu, utility._sum_relu, 3, x, other)
            yield compared(f"ReLU's gradient, {kind}", size, chains.relu_backward, utility._relu_backward, 3, x, other)
            yield compared(f"Scale and ReLU, {kind}", size, chains.scale, normalization._scaled, 2, x, factors, factors, True)
            given = x, x, other, factors, True, True
            yield compared(f"Scale's gradient, {kind}", size, chains.scale_backward, normalization._scaled_backward, 4, *given)
    for size, shape in SCORES.items():
        scores = drawn(shape)
        target = torch.zeros_like(scores[:, :1], dtype=torch.int64)
        given = scores, target, None, 1, loss.FLT_MIN
        yield compared("softmax and loss", size, softmax.softmax_loss, loss._log_probabilities, 2, *given)
        given = scores, target, None, torch.ones((), device=device), 1, 0.0, 0.0
        yield compared("its gradient", size, softmax.softmax_loss_backward, loss._differences, 2, *given)
    for size, counts in PARAMETERS.items():
        for name in ("SGD", "Adam"):
            yield _update(name, size, [min(count, TINY) for count in counts[:3]] if tiny else counts, device)


def _tiny(shape: tuple[int, ...]) -> tuple[int, ...]:
    sizes = list(shape)
    while torch.Size(sizes).numel() > TINY:
        largest = sizes.index(max(sizes))
        sizes[largest] = max(1, sizes[largest] // 2)
    return tuple(sizes)


def _update(name: str, size: str, counts: list[int], device: torch.device) -> Comparison:
    """An update of parameters by a rule; the plain one is the solver's."""
    from caffe.kernels.update import Fused

    rule = Rule(name, 1.0, 0.0005, False, 0.9, 0.999, 0.99, 1e-8)
    solver = next(each for each in vars(solver_types).values() if getattr(each, "type", None) == name)
    rate = torch.full((), 0.01, device=device)
    ours, theirs = ([[torch.ones(count, device=device) for count in counts] for _ in range(4)] for _ in range(2))
    fused = Fused(device)

    class Numbers:
        class param:
            momentum2, delta = rule.momentum2, rule.delta

        def momentum(self) -> float:
            return rule.momentum

    def kernel() -> object:
        data, gradients, *histories = ours
        return fused(rule, data, gradients, histories, rate)

    def plain() -> object:
        data, gradients, *histories = theirs
        torch._foreach_add_(gradients, data, alpha=rule.decay)
        updates = solver.update(Numbers(), gradients, histories, rate)
        torch._foreach_sub_(data, updates)
        return updates

    return Comparison(f"update, {name}", size, kernel, plain, (5 if name == "SGD" else 8) * 4 * sum(counts))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--csv", type=Path, help="write the figures here")
    parser.add_argument("--tiny", action="store_true")
    a = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    if not has_gpu and not a.tiny:
        print("error: PyTorch finds no CUDA device")
        return 1
    device = torch.device("cuda" if has_gpu else "cpu")
    length = alternating.Length(1, 0) if a.tiny else alternating.Length(20, 5)
    rows, failed = [], False
    print("| kernel | values | kernel, ms | PyTorch's operations, ms | kernel over them | GB/s |\n|---|---|---|---|---|---|")
    for each in comparisons(device, a.tiny):
        steps = {"kernel": each.kernel, "plain": each.plain}
        try:
            mine, theirs = (kernels._tensors(compute()) for compute in steps.values())
            problem = "" if kernels.are_close(mine, theirs) else "it gives other values"
        except Exception as error:
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if problem:
            failed = True
            print(f"| {each.name} | {each.size} | FAILED: {problem} | | | |", flush=True)
            continue
        times = alternating.turns(steps, a.turns, length, alternating.on_gpu if has_gpu else alternating.on_cpu)
        ours, others = (statistics.median(each for turn in times[which] for each in turn) for which in steps)
        rows.append((each.name, each.size, ours, others, ours / others, each.moved / ours / 1e6))
        print("| {} | {} | {:.3f} | {:.3f} | {:.2f} | {:.0f} |".format(*rows[-1]), flush=True)
    if a.csv:
        with a.csv.open("w", newline="") as file:
            csv.writer(file).writerows([("kernel", "values", "kernel ms", "plain ms", "ratio", "GB/s"), *rows])
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""Benchmark forward and backward of published nets, by `caffe` and by hand in PyTorch, in one run.

    python benchmarks/forward_backward.py FOLDER [--nets lenet64 caffenet64 …] [--rounds 5] [--memory]

FOLDER has the nets as prototxt, with DummyData for training and with an input for forward only: lenet64, cifarquick100,
caffenet64, googlenet32; caffenet10, googlenet10. Rounds alternate between the two sides and, by hand, between PyTorch's two
memory layouts, of which the faster is compared. If passes are short, the first ones of a round are warm-up: the cache has the
other side's memory. Prints median milliseconds and the ratio of the medians; below 1, `caffe` is faster.
--memory prints the peak memory of training instead, each side in its own process.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GLOG_minloglevel", "2")

import alternating
import by_hand
import torch
from torch import nn

import caffe

NETS = {
    "lenet64": (by_hand.lenet, (64, 1, 28, 28), True),
    "cifarquick100": (by_hand.cifar10_quick, (100, 3, 32, 32), True),
    "caffenet64": (by_hand.caffenet, (64, 3, 227, 227), True),
    "googlenet32": (by_hand.GoogLeNet, (32, 3, 224, 224), True),
    "caffenet10": (by_hand.caffenet, (10, 3, 227, 227), False),
    "googlenet10": (by_hand.GoogLeNet, (10, 3, 224, 224), False),
}


def by_caffe(path: Path, training: bool) -> Callable[[], object]:
    """A pass of `caffe`."""
    net = caffe.Net(str(path), caffe.TRAIN if training else caffe.TEST)
    if not training:
        return lambda: net.forward()

    def step() -> None:
        net.clear_param_diffs()
        net.forward()
        net.backward()

    return step


def hand_written(module: nn.Module, shape: tuple[int, ...], training: bool, channels_last: bool) -> Callable[[], object]:
    """A pass of the net by hand; in training on new random data each time, like DummyData."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    module = module.train(training)
    module.to(memory_format=layout)  # type: ignore[call-overload] # missing in PyTorch's annotations
    if not training:
        data = torch.zeros(shape).contiguous(memory_format=layout)

        def forward() -> None:
            with torch.no_grad():
                module(data)

        return forward
    label = torch.ones(shape[0], dtype=torch.long)

    def step() -> None:
        data = torch.empty(shape).normal_(0, 50).contiguous(memory_format=layout)
        module.zero_grad()
        torch.autograd.backward(by_hand.loss_of(module(data), label))

    return step


def measure(folder: Path, name: str, rounds: int) -> None:
    """Print milliseconds and ratio for one net."""
    make, shape, training = NETS[name]
    steps = {
        "caffe": by_caffe(folder / f"{name}.prototxt", training),
        "by hand": hand_written(make(), shape, training, False),
        "by hand, channels-last": hand_written(make(), shape, training, True),
    }
    passes, warm_up = (20, 5) if shape[2] < 100 else (2, 0)
    text, _ = alternating.summary(alternating.median_times(steps, rounds, passes, warm_up))
    print(f"{name}, {'forward and backward' if training else 'forward'}: {text}", flush=True)


def peak(folder: Path, name: str, side: str) -> None:
    """Train three iterations of one side, with momentum; print the peak memory of this process in MB."""
    make, shape, training = NETS[name]
    if side == "caffe":
        with tempfile.NamedTemporaryFile("w", suffix=".prototxt") as file:
            file.write(f'net: "{folder / name}.prototxt" base_lr: 1e-9 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.0005')
            file.flush()
            caffe.get_solver(file.name).step(3)
    else:
        module = make()
        step = hand_written(module, shape, training, side == "channels-last")
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-9, momentum=0.9, weight_decay=0.0005)
        for _ in range(3):
            step()
            optimizer.step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def compare_memory(folder: Path, name: str) -> None:
    """Print the peak memory of each side."""
    figures = {}
    for side in ("caffe", "by-hand", "channels-last"):
        words = [sys.executable, __file__, str(folder), "--nets", name, "--peak", side]
        figures[side] = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    ratio = figures["caffe"] / min(figures["by-hand"], figures["channels-last"])
    print(f"{name}, peak memory: {', '.join(f'{k} {v} MB' for k, v in figures.items())}; ratio {ratio:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--rounds", type=int, default=5, help="turns for each side")
    parser.add_argument("--memory", action="store_true", help="compare peak memory instead of time")
    parser.add_argument("--peak", choices=("caffe", "by-hand", "channels-last"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name in arguments.nets:
        if arguments.peak:
            peak(arguments.folder, name, arguments.peak)
        elif arguments.memory:
            compare_memory(arguments.folder, name)
        else:
            measure(arguments.folder, name, arguments.rounds)


if __name__ == "__main__":
    main()

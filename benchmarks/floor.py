"""The least time of a net on this machine: operations and bytes of each layer, over rates that are measured.

A layer takes at least its operations over the rate of products, or its bytes over the rate of copies, whichever is longer; a net
takes the sum. Counted are direct convolutions (an algorithm with fewer multiplications, such as Winograd's, may be below this
floor), each tensor read or written once, and nothing for layers that can be computed while their bottom is in a register: those
in place, and Concat, which can be written to its place at once. What an implementation adds in layouts, in second passes, in
calls, and in kernels that do not reach the rate of a large product, is the gap between the floor and what is measured.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import alternating
import numpy as np
import torch
from torch.nn import functional

import caffe

FLOAT = 4
"""Bytes of a number."""
SIZES = tuple(1 << power for power in range(18, 29, 2))
"""Bytes of the tensors whose copying is measured, 256 KiB to 256 MiB: small ones stay in a cache."""
PRODUCTS = (256, 512, 1024)
"""Sizes of the square matrices whose products are measured on a CPU; on a GPU 16 times these."""
KERNELS = (1, 5)
"""Kernel sizes of the convolutions that are measured, too: other libraries compute them, and none by Winograd's algorithm."""


@dataclass(frozen=True)
class Rates:
    """What the machine does at best, measured.

    operations  additions and multiplications in float32 per second, in the fastest of matrix products and convolutions
    copies      {bytes read and written: bytes per second}
    """

    operations: float
    copies: dict[int, float]

    def bytes_per_second(self, moved: float) -> float:
        """The rate at which so many bytes are moved, between those measured."""
        sizes = [math.log(size) for size in self.copies]
        return float(np.interp(math.log(max(moved, 1.0)), sizes, list(self.copies.values())))

    def __str__(self) -> str:
        small, large = next(iter(self.copies.values())), list(self.copies.values())[-1]
        return (
            f"{self.operations / 1e9:.0f} GFLOP/s in products; {small / 1e9:.1f} GB/s copying {SIZES[0] >> 10} KiB, "
            f"{large / 1e9:.1f} GB/s copying {SIZES[-1] >> 20} MiB"
        )


@dataclass(frozen=True)
class Cost:
    """Operations and bytes moved by a layer."""

    operations: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.operations + other.operations, self.bytes + other.bytes)

    def seconds(self, rates: Rates) -> float:
        """The least time."""
        return max(self.operations / rates.operations, self.bytes / rates.bytes_per_second(self.bytes))


def measure_rates(device: torch.device) -> Rates:
    """Measure the rates: the fastest of several passes, with PyTorch's threads."""
    timed = alternating.on_gpu if device.type == "cuda" else alternating.on_cpu

    def seconds(step: Callable[[], object], least: float = 0.5) -> float:
        """The fastest pass, of passes that take so many seconds in all."""
        timed(step, 2)
        once = min(timed(step, 2)) / 1000
        return min(timed(step, max(5, min(1000, round(least / once))))) / 1000

    operations = []
    for size in PRODUCTS:
        side = 16 * size if device.type == "cuda" else size
        one, other, product = (torch.randn(side, side, device=device) for _ in range(3))
        operations.append(2 * side**3 / seconds(lambda: torch.mm(one, other, out=product)))  # noqa: B023, called at once
    images, channels = (256, 512) if device.type == "cuda" else (4, 64)
    batch = torch.randn(images, channels, 28, 28, device=device).contiguous(memory_format=torch.channels_last)
    for kernel in KERNELS:
        weights = torch.randn(channels, channels, kernel, kernel, device=device).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            taken = seconds(lambda: functional.conv2d(batch, weights, padding=kernel // 2))  # noqa: B023
        operations.append(2 * batch.numel() * weights.numel() / channels / taken)
    copies = {}
    for size in SIZES:
        source, target = (torch.zeros(size // FLOAT, device=device) for _ in range(2))
        copies[2 * size] = 2 * size / seconds(lambda: target.copy_(source))  # noqa: B023
    return Rates(max(operations), copies)


def floor(costs: list[Cost], rates: Rates) -> float:
    """The least milliseconds of a net's layers, one after another."""
    return 1000 * sum(cost.seconds(rates) for cost in costs)


def total(costs: list[Cost]) -> Cost:
    """The sum of all layers."""
    return sum(costs, Cost())


def count(net: caffe.Net, training: bool) -> list[Cost]:
    """The costs of the net's layers, in forward or, if `training`, in forward, backward and an SGD update with momentum."""
    costs = []
    for name, bottoms, tops, kind in _layers(net):
        learned = [math.prod(blob.shape) for blob in net.params.get(name, ())] if kind != "BatchNorm" else []
        if kind in ("Convolution", "InnerProduct"):
            costs.append(_product(net, name, bottoms + tops, learned[0], training))
        elif kind == "BatchNorm":
            # The sums of a batch are only known after it: x is read again to be normalised, and in backward with the gradient.
            moved = 5 if training else 0
            costs.append(Cost(bytes=FLOAT * moved * sum(tops)))
        elif kind not in ("Input", "Concat", "Split") and not _is_in_place(net, name):
            # In backward, the gradients of all these, and at least one of the values: which was the largest, what was normalised.
            moved = 2 * (sum(bottoms) + sum(tops)) + sum(tops) if training else sum(bottoms) + sum(tops)
            costs.append(Cost(bytes=FLOAT * moved))
        if training and learned:  # reads parameter, gradient and history, writes parameter and history
            costs.append(Cost(bytes=5 * FLOAT * sum(learned)))
    return costs


def _layers(net: caffe.Net) -> Iterator[tuple[str, list[int], list[int], str]]:
    """(name, sizes of bottoms, sizes of tops, type) of each layer; a label is a value per image."""
    for name, layer in net.layer_dict.items():
        bottoms, tops = (
            [math.prod(net.blobs[blob].shape) for blob in names[name]] for names in (net.bottom_names, net.top_names)
        )
        yield name, bottoms, tops, layer.type


def _is_in_place(net: caffe.Net, name: str) -> bool:
    return list(net.bottom_names[name]) == list(net.top_names[name])


def _product(net: caffe.Net, name: str, blobs: list[int], weights: int, training: bool) -> Cost:
    """A product of weights with each position; in training also the gradients of the weights and, but for data, of the bottom."""
    top = net.blobs[net.top_names[name][0]].shape
    positions = math.prod(top) / net.params[name][0].shape[0]
    is_first = net.bottom_names[name][0] in ("data", *net.inputs)
    products = (2 if is_first else 3) if training else 1
    once = Cost(2 * positions * weights, FLOAT * (sum(blobs) + weights))
    return Cost(products * once.operations, products * once.bytes)

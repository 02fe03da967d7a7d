"""One training iteration of a published net, by `caffe` and by hand in PyTorch, in one run.

    python benchmarks/train_step.py [lenet] [cifar10_quick] [frozen_body] --rounds 40

Each net trains on DummyData: a Gaussian batch drawn anew for every iteration, by both sides. Turns of twenty iterations alternate
between the two, so that the machine's drift meets both; the first five of a turn, which find the other side's memory in the
cache, do not count. The learning rate is next to nothing, so that neither side runs into denormal numbers. By hand, the faster
of PyTorch's two memory layouts counts. Prints median milliseconds and the ratio of the medians; below 1, `caffe` is faster.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("GLOG_minloglevel", "2")

import by_hand
import torch
from torch import nn
from torch.nn import functional

import caffe
from caffe import layers as L
from caffe import params as P

SOLVER = """net: "{net}"
base_lr: 1e-9 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.0005 max_iter: 1000000 solver_mode: CPU random_seed: 1
"""
TURN, UNSETTLED = 20, 5
FILLED = {"weight_filler": {"type": "xavier"}, "param": [{"lr_mult": 1}, {"lr_mult": 2}]}


def _data(shape: list[int]):
    filler = [{"type": "gaussian", "std": 50.0}, {"type": "constant", "value": 1.0}]
    return L.DummyData(shape=[{"dim": shape}, {"dim": shape[:1]}], data_filler=filler, ntop=2)


def lenet():
    """LeNet at batch 64: the net, and the same by hand."""
    n = caffe.NetSpec()
    n.data, n.label = _data([64, 1, 28, 28])
    n.conv1 = L.Convolution(n.data, num_output=20, kernel_size=5, **FILLED)
    n.pool1 = L.Pooling(n.conv1, pool=P.Pooling.MAX, kernel_size=2, stride=2)
    n.conv2 = L.Convolution(n.pool1, num_output=50, kernel_size=5, **FILLED)
    n.pool2 = L.Pooling(n.conv2, pool=P.Pooling.MAX, kernel_size=2, stride=2)
    n.ip1 = L.InnerProduct(n.pool2, num_output=500, **FILLED)
    n.relu1 = L.ReLU(n.ip1, in_place=True)
    n.ip2 = L.InnerProduct(n.relu1, num_output=10, **FILLED)
    n.loss = L.SoftmaxWithLoss(n.ip2, n.label)
    return n.to_proto(), by_hand.lenet(), (64, 1, 28, 28)


def cifar10_quick():
    """cifar10_quick at batch 100: the net, and the same by hand."""
    n = caffe.NetSpec()
    n.data, n.label = _data([100, 3, 32, 32])
    n.conv1 = L.Convolution(n.data, num_output=32, pad=2, kernel_size=5, **FILLED)
    n.pool1 = L.Pooling(n.conv1, pool=P.Pooling.MAX, kernel_size=3, stride=2)
    n.relu1 = L.ReLU(n.pool1, in_place=True)
    n.conv2 = L.Convolution(n.relu1, num_output=32, pad=2, kernel_size=5, **FILLED)
    n.relu2 = L.ReLU(n.conv2, in_place=True)
    n.pool2 = L.Pooling(n.relu2, pool=P.Pooling.AVE, kernel_size=3, stride=2)
    n.conv3 = L.Convolution(n.pool2, num_output=64, pad=2, kernel_size=5, **FILLED)
    n.relu3 = L.ReLU(n.conv3, in_place=True)
    n.pool3 = L.Pooling(n.relu3, pool=P.Pooling.AVE, kernel_size=3, stride=2)
    n.ip1 = L.InnerProduct(n.pool3, num_output=64, **FILLED)
    n.ip2 = L.InnerProduct(n.ip1, num_output=10, **FILLED)
    n.loss = L.SoftmaxWithLoss(n.ip2, n.label)
    return n.to_proto(), by_hand.cifar10_quick(), (100, 3, 32, 32)


def frozen_body():
    """A net with 10.5 M frozen parameters under a small learned layer at batch 16: the net, and the same by hand."""
    n = caffe.NetSpec()
    n.data, n.label = _data([16, 64, 4, 4])
    frozen = {"weight_filler": {"type": "xavier"}, "param": [{"lr_mult": 0}, {"lr_mult": 0}]}
    n.ip1 = L.InnerProduct(n.data, num_output=10240, **frozen)
    n.relu1 = L.ReLU(n.ip1, in_place=True)
    n.ip2 = L.InnerProduct(n.relu1, num_output=10, **FILLED)
    n.loss = L.SoftmaxWithLoss(n.ip2, n.label)
    return n.to_proto(), by_hand.frozen_body(), (16, 64, 4, 4)


def hand_written(module: nn.Module, shape: tuple[int, ...], channels_last: bool):
    """A training step of the usual kind."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    module = module.to(memory_format=layout)
    optimizer = torch.optim.SGD((p for p in module.parameters() if p.requires_grad), lr=1e-9, momentum=0.9, weight_decay=0.0005)
    label = torch.ones(shape[0], dtype=torch.long)

    def step():
        data = torch.empty(shape).normal_(0, 50).contiguous(memory_format=layout)
        optimizer.zero_grad()
        functional.cross_entropy(module(data), label).backward()
        optimizer.step()

    return step


def ours(net: caffe.proto.caffe_pb2.NetParameter):
    """A training step of `caffe`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.prototxt"
        caffe.write_prototxt(path, net)
        solver_path = Path(folder) / "solver.prototxt"
        solver_path.write_text(SOLVER.format(net=path))
        solver = caffe.get_solver(str(solver_path))
    return lambda: solver.step(1)


def measure(name: str, rounds: int) -> float:
    """Print the figures of one net; returns the ratio."""
    net, hand, shape = NETS[name]()
    steps = {
        "caffe": ours(net),
        "by hand": hand_written(hand, shape, False),
        "by hand, channels-last": hand_written(NETS[name]()[1], shape, True),
    }
    times: dict[str, list[float]] = {which: [] for which in steps}
    for turn in range(rounds + 1):
        for which, step in steps.items():
            for index in range(TURN):
                start = time.perf_counter()
                step()
                if turn and index >= UNSETTLED:
                    times[which].append(time.perf_counter() - start)
    medians = {which: statistics.median(values) * 1000 for which, values in times.items()}
    ratio = medians["caffe"] / min(medians["by hand"], medians["by hand, channels-last"])
    figures = ", ".join(f"{which} {value:.2f} ms" for which, value in medians.items())
    print(f"{name}, batch {shape[0]}: {figures}; ratio {ratio:.2f}", flush=True)
    return ratio


NETS = {"lenet": lenet, "cifar10_quick": cifar10_quick, "frozen_body": frozen_body}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", metavar="net", help=f"of {', '.join(NETS)}; all by default")
    parser.add_argument("--rounds", type=int, default=20, help=f"turns of {TURN} iterations for each side")
    arguments = parser.parse_args()
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in arguments.nets or NETS:
        measure(name, arguments.rounds)


if __name__ == "__main__":
    main()

"""Benchmark a training iteration of published nets, by `caffe` and by hand in PyTorch, in one run.

    python benchmarks/train_step.py [lenet] [cifar10_quick] [frozen_body] --rounds 40

Each net trains on DummyData: a new Gaussian batch for every iteration, on both sides. Rounds of twenty iterations alternate
between the two, so that drift of the machine affects both; the first five of a round are warm-up, since the cache has the other
side's memory. The learning rate is almost 0, to avoid denormal numbers. By hand, the faster of PyTorch's two memory layouts is
compared. Prints median milliseconds and the ratio of the medians; below 1, `caffe` is faster.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GLOG_minloglevel", "2")

import alternating
import by_hand
import torch
from torch import nn
from torch.nn import functional

import caffe
from caffe import layers as L
from caffe import params as P
from caffe.net_spec import Top
from caffe.proto import caffe_pb2

SOLVER = """net: "{net}"
base_lr: 1e-9 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.0005 max_iter: 1000000 solver_mode: CPU random_seed: 1
"""
ITERATIONS, WARM_UP = 20, 5
Net = tuple[caffe_pb2.NetParameter, nn.Module, tuple[int, ...]]
"""A net's prototxt, the same net by hand, the shape of its data."""
FILLED = {"weight_filler": {"type": "xavier"}, "param": [{"lr_mult": 1}, {"lr_mult": 2}]}


def _data(shape: list[int]) -> tuple[Top, Top]:
    filler = [{"type": "gaussian", "std": 50.0}, {"type": "constant", "value": 1.0}]
    data, label = L.DummyData(shape=[{"dim": shape}, {"dim": shape[:1]}], data_filler=filler, ntop=2)
    return data, label


def lenet() -> Net:
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


def cifar10_quick() -> Net:
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


def frozen_body() -> Net:
    """A net with 10.5 M frozen parameters and a small trained last layer at batch 16: the net, and the same by hand."""
    n = caffe.NetSpec()
    n.data, n.label = _data([16, 64, 4, 4])
    frozen = {"weight_filler": {"type": "xavier"}, "param": [{"lr_mult": 0}, {"lr_mult": 0}]}
    n.ip1 = L.InnerProduct(n.data, num_output=10240, **frozen)
    n.relu1 = L.ReLU(n.ip1, in_place=True)
    n.ip2 = L.InnerProduct(n.relu1, num_output=10, **FILLED)
    n.loss = L.SoftmaxWithLoss(n.ip2, n.label)
    return n.to_proto(), by_hand.frozen_body(), (16, 64, 4, 4)


def hand_written(module: nn.Module, shape: tuple[int, ...], channels_last: bool) -> Callable[[], object]:
    """A training step in PyTorch."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    module.to(memory_format=layout)  # type: ignore[call-overload] # missing in PyTorch's annotations
    optimizer = torch.optim.SGD((p for p in module.parameters() if p.requires_grad), lr=1e-9, momentum=0.9, weight_decay=0.0005)
    label = torch.ones(shape[0], dtype=torch.long)

    def step() -> None:
        data = torch.empty(shape).normal_(0, 50).contiguous(memory_format=layout)
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(module(data), label))
        optimizer.step()

    return step


def ours(net: caffe_pb2.NetParameter) -> Callable[[], object]:
    """A training step of `caffe`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.prototxt"
        caffe.write_prototxt(path, net)
        solver_path = Path(folder) / "solver.prototxt"
        solver_path.write_text(SOLVER.format(net=path))
        solver = caffe.get_solver(str(solver_path))
    return lambda: solver.step(1)


def measure(name: str, rounds: int) -> float:
    """Print milliseconds and ratio for one net; return the ratio."""
    net, hand, shape = NETS[name]()
    steps = {
        "caffe": ours(net),
        "by hand": hand_written(hand, shape, False),
        "by hand, channels-last": hand_written(NETS[name]()[1], shape, True),
    }
    text, ratio = alternating.summary(alternating.median_times(steps, rounds, ITERATIONS, WARM_UP))
    print(f"{name}, batch {shape[0]}: {text}", flush=True)
    return ratio


NETS = {"lenet": lenet, "cifar10_quick": cifar10_quick, "frozen_body": frozen_body}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", metavar="net", help=f"of {', '.join(NETS)}; all by default")
    parser.add_argument("--rounds", type=int, default=20, help=f"turns of {ITERATIONS} iterations for each side")
    arguments = parser.parse_args()
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in arguments.nets or NETS:
        measure(name, arguments.rounds)


if __name__ == "__main__":
    main()

"""caffe time: benchmark a net and each of its layers, forward and backward."""

import argparse
from collections.abc import Callable

import torch

from caffe import events
from caffe.commands import devices, flags
from caffe.engine.net import Net
from caffe.formats import prototxt
from caffe.proto import caffe_pb2
from caffe.timer import Timer


def main(argv: list[str]) -> int:
    """`caffe time -model net.prototxt [-iterations 50] [-phase TRAIN]`."""
    parser = flags.parser(
        "time",
        "Benchmark a net and each of its layers.",
        "Passes run the whole net at once, as in training; layers are then measured one by one in separate passes, which take\n"
        "longer. A net without a loss gets gradients of 1 at its outputs and computes those of its inputs.",
    )
    flags.add(parser, "model", "the net's prototxt", required=True, type=flags.existing)
    flags.add(parser, "weights", "comma-separated weight files; they do not affect the times", type=flags.files)
    flags.add(parser, "iterations", "number of passes (default: 50)", default=50, type=int)
    flags.add(parser, "phase", "phase of the net (default: TRAIN)", default="TRAIN", choices=("TRAIN", "TEST"))
    flags.add_net_flags(parser)
    arguments = flags.parse(parser, argv)
    with flags.logging(arguments):
        benchmark(arguments)
    return 0


def benchmark(arguments: argparse.Namespace) -> None:
    """Run the passes and log their times in milliseconds."""
    devices.use_one("time", arguments.gpu, arguments.numerics)
    net = _create_net(arguments)
    events.first_forward()
    events.first_loss(_forward(net))
    events.first_backward()
    _backward(net)
    events.benchmark_begun()
    events.benchmark_sized(arguments.iterations)
    count = len(net.layers)
    passes: dict[Callable[[Net], object], float] = {_forward: 0.0, _backward: 0.0}
    layers_forward, layers_backward = [0.0] * count, [0.0] * count
    timer = Timer()
    for iteration in range(arguments.iterations):
        before = sum(passes.values())
        for run in passes:
            timer.start()
            run(net)
            passes[run] += timer.ms
        events.passes_timed(iteration + 1, sum(passes.values()) - before)
        for index in range(count):
            timer.start()
            net._forward(index, index)
            layers_forward[index] += timer.ms
        for index in reversed(range(count)):
            timer.start()
            net._backward(index, index)
            layers_backward[index] += timer.ms
    net.close()
    events.layer_times_begun()
    for index, name in enumerate(net._layer_names):
        events.layer_forward_timed(name, layers_forward[index] / arguments.iterations)
        events.layer_backward_timed(name, layers_backward[index] / arguments.iterations)
    total = sum(passes.values())
    events.forward_timed(passes[_forward] / arguments.iterations)
    events.backward_timed(passes[_backward] / arguments.iterations)
    events.forward_backward_timed(total / arguments.iterations)
    events.total_timed(total)
    events.benchmark_ended()


def _create_net(arguments: argparse.Namespace) -> Net:
    """Create the net; with force_backward and gradients of 1 at its outputs if it has no loss."""
    phase = caffe_pb2.Phase.Value(arguments.phase)
    state = {"level": arguments.level, "stages": arguments.stage.split(",")}
    net = Net(arguments.model, phase, **state)
    if not any(net.blob_loss_weights.values()):
        net.close()
        definition = prototxt.read_net(arguments.model)
        definition.force_backward = True
        net = Net(definition, phase, **state)
        for name in net.outputs:
            net.blobs[name].gradient = torch.ones(net.blobs[name].shape, device=net.device)
    for path in filter(None, arguments.weights.split(",")):
        net.copy_from(path.strip())
    return net


def _forward(net: Net) -> float:
    if any(net.blob_loss_weights.values()):
        loss = float(net.forward_loss())
        net.check_deferred()
        return loss
    net._forward(0, len(net.layers) - 1)
    return 0.0


def _backward(net: Net) -> None:
    net.clear_param_diffs()
    if any(net.blob_loss_weights.values()):
        net.backward_params()
    else:
        net._backward(len(net.layers) - 1, 0)

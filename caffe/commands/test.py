"""caffe test: score a net on its own data layers."""

import argparse

import numpy as np

from caffe import events
from caffe.commands import devices, flags
from caffe.engine.net import Net
from caffe.proto.caffe_pb2 import TEST


def main(argv: list[str]) -> int:
    """`caffe test -model net.prototxt -weights a.caffemodel [-iterations 50]`."""
    parser = flags.parser("test", "Score a net in phase TEST: the mean of its outputs over a number of batches.")
    flags.add(parser, "model", "the net's prototxt", required=True, type=flags.existing)
    flags.add(parser, "weights", "its .caffemodel or .caffemodel.h5 files, comma-separated", required=True, type=flags.files)
    flags.add(parser, "iterations", "number of batches (default: 50)", default=50, type=int)
    flags.add_net_flags(parser)
    arguments = flags.parse(parser, argv)
    with flags.logging(arguments):
        score(arguments)
    return 0


def score(arguments: argparse.Namespace) -> None:
    """Run the batches; log each output of each batch, and the means."""
    devices.use_one("test", arguments.gpu, arguments.numerics)
    net = Net(arguments.model, TEST, level=arguments.level, stages=arguments.stage.split(","))
    for path in arguments.weights.split(","):
        net.copy_from(path.strip())
    events.scoring_begun(arguments.iterations)
    totals = {name: np.zeros(()) for name in net.outputs}
    loss = 0.0
    for batch in range(arguments.iterations):
        loss += float(net.forward_loss())
        net.check_deferred()
        for name in net.outputs:
            values = net.blobs[name].data.reshape(-1).astype(np.float64)
            totals[name] = totals[name] + values
            for value in values:
                events.batch_scored(batch, name, value)
    net.close()
    events.loss_scored(loss / arguments.iterations)
    for name, total in totals.items():
        weight = net.blob_loss_weights[name]
        for mean in np.atleast_1d(total) / arguments.iterations:
            weighted = f" (* {weight:g} = {weight * mean:g} loss)" if weight else ""
            events.output_scored(name, mean, weighted)

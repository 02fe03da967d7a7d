"""Test a net: the mean of each output over a number of batches, logged as BVLC Caffe logs it."""

from collections.abc import Mapping

import torch

from caffe import events
from caffe.engine import machine
from caffe.engine.net import Net


@torch.no_grad()
@machine.in_numerics
def mean_outputs(net: Net, batches: int, with_loss: bool) -> dict[str, torch.Tensor]:
    """Run a number of batches and log the mean of each output; returns {output: mean}, empty for 0 batches.

    with_loss  also log the mean of the weighted loss
    """
    totals: dict[str, torch.Tensor] = {}
    losses: list[torch.Tensor] = []
    for _ in range(batches):
        loss = net.forward_loss()
        if with_loss:
            losses.append(loss.clone())
        for name in net.outputs:
            value = net.blobs[name].tensor
            totals[name] = totals[name] + value if name in totals else value.clone()
    net.check_deferred()
    means = {name: total / batches for name, total in totals.items()}
    if losses:
        events.test_loss(sum(torch.stack(losses).tolist()) / batches)
    log_outputs(events.test_output, net, means)
    return means


def log_outputs(event: events.Event, net: Net, outputs: Mapping[str, torch.Tensor]) -> None:
    """Log every value of a net's outputs, with its part of the loss."""
    values = [(name, value) for name, tensor in outputs.items() for value in tensor.flatten().tolist()]
    for number, (name, value) in enumerate(values):
        weight = net.blob_loss_weights[name]
        event(number, name, value, f" (* {weight:g} = {weight * value:g} loss)" if weight else "")

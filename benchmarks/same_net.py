"""Check that a net of `caffe` and a module by hand are the same: parameters, scores, losses and gradients."""

import copy
from dataclasses import dataclass, replace

import nets
import numpy as np
import torch
from by_hand import LAYOUTS, loss_of
from torch import nn

import caffe

LIMIT = 1e-4
"""The largest difference of scores, by their largest, and of losses, relative, that float32's rounding explains."""
GRADIENT_LIMIT = 1e-2
"""Of gradients, by their norm: a rounding may choose another maximum of a window. In deep nets with BatchNorm roundings grow, and
the limit is four times the difference of the module's own gradient in float32 from that in float64, in the worse layout."""


class DifferentNetError(Exception):
    """The module by hand is another net."""


@dataclass(frozen=True)
class Differences:
    """Relative differences of the net from the module, and in `rounding` of the module's gradient in float32 from float64."""

    scores: float
    loss: float
    gradient: float
    rounding: float

    def __str__(self) -> str:
        figures = f"scores differ by {self.scores:.0e}, losses by {self.loss:.0e}, gradients by {self.gradient:.0e}"
        return f"{figures} (by hand in float32 from float64: {self.rounding:.0e})"

    def check(self, name: str) -> None:
        """Raise DifferentNetError if rounding does not explain them."""
        for what, limit in (("scores", LIMIT), ("loss", LIMIT), ("gradient", max(GRADIENT_LIMIT, 4 * self.rounding))):
            if not getattr(self, what) <= limit:
                found = f"{name}: the {what} in caffe and by hand differ by {getattr(self, what):.1e}, relative"
                raise DifferentNetError(f"{found}; rounding explains {limit:.0e}")


def copy_weights(net: caffe.Net, module: nn.Module) -> None:
    """Copy parameters and the statistics of BatchNorm, by their order. Raises DifferentNetError for other shapes."""
    places = _learned(net)
    with torch.no_grad():
        for (place, blob), (name, parameter) in zip(places, module.named_parameters(), strict=False):
            if tuple(blob.shape) != tuple(parameter.shape):
                shapes = f"{tuple(blob.shape)} in caffe, {tuple(parameter.shape)} by hand"
                raise DifferentNetError(f"{net.name}: {place} and {name}: shape {shapes}")
            parameter.copy_(torch.from_numpy(blob.data))
        statistics = [blobs for layer, blobs in net.params.items() if net.layer_dict[layer].type == "BatchNorm"]
        normalised = [each for each in module.modules() if isinstance(each, nn.BatchNorm2d)]
        for what, mine, theirs in (
            ("parameters", len(places), sum(1 for _ in module.parameters())),
            ("batch normalisations", len(statistics), len(normalised)),
        ):
            if mine != theirs:
                raise DifferentNetError(f"{net.name}: {mine} {what} in caffe, {theirs} by hand")
        for (mean, variance, weight), each in zip(statistics, normalised, strict=True):
            each.running_mean.copy_(torch.from_numpy(mean.data / weight.data))
            each.running_var.copy_(torch.from_numpy(variance.data / weight.data))


def compare(name: str, measured: nets.Measured, module: nn.Module) -> tuple[caffe.Net, Differences]:
    """Compare at batch 2; returns a net in training whose weights and statistics the module now has, and the differences.

    Raises DifferentNetError if rounding does not explain them.
    """
    small = replace(measured, batch=2)
    caffe.set_random_seed(1)
    net = caffe.Net(nets.training(name, small, dropout=False), caffe.TRAIN)
    draw = np.random.default_rng(1)
    data = draw.standard_normal(small.shape, np.float32)  # small: Caffe's losses are at most 87
    label = np.arange(2) % measured.classes
    net.forward(data=data, label=label)  # gives BatchNorm its statistics
    copy_weights(net, module)
    deployed = caffe.Net(nets.without_fillers(nets.forward(name, small)), caffe.TEST)
    deployed.share_with(net)
    (scores,) = (values.copy() for values in deployed.forward(data=data).values())
    losses = net.forward()
    net.backward()
    differences = _differences(net, module, (data, label), scores, losses)
    differences.check(name)
    return net, differences


def check_scores(place: str, scores: np.ndarray, expected: np.ndarray) -> None:
    """Raise DifferentNetError if scores differ by more than rounding from those of `caffe`, of the same shape."""
    difference = float(np.abs(scores - expected).max() / np.abs(expected).max())
    if not difference <= LIMIT:
        raise DifferentNetError(
            f"{place}: the scores differ from caffe's by {difference:.1e} of the largest, more than {LIMIT:.0e}"
        )


def _differences(
    net: caffe.Net, module: nn.Module, batch: tuple[np.ndarray, np.ndarray], scores: np.ndarray, losses: dict[str, np.ndarray]
) -> Differences:
    """The net's results on a batch against the module's."""
    device = next(module.parameters()).device
    data, label = (torch.from_numpy(values).to(device) for values in batch)
    with torch.inference_mode():
        by_hand = module.eval()(data).cpu().numpy()
    loss, _ = _gradient(module, data, label)
    _, exact = _gradient(module, data.double(), label)
    layouts = (_gradient(module, data.contiguous(memory_format=layout), label)[1] for layout in LAYOUTS.values())
    mine = [blob.diff for _, blob in _learned(net)]
    own_loss = sum(float(values) * net.blob_loss_weights[name] for name, values in losses.items())
    return Differences(
        float(np.abs(scores.reshape(by_hand.shape) - by_hand).max() / np.abs(by_hand).max()),
        abs(own_loss / loss - 1),
        _distance(mine, exact),
        max(_distance(single, exact) for single in layouts),
    )


def _gradient(module: nn.Module, data: torch.Tensor, label: torch.Tensor) -> tuple[float, list[np.ndarray]]:
    """The loss in training, and its gradient, of a copy of the module in the data's precision and without dropout."""
    module = copy.deepcopy(module).to(data.dtype).train()
    for each in module.modules():
        if isinstance(each, nn.Dropout):
            each.p = 0.0
    loss = loss_of(module(data), label)
    return loss.item(), [each.cpu().numpy() for each in torch.autograd.grad(loss, list(module.parameters()))]


def _distance(gradient: list[np.ndarray], exact: list[np.ndarray]) -> float:
    """The norm of the difference, relative to the norm."""
    difference = sum(float(np.square(one - other).sum()) for one, other in zip(gradient, exact, strict=True))
    return float((difference / sum(float(np.square(each).sum()) for each in exact)) ** 0.5)


def _learned(net: caffe.Net) -> list[tuple[str, caffe.Blob]]:
    """(layer and number, blob) of the parameters that a gradient changes."""
    return [
        (f"{layer}, {number}", blob)
        for layer, blobs in net.params.items()
        if net.layer_dict[layer].type != "BatchNorm"
        for number, blob in enumerate(blobs)
    ]

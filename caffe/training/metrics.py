"""Rows of metrics: the displayed and tested figures of a training iteration, for callbacks."""

import time
from collections.abc import Callable, Mapping

import torch

from caffe.engine.net import Net

METRICS = ("iteration", "seconds", "loss", "learning_rate", "test_loss", "test_accuracy")
"""Columns of each row of metrics; further outputs of the test net follow."""


class Metrics:
    """Collects the row of an iteration and passes it to callbacks.

    names    columns of a row
    on_row   callbacks for each iteration that displays or tests
    on_test  callbacks after each test
    """

    def __init__(self, net: Net, test_net: Net | None, started: float):
        self._net = net
        self._started = started
        self._outputs = _measured_outputs(test_net) if test_net else {}
        self._accuracy = _accuracies(net)[:1]
        self.names = list(dict.fromkeys([*METRICS, *self._outputs.values(), *(["accuracy"] if self._accuracy else [])]))
        self.on_row: list[Callable[[dict[str, float | None]], None]] = []
        self.on_test: list[Callable[[dict[str, float | None]], None]] = []
        self._row: dict[str, float] = {}

    def note(self, **figures: float) -> None:
        """Add figures of the current iteration."""
        self._row |= figures

    def note_training(self, loss: float) -> None:
        """Add the displayed figures of training."""
        self.note(loss=loss)
        for name in self._accuracy:
            self.note(accuracy=float(self._net.blobs[name].tensor))

    def note_test(self, means: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> None:
        """Add the outputs of the first test net: their means over a test, and their weights in its loss."""
        for name, metric in self._outputs.items():
            self._row[metric] = float(means[name].sum()) * (weights[name] or 1)

    def show_test(self, iteration: int) -> None:
        """Pass the row so far to the callbacks of tests."""
        for callback in self.on_test:
            callback(self._measured(iteration))

    def emit(self, iteration: int) -> None:
        """Pass the row to its callbacks, if it has any figures, and begin the next."""
        if self._row:
            row = self._measured(iteration)
            self._row = {}
            for callback in self.on_row:
                callback(row)

    def _measured(self, iteration: int) -> dict[str, float | None]:
        seconds = round(time.monotonic() - self._started, 3)
        return dict.fromkeys(self.names) | self._row | {"iteration": iteration, "seconds": seconds}


def _measured_outputs(net: Net) -> dict[str, str]:
    """{output of a test net: its column in a row of metrics}, the loss and the accuracy first."""
    single = [name for name in net.outputs if net.blobs[name].count == 1]
    losses = [name for name in net.outputs if net.blob_loss_weights[name]]
    chosen = {}
    for names, usual in ((losses, "loss"), (_accuracies(net), "accuracy")):
        if names:
            chosen[usual if usual in names else names[0]] = f"test_{usual}"
    others = {name: f"test_{name}" for name in single if name not in chosen and f"test_{name}" not in chosen.values()}
    return chosen | others


def _accuracies(net: Net) -> list[str]:
    """Outputs of Accuracy layers that have one value; first the one called `accuracy`, if any."""
    accuracies = {top: layer.compares_labels and not layer.is_loss for layer in net.layers for top in layer.param.top}
    single = [name for name in net.outputs if net.blobs[name].count == 1 and not net.blob_loss_weights[name]]
    return sorted((name for name in single if accuracies[name]), key=lambda name: name != "accuracy")

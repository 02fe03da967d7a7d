"""Solver: the training loop, learning-rate policies, tests and snapshots. The update rules are in solver_types."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from caffe import glog
from caffe.engine import machine, mode
from caffe.engine.blob import Parameter
from caffe.engine.executor import laid_out_as
from caffe.engine.net import Net
from caffe.errors import SolverError
from caffe.formats import prototxt
from caffe.proto import caffe_pb2
from caffe.training import diagnosis, snapshots

Tensors = list[torch.Tensor]


@dataclass
class Group:
    """Parameters with equal multipliers, and what the rule remembers of each.

    `data`, `histories` and the result of `gradients()` are lists of tensors, one for each parameter, with their axes in the order
    of memory, so that an update is one pass over memory whatever the layout.
    """

    lr_mult: float
    decay_mult: float
    blobs: list[Parameter]
    remembered: list[Tensors]
    data: Tensors = field(default_factory=list)
    histories: list[Tensors] = field(default_factory=list)
    orders: list[int] = field(default_factory=list)
    turned: list[bool] = field(default_factory=list)
    """Which parameters are channels-last."""

    def arrange(self) -> None:
        """Follow the parameters where their memory has moved, or where a copy of it on the host was written."""
        for blob in self.blobs:
            blob.fetch()
        orders = [blob.owner.order for blob in self.blobs]
        if orders == self.orders:
            return
        self.orders = orders
        self.turned = [not blob.leaf.is_contiguous() for blob in self.blobs]
        for history in self.remembered:
            for memory, blob in zip(history, self.blobs, strict=True):
                memory.data = laid_out_as(memory, blob.tensor)
        self.data = self._in_memory_order(blob.tensor for blob in self.blobs)
        self.histories = [self._in_memory_order(history) for history in self.remembered]

    def gradients(self) -> Tensors:
        """The parameters' gradients; zeros where there is none."""
        return self._in_memory_order(blob.gradient_or_zeros() for blob in self.blobs)

    def show_updates(self, updates: Tensors) -> None:
        """Let the parameters' diffs show what has been subtracted."""
        for blob, update, turned in zip(self.blobs, updates, self.turned, strict=True):
            blob.show_update(update.permute(0, 3, 1, 2) if turned else update)

    def _in_memory_order(self, tensors: Iterable[torch.Tensor]) -> Tensors:
        return [tensor.permute(0, 2, 3, 1) if turned else tensor for tensor, turned in zip(tensors, self.turned, strict=True)]


class Solver:
    """Trains a net as a solver prototxt says: `caffe.SGDSolver("solver.prototxt")`, or `caffe.get_solver` for any type.

    net        the net in training; test_nets, those that test it, with its parameters
    iter       iterations done
    param      the SolverParameter
    metrics    what a row of metrics holds, by name; see `on_metrics`
    history    what the update rule remembers: one array for each parameter of `net.learnable_params()`, then, for rules with two
               histories, one more for each. Those of frozen parameters (lr_mult 0) are zeros without memory, and read-only.
    snapshot_folder  where the loop writes snapshots that will be moved to snapshot_prefix's folder later; None: to the latter
    """

    type = ""
    histories = 1
    """How many arrays of the shape of each parameter the rule remembers."""

    def __init__(self, solver_file: str, param: caffe_pb2.SolverParameter | None = None):
        self.path = os.fsdecode(solver_file)
        self.param = param or prototxt.read_solver(self.path)
        glog.info("solver.cpp:45", "Initializing solver from parameters: \n" + prototxt.text_of(self.param).rstrip("\n"))
        self._check()
        if self.param.random_seed >= 0:
            mode.set_random_seed(self.param.random_seed)
        self.iter = 0
        self.current_step = 0
        self.snapshot_folder: str | os.PathLike | None = None
        self._callbacks: list[tuple[Callable, Callable]] = []
        self._on_metrics: list[Callable[[dict], None]] = []
        self._on_test: list[Callable[[dict], None]] = []
        self._on_iteration: list[Callable[[], None]] = []
        self._row: dict = {}
        self._request: str | None = None
        self._agreed_to_stop: bool | None = None
        self._losses: deque[torch.Tensor] = deque()
        self._recalled = False
        self._last_loss: float | None = None
        self._started = time.monotonic()
        self.net = self._train_net()
        self.test_nets = self._test_nets()
        self._outputs = _measured_outputs(self.test_nets[0]) if self.test_nets else {}
        self._accuracy = _accuracies(self.net)[:1]
        self.metrics = list(dict.fromkeys([*METRICS, *self._outputs.values(), *(["accuracy"] if self._accuracy else [])]))
        for net in (self.net, *self.test_nets):
            net.debug_info = net.debug_info or self.param.debug_info
        self._parameters = self.net.learnable_params()
        self._frozen = [blob for blob in self._parameters if not blob.lr_mult]
        self._with_gradient = [blob for blob in self._parameters if blob.has_gradient]
        self.history = [_empty_history(blob) for _ in range(self.histories) for blob in self._parameters]
        self._groups = self._grouped()
        glog.info("solver.cpp:57", "Solver scaffolding done.")

    # ---- making

    def _check(self) -> None:
        p = self.param
        if p.average_loss < 1:
            raise SolverError(self.path, f"average_loss {p.average_loss}", "it must be at least 1")
        if p.iter_size < 1:
            raise SolverError(self.path, f"iter_size {p.iter_size}", "it must be at least 1")
        if p.lr_policy not in _POLICIES:
            raise SolverError(self.path, f'lr_policy "{p.lr_policy}"', f"there are {', '.join(_POLICIES)}")
        if p.lr_policy == "step" and p.stepsize < 1:
            raise SolverError(self.path, 'lr_policy "step" without stepsize', do="give stepsize: iterations between steps")
        if p.regularization_type not in ("L1", "L2"):
            raise SolverError(self.path, f'regularization_type "{p.regularization_type}"', "there are L1 and L2")
        stem = str(Path(self.path).with_suffix(""))
        if not p.snapshot_prefix:
            p.snapshot_prefix = stem
        elif Path(p.snapshot_prefix).is_dir():
            p.snapshot_prefix = str(Path(p.snapshot_prefix) / Path(stem).name)

    def _train_net(self) -> Net:
        p = self.param
        given = [field for field in ("train_net_param", "train_net", "net_param", "net") if p.HasField(field)]
        if len(given) != 1:
            found = " and ".join(given) or "no net"
            raise SolverError(self.path, found, "exactly one of net, net_param, train_net, train_net_param is wanted")
        value = getattr(p, given[0])
        if isinstance(value, str):
            glog.info("solver.cpp:102", f"Creating training net from {'net' if given[0] == 'net' else given[0]} file: {value}")
        state = caffe_pb2.NetState(phase=caffe_pb2.TRAIN)
        net = self._net(value, state, p.train_state)
        self._load_weights(net)
        return net

    def _load_weights(self, net: Net) -> None:
        for files in self.param.weights:
            for path in files.split(","):
                glog.info("solver.cpp:72", f"Finetuning from {path.strip()}")
                net.copy_from(path.strip())

    def _test_nets(self) -> list[Net]:
        p = self.param
        sources: list = [*p.test_net_param, *p.test_net]
        rest = len(p.test_iter) - len(sources)
        if rest < 0:
            raise SolverError(self.path, f"{len(p.test_iter)} test_iter for {len(sources)} test nets", "each test net wants one")
        shared = p.net_param if p.HasField("net_param") else p.net if p.HasField("net") else None
        if rest and shared is None:
            raise SolverError(self.path, f"{len(p.test_iter)} test_iter", f"there are {len(sources)} test nets")
        sources += [shared] * rest
        if p.test_state and len(p.test_state) != len(sources):
            raise SolverError(
                self.path, f"{len(p.test_state)} test_state for {len(sources)} test nets", "there is one for each, or none"
            )
        if sources and p.test_interval < 1:
            raise SolverError(self.path, "test nets without test_interval", do="give test_interval: iterations between tests")
        nets = []
        for index, source in enumerate(sources):
            kind = f"net file: {source}" if isinstance(source, str) else "net_param"
            glog.info("solver.cpp:190", f"Creating test net (#{index}) specified by {kind}")
            state = p.test_state[index] if p.test_state else caffe_pb2.NetState()
            net = self._net(source, caffe_pb2.NetState(phase=caffe_pb2.TEST), state)
            self._load_weights(net)
            net.share_with(self.net)
            nets.append(net)
        return nets

    def _grouped(self) -> list[Group]:
        """The parameters that are not frozen, by their multipliers: one operation updates all that share them."""
        groups: dict[tuple[float, float], Group] = {}
        for index, blob in enumerate(self._parameters):
            if not blob.lr_mult:
                continue
            key = (blob.lr_mult, blob.decay_mult)
            group = groups.setdefault(key, Group(*key, [], [[] for _ in range(self.histories)]))
            group.blobs.append(blob)
            for part in range(self.histories):
                group.remembered[part].append(self.history[part * len(self._parameters) + index])
        return list(groups.values())

    def load_history(self, arrays: Iterable[torch.Tensor]) -> None:
        """Replace `history`; what a frozen parameter's holds in `arrays` is dropped, and it stays 0."""
        for mine, values, blob in zip(self.history, arrays, self._parameters * self.histories, strict=True):
            if blob.lr_mult:
                mine.copy_(values.view(mine.shape))

    @staticmethod
    def _net(source, state: caffe_pb2.NetState, given: caffe_pb2.NetState) -> Net:
        state.MergeFrom(given)
        return Net(source, state.phase, level=state.level if state.HasField("level") else None, stages=list(state.stage))

    # ---- training

    def solve(self, resume_file: str | None = None) -> None:
        """Train until max_iter, from a solver state if one is given."""
        glog.info("solver.cpp:289", f"Solving {self.net.name}")
        glog.info("solver.cpp:290", f"Learning Rate Policy: {self.param.lr_policy}")
        if resume_file:
            glog.info("solver.cpp:297", f"Restoring previous solver status from {resume_file}")
            self.restore(resume_file)
        p = self.param
        self.step(p.max_iter - self.iter)
        if p.snapshot_after_train and (not p.snapshot or self.iter % p.snapshot):
            self.snapshot()
        if self._stops():
            self._emit()
            glog.info("solver.cpp:314", "Optimization stopped early.")
            return
        if p.display and self.iter % p.display == 0:
            self._losses.append(self.net.forward_loss())
            glog.info("solver.cpp:327", f"Iteration {self.iter}, loss = {self.smoothed_loss():g}")
            self._show_training()
        if p.test_interval and self.iter % p.test_interval == 0:
            self.test_all()
        self._emit()
        glog.info("solver.cpp:332", "Optimization Done.")

    def step(self, iterations: int) -> None:
        """Train for a number of iterations, testing and snapshotting when they are due."""
        p = self.param
        stop = self.iter + iterations
        self._losses = deque(self._losses if self._recalled else (), p.average_loss)
        self._recalled = False
        self._request = None
        if self._agreed_to_stop:
            self._agreed_to_stop = False
        displayed, displayed_at = self.iter, time.monotonic()
        while self.iter < stop:
            self.net.clear_param_diffs()
            if p.test_interval and self.iter % p.test_interval == 0 and (self.iter > 0 or p.test_initialization):
                self.test_all()
                if self._stops():
                    break
            for on_start, _ in self._callbacks:
                on_start()
            losses = []
            for _ in range(p.iter_size):
                losses.append(self.net.forward_loss())
                self.net.backward_params()
            self._losses.append(losses[0] if p.iter_size == 1 else torch.stack(losses).mean())
            self._check_loss(float(self._losses[-1]))
            display = p.display and self.iter % p.display == 0
            if display:
                now = time.monotonic()
                seconds = round(now - displayed_at, 3)
                rate = (self.iter - displayed) / seconds if seconds else 0
                glog.info(
                    "solver.cpp:239",
                    f"Iteration {self.iter} ({rate:g} iter/s, {seconds:g}s/{p.display} iters), loss = {self.smoothed_loss():g}",
                )
                self._log_outputs(self.net, "solver.cpp:258", "Train", {n: self.net.blobs[n].tensor for n in self.net.outputs})
                displayed, displayed_at = self.iter, now
                self._show_training()
            for _, on_gradients in self._callbacks:
                on_gradients()
            self._apply_update(display)
            self._emit()
            self.iter += 1
            if (p.snapshot and self.iter % p.snapshot == 0) or self._request == "snapshot":
                self.snapshot()
                self._request = None if self._request == "snapshot" else self._request
            for callback in self._on_iteration:
                callback()
            if self._stops():
                break

    def _check_loss(self, loss: float) -> None:
        """Stop where the loss is no number; say so where it is as large as it can be."""
        if not math.isfinite(loss):
            self._row["loss"] = loss
            self._emit()
            raise diagnosis.divergence(self, loss, self._last_loss)
        if abs(loss - diagnosis.LARGEST_LOSS) < 0.01 and self._last_loss != loss:
            glog.warning(
                "solver.cpp:222",
                f"Iteration {self.iter}, loss = {loss:g}: 87.3365 is -log(FLT_MIN), the loss of labels that have no probability "
                f"at all. The net has diverged, or the labels do not fit it; the learning rate is {self.learning_rate():g}.",
            )
        self._last_loss = loss

    def smoothed_loss(self) -> float:
        """Mean of the last average_loss losses."""
        return float(torch.stack(tuple(self._losses)).mean())

    def recent_losses(self) -> list[float]:
        """The last losses, the latest last."""
        return [float(loss) for loss in self._losses]

    def recall_losses(self, losses: Iterable[float]) -> None:
        """Let the next `step` begin with the last losses of an earlier run."""
        self._losses = deque(torch.tensor(loss, device=mode.device()) for loss in losses)
        self._recalled = True

    def request(self, action: str) -> None:
        """Ask the running loop to "stop" or "snapshot" after its iteration; what signals do."""
        self._request = action

    def wants_to_stop(self) -> bool:
        """Whether this solver was asked to stop."""
        return self._request == "stop"

    def agree_to_stop(self, stop: bool) -> None:
        """Let several solvers stop at one iteration: from the first call on, this one only stops when it is told here to."""
        self._agreed_to_stop = stop

    def _stops(self) -> bool:
        return self.wants_to_stop() if self._agreed_to_stop is None else self._agreed_to_stop

    def add_callback(self, on_start, on_gradients: Callable[[], None] | None = None) -> None:
        """Call `on_start` before each iteration and `on_gradients` before each update; or both of a caffe.NCCL, given alone."""
        if on_gradients is None:
            on_start, on_gradients = on_start.on_start, on_start.on_gradients_ready
        self._callbacks.append((on_start, on_gradients))

    def share_weights(self, net: Net) -> None:
        """Let another net use the memory of the trained net's parameters, by the names of layers."""
        net.share_with(self.net)

    def on_iteration(self, callback: Callable[[], None]) -> None:
        """Call `callback()` after each iteration of `step`, where a snapshot would be taken."""
        self._on_iteration.append(callback)

    def on_metrics(self, callback: Callable[[dict], None]) -> None:
        """Call `callback(row)` for each iteration that displays or tests.

        row: iteration, seconds (since the solver was made), loss, learning_rate, test_loss, test_accuracy, and `test_NAME` for
        each further output of one value; what was not measured in that iteration is None. Test figures are those of the first
        test net; its loss and its accuracy are the outputs called `loss` and `accuracy`, or else the first loss and the first of
        an Accuracy. Where the net in training has an Accuracy, too, there is an `accuracy`, of the batch that is displayed.
        """
        self._on_metrics.append(callback)

    def on_test(self, callback: Callable[[dict], None]) -> None:
        """Call `callback(row)`, with the row so far, after each test, while the net still has the weights that were tested."""
        self._on_test.append(callback)

    def _measured(self) -> dict:
        """What this iteration has measured so far."""
        measured = {"iteration": self.iter, "seconds": round(time.monotonic() - self._started, 3)}
        return dict.fromkeys(self.metrics) | self._row | measured

    def _show_training(self) -> None:
        """Note the figures of training that are displayed."""
        self._row["loss"] = self.smoothed_loss()
        for name in self._accuracy:
            self._row["accuracy"] = float(self.net.blobs[name].tensor)

    def _emit(self) -> None:
        if self._row:
            row = self._measured()
            self._row = {}
            for callback in self._on_metrics:
                callback(row)

    # ---- the update

    def learning_rate(self) -> float:
        """The rate of the current iteration, by lr_policy."""
        return _POLICIES[self.param.lr_policy](self)

    def apply_update(self) -> None:
        """Change the parameters by their gradients and count the iteration, as Caffe does since version 1.0.

        The forward and backward passes are the caller's.
        """
        self._apply_update(False)
        self.iter += 1

    @machine.without_denormals
    @torch.no_grad()
    def _apply_update(self, display: bool) -> None:
        rate = self.learning_rate()
        if display:
            glog.info("sgd_solver.cpp:112", f"Iteration {self.iter}, lr = {rate:g}")
            self._row["learning_rate"] = rate
        p = self.param
        if p.clip_gradients >= 0:
            self._clip([blob.gradient_or_zeros() for blob in self._with_gradient])
        for group in self._groups:
            group.arrange()
            gradients = group.gradients()
            if p.iter_size > 1:
                torch._foreach_mul_(gradients, 1 / p.iter_size)
            updates = self.change(group, gradients, rate * group.lr_mult, p.weight_decay * group.decay_mult)
            group.show_updates(updates)
        for blob in self._frozen:
            blob.clear_gradient()  # after an update, a diff is what was subtracted

    def change(self, group: Group, gradients: Tensors, rate: float, decay: float) -> Tensors:
        """Add the decay to a group's gradients and subtract the rule's updates from its parameters; returns the updates."""
        if decay:
            penalties = group.data if self.param.regularization_type == "L2" else torch._foreach_sign(group.data)
            torch._foreach_add_(gradients, penalties, alpha=decay)
        updates = self.update(gradients, group.histories, rate)
        torch._foreach_sub_(group.data, updates)
        return updates

    def update(self, gradients: Tensors, histories: list[Tensors], rate: float) -> Tensors:
        """What is subtracted from each parameter of a group.

        gradients  one for each parameter; may be changed
        histories  `self.histories` lists of one array for each parameter; changed in place
        """
        raise NotImplementedError

    def _clip(self, gradients: list[torch.Tensor]) -> None:
        norm = float(torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt())
        limit = self.param.clip_gradients
        if norm > limit:
            scale = limit / norm
            glog.info(
                "sgd_solver.cpp:94",
                f"Gradient clipping: scaling down gradients (L2 norm {norm:g} > {limit:g}) by scale factor {scale:g}",
            )
            for gradient in gradients:
                gradient.mul_(scale)

    # ---- testing

    def test_all(self) -> None:
        """Run every test net over its test_iter batches and log the mean of each output."""
        for index in range(len(self.test_nets)):
            self._test(index)
        for callback in self._on_test:
            callback(self._measured())

    @torch.no_grad()
    def _test(self, index: int) -> None:
        glog.info("solver.cpp:347", f"Iteration {self.iter}, Testing net (#{index})")
        net, batches = self.test_nets[index], self.param.test_iter[index]
        if not batches:
            return
        totals: dict[str, torch.Tensor] = {}
        loss = 0.0
        for _ in range(batches):
            batch_loss = net.forward_loss()
            loss += float(batch_loss) if self.param.test_compute_loss else 0.0
            for name in net.outputs:
                value = net.blobs[name].tensor
                totals[name] = totals[name] + value if name in totals else value.clone()
        means = {name: total / batches for name, total in totals.items()}
        if self.param.test_compute_loss:
            glog.info("solver.cpp:400", f"Test loss: {loss / batches:g}")
        self._log_outputs(net, "solver.cpp:414", "Test", means)
        if index == 0:
            for name, metric in self._outputs.items():
                self._row[metric] = float(means[name].sum()) * (net.blob_loss_weights[name] or 1)

    @staticmethod
    def _log_outputs(net: Net, place: str, phase: str, values: dict[str, torch.Tensor]) -> None:
        number = 0
        for name, tensor in values.items():
            weight = net.blob_loss_weights[name]
            for value in tensor.flatten().tolist():
                loss = f" (* {weight:g} = {weight * value:g} loss)" if weight else ""
                glog.info(place, f"    {phase} net output #{number}: {name} = {value:g}{loss}")
                number += 1

    def close(self) -> None:
        """Stop the threads that read ahead."""
        for net in (self.net, *self.test_nets):
            net.close()

    # ---- snapshots

    def snapshot(self, stem: str | None = None) -> str:
        """Write weights and solver state as PREFIX_iter_N, or as `stem` says; returns the path of the weights."""
        if stem:
            return snapshots.write(self, stem)
        return snapshots.write(self, f"{self.param.snapshot_prefix}_iter_{self.iter}", self.snapshot_folder)

    def restore(self, path: str) -> None:
        """Take up training where a .solverstate or .solverstate.h5 left it, data included; after one of ours, to the bit."""
        snapshots.restore(self, os.fsdecode(path))


def _empty_history(blob: Parameter) -> torch.Tensor:
    """Zeros of a parameter's shape and layout; for a frozen one, a single zero that is repeated."""
    if blob.lr_mult:
        return torch.zeros_like(blob.tensor)
    return torch.zeros((), device=blob.device).expand(blob.shape)


METRICS = ("iteration", "seconds", "loss", "learning_rate", "test_loss", "test_accuracy")
"""What each row of metrics holds, whatever the test net gives."""


def _measured_outputs(net: Net) -> dict[str, str]:
    """{output of a test net: what a row of metrics calls it}, the loss and the accuracy first."""
    single = [name for name in net.outputs if net.blobs[name].count == 1]
    losses = [name for name in net.outputs if net.blob_loss_weights[name]]
    chosen = {}
    for names, usual in ((losses, "loss"), (_accuracies(net), "accuracy")):
        if names:
            chosen[usual if usual in names else names[0]] = f"test_{usual}"
    others = {name: f"test_{name}" for name in single if name not in chosen and f"test_{name}" not in chosen.values()}
    return chosen | others


def _accuracies(net: Net) -> list[str]:
    """Outputs of one value that an Accuracy gives; first the one called `accuracy`, if there is one."""
    accuracies = {top: layer.compares_labels and not layer.is_loss for layer in net.layers for top in layer.param.top}
    single = [name for name in net.outputs if net.blobs[name].count == 1 and not net.blob_loss_weights[name]]
    return sorted((name for name in single if accuracies[name]), key=lambda name: name != "accuracy")


def _step(solver: Solver) -> float:
    p = solver.param
    solver.current_step = solver.iter // p.stepsize
    return p.base_lr * p.gamma**solver.current_step


def _multistep(solver: Solver) -> float:
    p = solver.param
    while solver.current_step < len(p.stepvalue) and solver.iter >= p.stepvalue[solver.current_step]:
        solver.current_step += 1
        glog.info("sgd_solver.cpp:48", f"MultiStep Status: Iteration {solver.iter}, step = {solver.current_step}")
    return p.base_lr * p.gamma**solver.current_step


_POLICIES: dict[str, Callable[[Solver], float]] = {
    "fixed": lambda s: s.param.base_lr,
    "step": _step,
    "exp": lambda s: s.param.base_lr * s.param.gamma**s.iter,
    "inv": lambda s: s.param.base_lr * (1 + s.param.gamma * s.iter) ** -s.param.power,
    "multistep": _multistep,
    "poly": lambda s: s.param.base_lr * (1 - s.iter / s.param.max_iter) ** s.param.power,
    "sigmoid": lambda s: s.param.base_lr / (1 + math.exp(-s.param.gamma * (s.iter - s.param.stepsize))),
}

"""Solver: the training loop, with its tests and snapshots. The update rules are in solver_types, the rates in policies."""

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from caffe import events
from caffe.engine import machine, mode
from caffe.engine.net import Net
from caffe.engine.side import show_held_views
from caffe.errors import FileError, SolverError
from caffe.formats import forks, prototxt
from caffe.formats.files import check_exists
from caffe.kernels.rules import Rule
from caffe.numerics import NUMERICS
from caffe.proto import caffe_pb2
from caffe.training import diagnosis, local_rates, policies, snapshots, solver_nets, testing
from caffe.training.groups import Group, Groups, Tensors
from caffe.training.losses import RecentLosses
from caffe.training.metrics import Metrics
from caffe.training.plateau import Plateau
from caffe.training.updates import Rate, Updates
from caffe.transfers import LateCopy


@runtime_checkable
class Callbacks(Protocol):
    """Both callbacks of `Solver.add_callback` in an object."""

    def on_start(self) -> None: ...

    def on_gradients_ready(self) -> None: ...


class Solver:
    """Trains a net as a solver prototxt says: `caffe.SGDSolver("solver.prototxt")`, or `caffe.get_solver` for any type.

    net        the net in training; test_nets test it, with its parameters
    iter       iterations done
    param      the SolverParameter
    metrics    columns of a row of metrics; see `on_metrics`
    current_step  number of rate changes by lr_policy "step", "multistep" or "plateau" up to the last update
    history    the update rule's memory: an array for each of `net.learnable_params()`, then, for rules with two histories, a
               second one for each. Those of frozen parameters (lr_mult 0) are zeros without memory, and read-only.
    snapshot_folder  folder for snapshots that are moved to snapshot_prefix's folder later; None: they are written to the latter
    """

    type = ""
    histories = 1
    """Number of arrays of a parameter's shape that the rule keeps for it."""
    has_momentum = True
    """Whether the rule uses `momentum`."""
    is_capturable = False
    """Whether `update` depends on nothing but its arguments and `_constants`, so that a CUDA graph can repeat it."""

    has_kernel = False
    """Whether a GPU's kernel (`caffe.kernels.update`) computes `update` by the name of the solver's type."""

    def __init_subclass__(cls, *, is_capturable: bool = False, has_kernel: bool = False, **options: Any) -> None:
        """Attributes that are not inherited, as `update` of a derived class may be another."""
        super().__init_subclass__(**options)
        cls.is_capturable, cls.has_kernel = is_capturable, has_kernel

    def __init__(self, solver_file: os.PathLike[str] | str, param: caffe_pb2.SolverParameter | None = None):
        self.path = os.fsdecode(solver_file)
        self.param = param or prototxt.read_solver(self.path)
        started = time.monotonic()
        events.solver_described(prototxt.text_of(self.param).rstrip("\n"))
        forks.log_hints(self.param, self.path)
        self._check()
        self._use_numerics()
        if self.param.random_seed >= 0:
            mode.set_random_seed(self.param.random_seed)
        self.iter = 0
        self.current_step = 0
        self.snapshot_folder: str | os.PathLike[str] | None = None
        self._callbacks: list[tuple[Callable[[], object], Callable[[], object]]] = []
        self._on_iteration: list[Callable[[], None]] = []
        self._request: str | None = None
        self._agreed_to_stop: bool | None = None
        self._losses = RecentLosses()
        self._plateau = Plateau(self.param.plateau_winsize)
        self._last_loss: float | None = None
        self.net = solver_nets.train_net(self.param, self.path)
        self.test_nets = solver_nets.test_nets(self.param, self.path, self.net)
        self._metrics = Metrics(self.net, self.test_nets[0] if self.test_nets else None, started)
        self.metrics = self._metrics.names
        for net in (self.net, *self.test_nets):
            net.debug_info = net.debug_info or self.param.debug_info
        self._groups = Groups(self.net.learnable_params(), self.histories)
        self.history = self._groups.history
        self._updates = Updates(self._groups.groups, self._change, self.net.device, self._rule)
        events.solver_initialized()

    def _use_numerics(self) -> None:
        """Let the process compute as this solver's `numerics` says; another solver may have changed it since."""
        if self.param.numerics:
            mode.set_numerics(self.param.numerics)

    def _check(self) -> None:
        p = self.param
        for field in ("average_loss", "iter_size"):
            if getattr(p, field) < 1:
                raise SolverError(self.path, f"{field} {getattr(p, field)}", "it must be at least 1")
        policies.check_policy(p, self.path)
        local_rates.check(p, self.path)
        if p.momentum and not self.has_momentum:
            raise SolverError(self.path, f"momentum {p.momentum:g} with {self.type}", f"{self.type} has none", "leave it out")
        if p.numerics and p.numerics not in NUMERICS:
            raise SolverError(self.path, f'numerics "{p.numerics}"', f"there are {', '.join(NUMERICS)}")
        if p.regularization_type not in ("L1", "L2"):
            raise SolverError(self.path, f'regularization_type "{p.regularization_type}"', "there are L1 and L2")
        stem = str(Path(self.path).with_suffix(""))
        if not p.snapshot_prefix:
            p.snapshot_prefix = stem
        elif Path(p.snapshot_prefix).is_dir():
            p.snapshot_prefix = str(Path(p.snapshot_prefix) / Path(stem).name)
        snapshots.check_prefix(p.snapshot_prefix, self.path)
        for path in ",".join(p.weights).split(",") if p.weights else ():
            check_exists(path.strip())

    # ---- training

    def solve(self, resume_file: str | None = None) -> None:
        """Train until max_iter, from a solver state if one is given."""
        events.training_begun(self.net.name)
        events.policy_named(self.param.lr_policy)
        if resume_file:
            events.solver_restored(resume_file)
            self.restore(resume_file)
        p = self.param
        self.step(p.max_iter - self.iter)
        if p.snapshot_after_train and (not p.snapshot or self.iter % p.snapshot):
            self.snapshot()
        if self._stops():
            self._metrics.emit(self.iter)
            events.training_stopped()
            return
        if p.display and self.iter % p.display == 0:
            self._losses.append(self.net.forward_loss())
            self.net.check_deferred()
            smoothed = self._losses.mean()
            events.last_loss_displayed(self.iter, smoothed)
            self._metrics.note_training(smoothed)
        if p.test_interval and self.iter % p.test_interval == 0:
            self.test_all()
        self._metrics.emit(self.iter)
        events.training_ended()

    def step(self, iterations: int) -> None:
        """Train for a number of iterations, testing and snapshotting when they are due."""
        self._use_numerics()
        p = self.param
        stop = self.iter + iterations
        self._losses.begin(p.average_loss)
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
                losses.append(LateCopy(self.net.forward_loss()))
                self.net.backward_params()
            values = [loss.wait() for loss in losses]
            loss = values[0] if p.iter_size == 1 else machine.in_numerics(torch.mean)(torch.stack(values))
            self._check_loss(self._losses.append(loss))
            display = p.display != 0 and self.iter % p.display == 0
            if display:
                now = time.monotonic()
                seconds = round(now - displayed_at, 3)
                rate = (self.iter - displayed) / seconds if seconds else 0
                smoothed = self._losses.mean()
                events.loss_displayed(self.iter, rate, seconds, p.display, smoothed)
                testing.log_outputs(events.train_output, self.net, {n: self.net.blobs[n].tensor for n in self.net.outputs})
                displayed, displayed_at = self.iter, now
                self._metrics.note_training(smoothed)
            for _, on_gradients in self._callbacks:
                on_gradients()
            self._apply_update(display)
            self._metrics.emit(self.iter)
            self.iter += 1
            if (p.snapshot and self.iter % p.snapshot == 0) or self._request == "snapshot":
                self.snapshot()
                self._request = None if self._request == "snapshot" else self._request
            for callback in self._on_iteration:
                callback()
            if self._stops():
                break

    def _check_loss(self, loss: float) -> None:
        """Raise DivergenceError for a loss that is NaN or infinite; log a warning if it is as large as it can be."""
        if not math.isfinite(loss):
            self._metrics.note(loss=loss)
            self._metrics.emit(self.iter)
            found = f"the loss is {loss:g} at iteration {self.iter}"
            raise diagnosis.divergence(self.path, self.net, found, self.learning_rate(), self._last_loss)
        if diagnosis.is_largest(loss) and self._last_loss != loss:
            events.label_impossible(self.iter, loss, self.learning_rate(), self.path)
        self._last_loss = loss

    def request(self, action: str) -> None:
        """Ask the running loop to "stop" or "snapshot" after its iteration, as signals do."""
        self._request = action

    def wants_to_stop(self) -> bool:
        """Whether this solver was asked to stop."""
        return self._request == "stop"

    def agree_to_stop(self, stop: bool) -> None:
        """Let several solvers stop at the same iteration: from the first call on, only `stop` decides, not `request`."""
        self._agreed_to_stop = stop

    def _stops(self) -> bool:
        return self.wants_to_stop() if self._agreed_to_stop is None else self._agreed_to_stop

    def add_callback(self, on_start: Callable[[], object] | Callbacks, on_gradients: Callable[[], object] | None = None) -> None:
        """Call `on_start` before each iteration and `on_gradients` before each update; a caffe.NCCL has both."""
        if isinstance(on_start, Callbacks):
            on_gradients = on_start.on_gradients_ready
            on_start = on_start.on_start
        if on_gradients is None:
            raise TypeError("add_callback takes two functions, or a caffe.NCCL")
        self._callbacks.append((on_start, on_gradients))

    def share_weights(self, net: Net) -> None:
        """Let another net use the memory of the trained net's parameters in layers of the same names."""
        net.share_with(self.net)

    def on_iteration(self, callback: Callable[[], None]) -> None:
        """Call `callback()` after each iteration of `step`, where a snapshot would be taken."""
        self._on_iteration.append(callback)

    def on_metrics(self, callback: Callable[[dict[str, float | None]], None]) -> None:
        """Call `callback(row)` for each iteration that displays or tests.

        row: iteration, seconds (since the solver was created), loss, learning_rate, test_loss, test_accuracy, and `test_NAME` for
        each further output of one value; None if not measured in that iteration. Test figures are those of the first test net:
        its outputs called `loss` and `accuracy`, else the first loss and the first of an Accuracy. `accuracy`, of the displayed
        batch, is added if the net in training has an Accuracy.
        """
        self._metrics.on_row.append(callback)

    def on_test(self, callback: Callable[[dict[str, float | None]], None]) -> None:
        """Call `callback(row)`, with the row so far, after each test, while the net still has the weights that were tested."""
        self._metrics.on_test.append(callback)

    # ---- the update

    def learning_rate(self) -> float:
        """The rate of the current iteration, by lr_policy."""
        return policies.learning_rate(self.param, self.iter, self.current_step)

    @property
    def lr(self) -> float:
        """The rate of the current iteration."""
        return self.learning_rate()

    def apply_update(self) -> None:
        """Change the parameters by their gradients and count the iteration, as Caffe does since version 1.0.

        The forward and backward passes are the caller's.
        """
        self._use_numerics()
        self._apply_update(False)
        self.iter += 1

    @machine.in_numerics
    @torch.no_grad()
    def _apply_update(self, display: bool) -> None:
        self._note_steps()
        rate = self.learning_rate()
        if display:
            events.rate_displayed(self.iter, rate)
            self._metrics.note(learning_rate=rate)
        p = self.param
        if p.clip_gradients >= 0:
            self._groups.clip_gradients(p.clip_gradients)
        if by_norms := p.local_lr_auto or p.larc:
            rates = [rate] * len(self._groups.groups)
        else:
            rates = [rate * group.lr_mult * self.rate_factor() for group in self._groups.groups]
        self._updates.apply(rates, self._constants() if self.is_capturable and not by_norms else None)
        self._groups.clear_frozen()
        show_held_views()

    def _constants(self) -> object:
        """All that an update depends on besides parameters, gradients, histories and rates."""
        p = self.param
        of_rules = (self.momentum(), p.momentum2, p.delta, p.rms_decay)
        return p.iter_size, p.regularization_type, policies.weight_decay(p, self.iter), of_rules

    def _rule(self, group: Group) -> Rule | None:
        """What `_change` computes for a group, for a GPU's kernel; None if that has none."""
        p = self.param
        if not self.has_kernel or p.local_lr_auto or p.larc:
            return None
        decay = policies.weight_decay(p, self.iter) * group.decay_mult
        numbers = self.momentum(), p.momentum2, p.rms_decay, p.delta
        return Rule(self.type, 1 / p.iter_size, decay, p.regularization_type == "L1", *numbers)

    def _change(self, group: Group, gradients: Tensors, rate: Rate) -> Tensors:
        """Change a group's parameters and histories by gradients, which are changed too; returns what is subtracted."""
        p = self.param
        if p.iter_size > 1:
            torch._foreach_mul_(gradients, 1 / p.iter_size)
        by_norms = p.local_lr_auto or p.larc
        factors = local_rates.factors(p, self.learning_rate(), self.iter, group.data, gradients) if by_norms else []
        decay = policies.weight_decay(p, self.iter) * group.decay_mult
        if decay:
            penalties = group.data if p.regularization_type == "L2" else torch._foreach_sign(group.data)
            torch._foreach_add_(gradients, penalties, alpha=decay)
        if by_norms:
            torch._foreach_mul_(gradients, factors)
        updates = self.update(gradients, group.histories, rate)
        torch._foreach_sub_(group.data, updates)
        return updates

    def _note_steps(self) -> None:
        """Log the steps that this iteration reaches, and store their number for snapshots."""
        if self.param.lr_policy == policies.PLATEAU:
            losses = self._losses.values()
            if losses and self._plateau.ends(self.iter, self._losses.mean(), self.current_step):
                self.current_step += 1
                events.plateau_ended(self.iter, self.current_step)
            return
        reached = policies.steps_reached(self.param, self.iter)
        if self.param.lr_policy == "multistep":
            for number in range(self.current_step + 1, reached + 1):
                events.step_reached(self.iter, number)
        self.current_step = reached

    def update(self, gradients: Tensors, histories: list[Tensors], rate: Rate) -> Tensors:
        """Returns what to subtract from each parameter of a group.

        gradients  one for each parameter; may be changed
        histories  `self.histories` lists of an array for each parameter; changed in place
        rate       times lr_mult and `rate_factor`; on a GPU a tensor of one number
        """
        raise NotImplementedError

    def momentum(self) -> float:
        """The momentum of the current iteration."""
        return self.param.momentum

    def rate_factor(self) -> float:
        """What the rule multiplies the rate by in the current iteration."""
        return 1.0

    # ---- testing

    def test_all(self) -> None:
        """Run every test net over its test_iter batches and log the mean of each output."""
        for index, net in enumerate(self.test_nets):
            events.test_begun(self.iter, index)
            means = testing.mean_outputs(net, self.param.test_iter[index], self.param.test_compute_loss)
            if index == 0 and means:
                self._metrics.note_test(means, net.blob_loss_weights)
        self._metrics.show_test(self.iter)

    def close(self) -> None:
        """Stop the threads that read ahead."""
        for net in (self.net, *self.test_nets):
            net.close()

    # ---- snapshots

    def snapshot(self, stem: str | None = None) -> str:
        """Write weights and solver state as PREFIX_iter_N, or as `stem`; returns the path of the weights."""
        p = self.param
        folder = None if stem else self.snapshot_folder
        stem = stem or f"{p.snapshot_prefix}_iter_{self.iter}"
        written = str(Path(folder) / Path(stem).name) if folder else stem
        Path(written).parent.mkdir(parents=True, exist_ok=True)
        extension = ".h5" if p.snapshot_format == caffe_pb2.SolverParameter.HDF5 else ""
        model = f"{written}.caffemodel{extension}"
        (self.net.save_hdf5 if extension else self.net.save)(model, p.snapshot_diff)
        run = snapshots.run_of((self.net, *self.test_nets), self._losses.values())
        if p.lr_policy == policies.PLATEAU:
            run.least_loss, run.last_event = self._plateau.least, self._plateau.last
        # The state names the weights by `stem`, where the files of `snapshot_folder` will be moved to.
        state = snapshots.State(self.iter, f"{stem}.caffemodel{extension}", self.current_step, self.history, run)
        snapshots.write_state(state, f"{written}.solverstate{extension}")
        return model

    def restore(self, path: str) -> None:
        """Resume training from a .solverstate or .solverstate.h5, at the record that an uninterrupted run would read next.

        The weights are those that the state names, or the file of that name beside the state. From our states, which also hold
        the random generators and the layers' own state, a single solver resumes bit-identically. Caffe itself starts over at the
        first record.
        """
        path = os.fsdecode(path)
        stored = snapshots.read_state(path)
        self._check_history(stored.history, path)
        if stored.model:
            self.net.copy_from(snapshots.weights_beside(path, stored.model))
        self._groups.load_history(stored.history)
        self.iter, self.current_step = stored.iteration, stored.step
        for layer in self.net.layers:
            layer.seek_batch(stored.iteration * self.param.iter_size)
        if mode.solver_count() == 1 and stored.run.ListFields():
            try:
                snapshots.resume_run((self.net, *self.test_nets), stored.run)
            except (ValueError, TypeError, KeyError, OverflowError, RuntimeError) as error:
                raise FileError(path, f"damaged: the random generators' state cannot be read ({error})") from error
            self._losses.recall(stored.run.loss)
            if stored.run.HasField("least_loss"):
                self._plateau.least, self._plateau.last = stored.run.least_loss, stored.run.last_event

    def _check_history(self, history: Sequence[torch.Tensor], path: str) -> None:
        if len(history) != len(self.history):
            found, expected = f"a history of {len(history)} arrays", f"{self.type} needs {len(self.history)} for this net"
            raise SolverError(path, found, expected, "use the solver that wrote it")
        for index, (mine, stored) in enumerate(zip(self.history, history, strict=True)):
            if stored.numel() != mine.numel():
                found = f"array {index} of the history has shape {tuple(stored.shape)}"
                raise SolverError(path, found, f"the net's parameter has {tuple(mine.shape)}")

"""Benchmark published nets against PyTorch by hand, torch.compile, onnxruntime and the machine's floor, in one run.

    python benchmarks/speed.py [--nets lenet …] [--steps forward training] [--turns 7] [--memory] [--csv FILE] [--plot FILE]

Each net is one of the project's templates; first it is checked that the net by hand is the same (benchmarks/same_net.py). Then
the sides take turns, and the medians of all passes are compared. Forward is that of the deployed net, from an input to scores;
training is forward, backward and an update on a batch that is always the same, with auxiliary heads. By hand the faster of
PyTorch's two memory layouts counts, and torch.compile gets that one. The floor is explained in benchmarks/floor.py. --memory also
compares the peak memory in training, each side in its own process. A figure is followed by the ratio: what `caffe` takes over it;
below 1, `caffe` is faster or smaller. With --gpu, passes are timed by CUDA events.
"""

import argparse
import gc
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("GLOG_minloglevel", "2")

import alternating
import by_hand
import floor
import memory
import nets
import numpy as np
import same_net
import sides
import table
import torch
from table import Row

import caffe
from pipeline import devices

STEPS = ("forward", "training")
LEAST_TURNS = 7


class Benchmark:
    """Measurements on one device with the same options; `rows` has the figures so far."""

    def __init__(self, arguments: argparse.Namespace):
        self.turns, self.sides, self.gpu = arguments.turns, tuple(arguments.sides), arguments.gpu
        self.device = torch.device("cuda" if self.gpu else "cpu")
        self.timed = alternating.on_gpu if self.gpu else alternating.on_cpu
        count = torch.get_num_threads()
        threads = f"{count} thread{'s' * (count > 1)}"
        self.machine = torch.cuda.get_device_name() if self.gpu else f"{devices.machine(False)['processor']}, {threads}"
        self.rates = floor.measure_rates(self.device) if "floor" in self.sides else None
        self.nets = {name: replace(nets.NETS[name], batch=arguments.images or nets.NETS[name].batch) for name in arguments.nets}
        self.rows: list[Row] = []

    def net(self, name: str, steps: list[str], with_memory: bool) -> None:
        """Measure a net."""
        measured = self.nets[name]
        module = by_hand.NETS[name]().to(self.device)
        weights, differences = same_net.compare(name, measured, module)
        print(f"{name}: the net by hand is the same: {differences}", flush=True)
        subject = sides.Subject(name, measured, weights, module)
        for step in steps:
            makers = (sides.in_forward if step == "forward" else sides.in_training)(subject, self.sides)
            self._step(name, step, makers)
            del makers
            if table.COMPILED in self.sides:
                torch._dynamo.reset()
            gc.collect()
        if self.rates:
            for step in steps:
                self._floor(name, step, self.rates)
        if with_memory:
            self._memory(name)

    def _step(self, name: str, step: str, makers: dict[str, sides.Make]) -> None:
        """Measure the sides of a step in alternate turns."""
        passes, trials, notes = self._try(name, step, makers)
        times = alternating.turns(passes, self.turns, alternating.Length.of(min(trials.values())), self.timed)
        medians = {side: statistics.median(each for turn in taken for each in turn) for side, taken in times.items()}
        for side, median in medians.items():
            turns = [statistics.median(turn) for turn in times[side]]
            self._add(name, step, side, value=median, low=min(turns), high=max(turns), ratio=medians["caffe"] / median)
        for side, note in notes.items():
            self._add(name, step, side, note=note)

    def _try(
        self, name: str, step: str, makers: dict[str, sides.Make]
    ) -> tuple[dict[str, Callable[[], object]], dict[str, float], dict[str, str]]:
        """Make the sides' passes and try each: {side: pass}, {side: milliseconds}, {side: why it is not measured}."""
        passes: dict[str, Callable[[], object]] = {}
        trials: dict[str, float] = {}
        notes: dict[str, str] = {}
        expected = np.empty(0)
        for side, make in makers.items():
            if side.startswith(table.COMPILED) and not _is_faster_layout(side, trials):
                continue
            try:
                run = make()
                result = run()
                if step == "forward":
                    scores = sides.scores_of(result)
                    expected = scores if side == "caffe" else expected
                    same_net.check_scores(f"{name}, {side}", scores, expected)
            except same_net.DifferentNetError:
                raise
            except Exception as error:
                if side == "caffe":
                    raise
                notes[side] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                continue
            passes[side], trials[side] = run, min(self.timed(run, 3))
        return passes, trials, notes

    def _floor(self, name: str, step: str, rates: floor.Rates) -> None:
        training = step == "training"
        definition = (nets.training if training else nets.forward)(name, self.nets[name])
        net = caffe.Net(nets.without_fillers(definition), caffe.TRAIN if training else caffe.TEST)
        costs = floor.count(net, training)
        everything, least = floor.total(costs), floor.floor(costs, rates)
        ours = next(row.value for row in self.rows if (row.net, row.step, row.side) == (name, step, "caffe"))
        figures = {"ratio": (ours or 0.0) / least, "operations": everything.operations, "bytes": everything.bytes}
        self._add(name, step, "floor", value=least, **figures)

    def _memory(self, name: str) -> None:
        figures: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as folder:
            solver = sides.write_solver(name, self.nets[name], Path(folder), self.gpu)
            for side in memory.SIDES:
                try:
                    figures[side] = memory.peak_of(side, name, self.nets[name].shape, solver, self.gpu)
                except RuntimeError as error:  # as a rule, there is not enough memory
                    self._add(name, "memory", side, unit="MB", note=str(error))
        for side, value in figures.items():
            ratio = {"ratio": figures["caffe"] / value} if "caffe" in figures else {}
            self._add(name, "memory", side, unit="MB", value=value, **ratio)

    def _add(self, net: str, step: str, side: str, unit: str = "ms", note: str = "", **figures: float) -> None:
        row = Row(self.machine, net, self.nets[net].batch, step, side, unit, note=note, **figures)
        self.rows.append(row)
        figure = f"not measured: {note}" if row.value is None else f"{row.value:.4g} {unit}"
        print(f"  {net}, {step}, {side}: {figure}", flush=True)


def _is_faster_layout(side: str, trials: dict[str, float]) -> bool:
    """Whether a side of torch.compile has the layout in which the net by hand was faster, if it was measured."""
    hand = {layout: trials[layout] for layout in by_hand.LAYOUTS if layout in trials}
    return not hand or side.removeprefix(table.COMPILED) == min(hand, key=lambda layout: hand[layout]).removeprefix(table.HAND)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=nets.NETS, default=list(nets.NETS), metavar="NET", help=", ".join(nets.NETS))
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="both by default")
    sides_help = f"what caffe is compared with, of {', '.join(sides.SIDES)}; all by default"
    parser.add_argument("--sides", nargs="+", choices=sides.SIDES, default=list(sides.SIDES), metavar="SIDE", help=sides_help)
    parser.add_argument("--turns", type=int, default=LEAST_TURNS, help=f"of each side, at least {LEAST_TURNS} (the default)")
    parser.add_argument("--images", type=int, help="batch size of all nets, for a quick look; by default each net's own")
    parser.add_argument("--threads", type=int, help="of all sides; by default PyTorch's number")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--memory", action="store_true", help="also compare peak memory in training")
    parser.add_argument("--csv", type=Path, help="write all figures to this file")
    parser.add_argument("--plot", type=Path, help="draw the ratios to this PNG or SVG")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return parser


def main() -> None:
    parser = _parser()
    a = parser.parse_args()
    if a.turns < LEAST_TURNS:
        parser.error(f"--turns {a.turns}: medians need at least {LEAST_TURNS}")
    for option in ("images", "threads"):
        if (value := getattr(a, option)) is not None and value < 1:
            parser.error(f"--{option} {value}: at least 1")
    if a.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(a.threads)  # of the processes whose memory is measured
        torch.set_num_threads(a.threads)
    if a.gpu:
        if not torch.cuda.is_available():
            parser.error("--gpu: PyTorch finds no CUDA device")
        caffe.set_mode_gpu()
        for each in (torch.backends.cuda.matmul, torch.backends.cudnn.conv):
            each.fp32_precision = "ieee"  # as caffe computes in fp32
    for path in filter(None, (a.csv, a.plot)):
        path.parent.mkdir(parents=True, exist_ok=True)
    benchmark = Benchmark(a)
    print(f"{benchmark.machine}, PyTorch {torch.__version__}", flush=True)
    if benchmark.rates:
        print(benchmark.rates, flush=True)
    for name in a.nets:
        benchmark.net(name, a.steps, a.memory)
        if a.csv:  # after each net, so that an interrupted run leaves its figures
            table.write_csv(benchmark.rows, a.csv)
    print("\n" + table.text_of(benchmark.rows, a.markdown))
    if a.plot:
        table.plot(benchmark.rows, a.plot)


if __name__ == "__main__":
    main()

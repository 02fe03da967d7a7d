"""The benchmark of speed measures the same nets on all sides, and its table has each figure or the reason why it lacks."""

import csv
import importlib
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import caffe
from tests.conftest import ROOT

SMALL = ("lenet", "cifar10_quick")
ALL = (*SMALL, "caffenet", "googlenet", "resnet50", "squeezenet", "mobilenet", "vgg16")


@pytest.fixture
def benchmark(monkeypatch):
    """benchmark(name): a module of benchmarks/."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


@pytest.mark.parametrize("name", [name if name in SMALL else pytest.param(name, marks=pytest.mark.long) for name in ALL])
def test_the_net_by_hand_is_that_of_the_template(benchmark, name):
    net, differences = benchmark("same_net").compare(name, benchmark("nets").NETS[name], benchmark("by_hand").NETS[name]())
    assert net.params
    assert differences.scores < 1e-4


def test_all_nets_are_measured(benchmark):
    assert set(benchmark("nets").NETS) == set(benchmark("by_hand").NETS) == set(ALL)


class TwiceTheGradient(nn.Module):
    """Scores as they are, and their gradient doubled."""

    def forward(self, x):
        return 2 * x - x.detach()


@pytest.mark.parametrize(
    ("place", "layer", "found"),
    [
        (0, nn.Conv2d(1, 20, 3), "shape"),
        (1, nn.AvgPool2d(2), "scores"),
        (6, nn.Identity(), "scores"),
        (6, nn.BatchNorm1d(500), "shape"),
        (8, TwiceTheGradient(), "gradient"),
        (8, nn.Linear(10, 10), "8 parameters in caffe, 10 by hand"),
    ],
)
def test_another_net_by_hand_is_refused(benchmark, place, layer, found):
    same_net, module = benchmark("same_net"), benchmark("by_hand").lenet()
    if place == len(module):
        module.append(layer)
    else:
        module[place] = layer
    with pytest.raises(same_net.DifferentNetError, match=found):
        same_net.compare("lenet", benchmark("nets").NETS["lenet"], module)


@pytest.mark.parametrize("training", [False, True])
def test_the_floor_counts_the_operations_of_lenet(benchmark, training):
    nets, floor = benchmark("nets"), benchmark("floor")
    measured = nets.Measured(2, (1, 28, 28), 10)
    net = caffe.Net((nets.training if training else nets.forward)("lenet", measured), caffe.TRAIN if training else caffe.TEST)
    conv1, others = 20 * 24**2 * 25, 50 * 8**2 * 20 * 25 + 500 * 800 + 10 * 500
    # In training each product has two gradients, but the first, whose bottom is the data.
    assert floor.total(floor.count(net, training)).operations == 2 * 2 * (
        (2 * conv1 + 3 * others) if training else conv1 + others
    )


def test_more_operations_and_bytes_take_longer(benchmark):
    floor = benchmark("floor")
    rates = floor.Rates(operations=1e9, copies={1 << 18: 1e10, 1 << 28: 1e9})
    assert floor.floor([floor.Cost(operations=1e9)] * 2, rates) == pytest.approx(2000)
    assert floor.Cost(bytes=1 << 28).seconds(rates) == pytest.approx((1 << 28) / 1e9)
    assert floor.Cost(operations=1e6, bytes=1 << 18).seconds(rates) == pytest.approx(1e-3)


def test_sides_take_turns_in_alternate_order_and_warm_up_passes_are_left_out(benchmark):
    alternating, run = benchmark("alternating"), []
    steps = {name: lambda name=name: run.append(name) for name in "ab"}
    times = alternating.turns(steps, 2, alternating.Length(3, 1))
    assert "".join(run) == "aaabbb" + "bbbaaa" + "aaabbb"
    assert {name: [len(turn) for turn in turns] for name, turns in times.items()} == {"a": [2, 2], "b": [2, 2]}


def test_the_table_has_the_better_layout_and_says_what_is_not_measured(benchmark):
    table = benchmark("table")
    rows = [
        table.Row("a machine", "lenet", 64, "training", "caffe", "ms", 3.0, ratio=1.0),
        table.Row("a machine", "lenet", 64, "training", "by hand", "ms", 6.0, ratio=0.5),
        table.Row("a machine", "lenet", 64, "training", "by hand, channels-last", "ms", 4.0, ratio=0.75),
        table.Row("a machine", "lenet", 64, "training", "torch.compile", "ms", note="no compiler"),
    ]
    lines = table.text_of(rows, markdown=True).splitlines()
    cells = "3 ms | 4 ms (channels-last), 0.75 | not measured | – | – |"
    assert lines[2:] == [
        f"| lenet, 64 | forward, backward, update | {cells}",
        "",
        "- lenet, training, torch.compile: no compiler",
    ]


@pytest.mark.long
@pytest.mark.own_device
def test_a_run_has_each_figure_or_the_reason_why_it_lacks(tmp_path):
    words = ["--nets", "lenet", "--images", "2", "--threads", "1", "--memory", "--markdown"]
    words += ["--csv", str(tmp_path / "new" / "speed.csv"), "--plot", str(tmp_path / "speed.png")]
    no_compiler = {"CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    done = subprocess.run(
        [sys.executable, "benchmarks/speed.py", *words], cwd=ROOT, capture_output=True, text=True, env=os.environ | no_compiler
    )
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "new" / "speed.csv").open()))
    figures = {(row["step"], row["side"].partition(",")[0]): row for row in rows}
    assert {side for step, side in figures if step == "forward"} == {"caffe", "by hand", "torch.compile", "onnxruntime", "floor"}
    assert {side for step, side in figures if step == "training"} == {"caffe", "by hand", "torch.compile", "floor"}
    assert {side for step, side in figures if step == "memory"} == {"caffe", "by hand"}
    for (step, side), row in figures.items():
        if side == "torch.compile":
            assert row["value"] == ""
            assert "/nowhere/c++" in row["note"]
            assert f"- lenet, {step}, {row['side']}: {row['note']}" in done.stdout.splitlines()
        else:
            assert float(row["value"]) > 0
            assert float(row["ratio"]) == pytest.approx(float(figures[step, "caffe"]["value"]) / float(row["value"]), rel=1e-4)
    table = [line for line in done.stdout.splitlines() if line.startswith("| lenet, 2 |")]
    assert [line.count("|") for line in table] == [8, 8, 8]
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_two_turns_are_too_few(tmp_path):
    done = subprocess.run([sys.executable, "benchmarks/speed.py", "--turns", "2"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--turns 2: medians need at least 7" in done.stderr


def test_peak_memory_is_that_of_the_process_itself():
    """After exec, getrusage still has the peak of the process that started this one."""
    code = "import sys; sys.path.insert(0, 'benchmarks'); import memory; print(memory.peak())"
    large = torch.ones(1 << 28)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 1 << 20 < int(done.stdout) < large.nbytes

"""A training that is cut off and run again ends as an undisturbed one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import caffe
from pipeline.train import Ends, train
from pipeline.weights import Given
from tests import workflows
from tests.conftest import ROOT
from tests.pipeline.conftest import TRAIN

CHECKPOINT = Path("checkpoint")
NONE = Given()


@pytest.fixture
def here(small, monkeypatch):
    """The small dataset's folder, as the current one: 40 iterations with dropout, mirrors, and snapshots."""
    monkeypatch.chdir(small)
    text = Path("train.prototxt").read_text()
    dropout = 'layer { name: "drop" type: "Dropout" bottom: "hidden" top: "hidden" }\nlayer { name: "scores"'
    text = text.replace('layer { name: "scores"', dropout).replace("scale: 0.004", "scale: 0.004 mirror: true")
    Path("train.prototxt").write_text(text)
    solver = Path("solver.prototxt").read_text().replace("max_iter: 20", "max_iter: 40 snapshot: 10 average_loss: 3")
    Path("solver.prototxt").write_text(solver)
    return small


@pytest.fixture(autouse=True)
def in_the_foreground():
    """Where tests are run in the background, Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ends(**fields):
    return Ends(checkpoint=CHECKPOINT, **fields)


def results(metrics: pd.DataFrame) -> dict:
    """All that a training leaves, but for its times."""
    files = {path.name: path.read_bytes() for path in (*Path("snap").iterdir(), *Path("out").glob("*.caffemodel"))}
    rows = metrics.drop(columns="seconds").to_csv(index=False)
    return files | {"metrics": rows, "best": json.loads(Path("out/best.json").read_text())}


def remove_outputs() -> None:
    """What Snakemake does where a job has failed."""
    shutil.rmtree("out")
    shutil.rmtree("snap")


def cut_off(monkeypatch, iteration: int, number: signal.Signals, given: Given = NONE, **fields) -> None:
    """Train, and be told to end while the net is tested at that iteration."""
    measured = caffe.SGDSolver.test_all

    def told(solver):
        measured(solver)
        if solver.iter == iteration:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(caffe.SGDSolver, "test_all", told)
        with pytest.raises(KeyboardInterrupt):
            train(Path("solver.prototxt"), Path("out"), given, ends(**fields))
    remove_outputs()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_that_was_told_to_end_goes_on_to_the_bit(here, monkeypatch, capsys, number):
    undisturbed = results(train(Path("solver.prototxt"), Path("out"), NONE)[0])
    assert len(undisturbed) == 4 * 2 + 2 + 2
    remove_outputs()
    cut_off(monkeypatch, 15, number)
    assert f"ended by {number.name} at iteration 16; run again" in capsys.readouterr().out
    assert [path.name for path in CHECKPOINT.iterdir()] == ["16"]
    cut_off(monkeypatch, 25, number)
    metrics, _ = train(Path("solver.prototxt"), Path("out"), NONE, ends())
    assert "resumes at iteration 26, from checkpoint/26" in capsys.readouterr().out
    assert results(metrics) == undisturbed
    assert metrics.seconds.is_monotonic_increasing
    assert not CHECKPOINT.exists()
    tested = re.findall(r"Iteration (\d+), Testing", Path("out/train.log").read_text())
    assert [int(number) for number in tested] == list(range(0, 41, 5))


KILLED = """
import os, signal
from pathlib import Path
import caffe
from pipeline.train import Ends, train
from pipeline.weights import Given

measured = caffe.SGDSolver.test_all

def killed(solver):
    if solver.iter == 25:
        os.kill(os.getpid(), signal.SIGKILL)
    measured(solver)

caffe.SGDSolver.test_all = killed
train(Path("solver.prototxt"), Path("out"), Given(), Ends(checkpoint=Path("checkpoint"), minutes=0))
"""


def test_a_training_that_was_killed_goes_on_to_the_bit(here):
    undisturbed = results(train(Path("solver.prototxt"), Path("out"), NONE)[0])
    remove_outputs()
    killed = subprocess.run([sys.executable, "-c", KILLED], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in CHECKPOINT.iterdir()] == ["25"]
    remove_outputs()
    metrics, _ = train(Path("solver.prototxt"), Path("out"), NONE, ends())
    assert results(metrics) == undisturbed


def changed_rate():
    text = Path("solver.prototxt").read_text()
    Path("solver.prototxt").write_text(text.replace("base_lr: 0.05", "base_lr: 0.06"))
    return {}


def changed_net():
    text = Path("train.prototxt").read_text()
    Path("train.prototxt").write_text(text.replace("scale: 0.004", "scale: 0.005"))
    return {}


def changed_records():
    path = Path("lmdb/train.manifest.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": "another"}))
    return {}


def changed_weights():
    caffe.Net("train.prototxt", caffe.TRAIN).save("start.caffemodel")
    return {"given": Given([Path("start.caffemodel")])}


def changed_end():
    return {"early_stopping": 100}


@pytest.mark.parametrize("change", [changed_rate, changed_net, changed_records, changed_weights, changed_end])
def test_what_is_another_training_does_not_go_on(here, monkeypatch, capsys, change):
    caffe.Net("train.prototxt", caffe.TRAIN).save("start.caffemodel")
    cut_off(monkeypatch, 15, signal.SIGTERM, Given([Path("start.caffemodel")]))
    fields = {"given": Given([Path("start.caffemodel")])} | change()
    metrics, _ = train(Path("solver.prototxt"), Path("out"), fields.pop("given"), ends(**fields))
    assert "resumes at" not in capsys.readouterr().out
    assert metrics.iteration.tolist() == list(range(0, 41, 5))
    assert not CHECKPOINT.exists()


def test_what_a_net_does_not_read_is_nothing_to_it(here, monkeypatch, capsys):
    cut_off(monkeypatch, 15, signal.SIGTERM)
    Path("data").mkdir()  # as the first layer is called
    (Path("data") / "cat.jpg").touch()
    train(Path("solver.prototxt"), Path("out"), NONE, ends())
    assert "resumes at iteration 16" in capsys.readouterr().out


def test_weights_that_are_not_there_are_named_as_ever(here):
    with pytest.raises(caffe.FileError) as raised:
        train(Path("solver.prototxt"), Path("out"), Given([Path("none.caffemodel")]), ends())
    assert (raised.value.where, raised.value.found) == ("none.caffemodel", "no such file")


def test_a_second_signal_counts_as_ever(here, monkeypatch):
    measured = caffe.SGDSolver.test_all

    def told(solver):
        measured(solver)
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(caffe.SGDSolver, "test_all", told)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(Path("solver.prototxt"), Path("out"), NONE, ends())
    assert not CHECKPOINT.exists()
    assert signal.getsignal(signal.SIGINT) == before


def test_in_the_background_ctrl_c_is_ignored(here, monkeypatch):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    measured = caffe.SGDSolver.test_all

    def told(solver):
        measured(solver)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(caffe.SGDSolver, "test_all", told)
    metrics, _ = train(Path("solver.prototxt"), Path("out"), NONE, ends())
    assert metrics.iteration.iloc[-1] == 40


def test_a_command_that_was_told_to_end_ends_with_130(here):
    text = Path("solver.prototxt").read_text()
    Path("solver.prototxt").write_text(text.replace("max_iter: 40", "max_iter: 1000000"))
    arguments = [sys.executable, "-m", *TRAIN, "--checkpoint", "checkpoint", "--failed", "failed"]
    process = subprocess.Popen(
        arguments, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not Path("out/.best.caffemodel.part").exists():
        time.sleep(0.02)
    process.terminate()
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    (folder,) = CHECKPOINT.iterdir()
    assert said.splitlines()[-1] == f"ended by SIGTERM at iteration {folder.name}; run again, it goes on from there"
    assert sorted(path.name for path in Path("out").iterdir()) == ["tensorboard", "train.log"]
    assert not Path("failed").exists()


DIGITS = """
datasets:
  digits:
    source: {list: results/example/digits/base.csv, allow_file: true}
    size: {height: 28, width: 28}
    color: gray
    split: {by: column}
experiments:
  base: {dataset: digits, model: lenet, solver: {base_lr: 0.01, max_iter: 300, test_interval: 50, display: 50, snapshot: 100}}
"""


@pytest.mark.long
def test_a_workflow_that_ctrl_c_has_ended_goes_on_in_its_training(tmp_path):
    (tmp_path / "config.yaml").write_text(DIGITS)
    out = tmp_path / "results/experiments/base/train"
    target = "results/experiments/base/train/final.caffemodel"
    written = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": workflows.environment()}
    process = subprocess.Popen(workflows.command("--", target), cwd=tmp_path, start_new_session=True, **written)
    while process.poll() is None and not (out / "snapshots/base_iter_100.solverstate").exists():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 1
    (folder,) = (out.parent / "checkpoint").iterdir()
    assert f"ended by SIGINT at iteration {folder.name}; run again" in said
    code, said = workflows.snakemake(tmp_path, "--", target)
    assert code == 0, said
    assert f"resumes at iteration {folder.name}" in said
    names = [out / "final.caffemodel", *out.glob("best.*"), *(out / "snapshots").glob("base_iter_*")]
    cut_off = {path.name: path.read_bytes() for path in names}
    assert len(cut_off) == 1 + 2 + 3 * 2
    assert not folder.parent.exists()
    code, said = workflows.snakemake(tmp_path, "--forcerun", "train", "--", target)
    assert code == 0, said
    assert {path.name: path.read_bytes() for path in names} == cut_off

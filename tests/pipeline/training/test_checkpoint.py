"""Resumable checkpoints: a training interrupted or killed, and run again, is bit-identical to an uninterrupted one."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import h5py
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import caffe
from caffe.proto import caffe_pb2
from pipeline.interruption import SIGNALS, Interrupted
from pipeline.options.training import TrainOptions
from pipeline.training import checkpoint
from pipeline.training.initial_weights import WeightFiles
from pipeline.training.train import Settings, train
from tests.conftest import ROOT
from tests.pipeline.conftest import ACCURACY, TRAIN

CHECKPOINT = Path("checkpoint")
NONE = WeightFiles()


@pytest.fixture
def here(small, monkeypatch):
    """The small dataset as working folder: 40 iterations with dropout, mirroring, and snapshots."""
    monkeypatch.chdir(small)
    text = Path("train.prototxt").read_text()
    dropout = 'layer { name: "drop" type: "Dropout" bottom: "hidden" top: "hidden" }\nlayer { name: "scores"'
    text = text.replace('layer { name: "scores"', dropout).replace("scale: 0.004", "scale: 0.004 mirror: true")
    Path("train.prototxt").write_text(text)
    solver = Path("solver.prototxt").read_text().replace("max_iter: 20", "max_iter: 40 snapshot: 10 average_loss: 3")
    Path("solver.prototxt").write_text(solver)
    return small


@pytest.fixture(autouse=True)
def _set_default_signal_handlers():
    """Set default signal handlers: where tests run in the background, some signals are ignored."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def change(name: str, old: str, new: str) -> None:
    """Replace a text in a file."""
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new))


def resumable(early_stopping: int = 0, skip_layers: Sequence[str] = (), **fields) -> Settings:
    """Settings of a training with checkpoints."""
    options = TrainOptions(early_stopping=early_stopping, skip_layers=list(skip_layers))
    return Settings(options, checkpoint=CHECKPOINT, **fields)


def results(metrics: pd.DataFrame) -> dict:
    """All results of a training, except its times."""
    files = {path.name: path.read_bytes() for path in (*Path("snap").iterdir(), *Path("out").glob("*.caffemodel"))}
    rows = metrics.to_csv(index=False)
    return files | {"metrics": rows, "best": json.loads(Path("out/best.json").read_text())}


def remove_outputs() -> None:
    """Remove the outputs, as Snakemake does after a job has failed."""
    shutil.rmtree("out")
    shutil.rmtree("snap")


def train_uninterrupted(early_stopping: int = 0) -> dict:
    """The results of an uninterrupted training, whose outputs are then removed."""
    settings = Settings(TrainOptions(early_stopping=early_stopping))
    found = results(train(Path("solver.prototxt"), Path("out"), NONE, settings)[0])
    remove_outputs()
    return found


def resume(**fields) -> dict:
    """The results of the same training, run again with its checkpoint folder."""
    return results(train(Path("solver.prototxt"), Path("out"), NONE, resumable(**fields))[0])


def interrupt(monkeypatch, iteration: int, *numbers: signal.Signals, given: WeightFiles = NONE, **fields) -> str:
    """Train, and send signals while the net is tested at that iteration; returns the text of the exception."""
    measured = caffe.SGDSolver.test_all

    def signalled(solver):
        measured(solver)
        if solver.iter == iteration:
            for number in numbers:
                signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(caffe.SGDSolver, "test_all", signalled)
        with pytest.raises(Interrupted) as raised:
            train(Path("solver.prototxt"), Path("out"), given, resumable(**fields))
    assert not Path("out").exists()
    assert not Path("snap").exists()
    return str(raised.value)


def iterations() -> list[int]:
    """Iterations of which there are checkpoints."""
    return sorted(int(path.name) for path in CHECKPOINT.iterdir() if path.name.isdecimal())


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_an_interrupted_training_resumes_bit_identically(here, monkeypatch, capsys, number):
    expected = train_uninterrupted()
    assert len(expected) == 4 * 2 + 2 + 2
    said = interrupt(monkeypatch, 15, number)
    assert said == f"interrupted by {number.name} at iteration 16; run again to resume at iteration 16"
    assert iterations() == [16]
    interrupt(monkeypatch, 25, number)
    metrics, _ = train(Path("solver.prototxt"), Path("out"), NONE, resumable())
    assert "resumes at iteration 26, from checkpoint/26" in capsys.readouterr().out
    assert results(metrics) == expected
    assert pd.read_csv("out/seconds.csv").seconds.is_monotonic_increasing
    assert not CHECKPOINT.exists()
    tested = re.findall(r"Iteration (\d+), Testing", Path("out/train.log").read_text())
    assert [int(number) for number in tested] == list(range(0, 41, 5))


def test_further_signals_do_not_disturb_the_checkpoint(here, monkeypatch):
    expected = train_uninterrupted()
    before = signal.getsignal(signal.SIGTERM)
    saved = caffe.SGDSolver.snapshot

    def signalled(solver, *stem):
        if solver.iter == 16:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
        return saved(solver, *stem)

    with monkeypatch.context() as patch:
        patch.setattr(caffe.SGDSolver, "snapshot", signalled)
        interrupt(monkeypatch, 15, signal.SIGTERM, signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    assert iterations() == [16]
    assert resume() == expected


def test_a_training_interrupted_in_its_last_iteration_only_finishes_when_run_again(here, monkeypatch):
    change("solver.prototxt", "test_interval: 5", "test_interval: 39")
    expected = train_uninterrupted()
    interrupt(monkeypatch, 39, signal.SIGTERM)
    assert iterations() == [40]
    assert resume() == expected


def test_a_resumed_training_stops_early_where_an_uninterrupted_one_does(here, monkeypatch):
    change("solver.prototxt", "max_iter: 40", "max_iter: 400")
    expected = train_uninterrupted(early_stopping=4)
    stopped = max(int(iteration) for iteration in re.findall(r"s_iter_(\d+)\.", " ".join(expected)))
    assert 20 < stopped < 400
    interrupt(monkeypatch, stopped - 5, signal.SIGTERM, early_stopping=4)
    assert resume(early_stopping=4) == expected


@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
def test_solver_states_name_the_weights_at_their_final_path(here, monkeypatch, form):
    change("solver.prototxt", "snapshot: 10", f"snapshot: 10 snapshot_format: {form}")
    interrupt(monkeypatch, 15, signal.SIGTERM)
    resume()
    states = sorted(Path("snap").glob("*.solverstate*"))
    assert len(states) == 4
    for path in states:
        if form == "HDF5":
            with h5py.File(path) as file:
                named = file["learned_net"][()].decode()
        else:
            named = caffe_pb2.SolverState.FromString(path.read_bytes()).learned_net
        assert named == str(path).replace("solverstate", "caffemodel")
        assert Path(named).exists()


def test_without_hard_links_files_are_copied(here, monkeypatch):
    expected = train_uninterrupted()

    def refused(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    interrupt(monkeypatch, 15, signal.SIGTERM)
    assert resume(keep=True) == expected
    assert all(path.stat().st_nlink == 1 for path in Path().rglob("*") if path.is_file())


def test_curves_are_complete_after_an_interruption(here, monkeypatch):
    interrupt(monkeypatch, 15, signal.SIGTERM)
    (interrupted_at,) = (path.stat().st_mtime for path in CHECKPOINT.glob("16/state.json"))
    metrics, _ = train(Path("solver.prototxt"), Path("out"), NONE, resumable())
    (events,) = Path("out/tensorboard").iterdir()
    scalars = EventAccumulator(str(events)).Reload().Scalars("loss/train")
    assert [scalar.step for scalar in scalars] == list(metrics.iteration) == list(range(0, 41, 5))
    assert [scalar.value for scalar in scalars] == pytest.approx(list(metrics.loss))
    assert [scalar.wall_time <= interrupted_at for scalar in scalars] == [scalar.step < 20 for scalar in scalars]


SCRIPT = """
import os, resource, signal, shutil
from pathlib import Path
import caffe
from pipeline.command import run
from pipeline.training.train import Settings, train
from pipeline.training.initial_weights import WeightFiles

measured, iteration = caffe.SGDSolver.test_all, [0]

def tested(solver):
    iteration[0] = solver.iter
    at_test(solver.iter)
    measured(solver)

caffe.SGDSolver.test_all = tested

def at_test(iteration):
    pass

{prepare}
settings = Settings(checkpoint=Path("checkpoint"), minutes={minutes})
run(lambda _: train(Path("solver.prototxt"), Path("out"), WeightFiles(), settings))
"""


def train_in_subprocess(prepare: str, minutes: float = 0) -> subprocess.CompletedProcess:
    """Train in a subprocess, with a checkpoint after each iteration; `prepare` is code that interferes with it."""
    script = SCRIPT.format(prepare=textwrap.dedent(prepare), minutes=minutes)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", script], env=environment, check=False, capture_output=True, text=True)


@pytest.mark.own_device
def test_a_killed_training_resumes_bit_identically(here):
    expected = train_uninterrupted()
    killed = train_in_subprocess("""
        def at_test(iteration):
            if iteration == 25:
                os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert iterations() == [25]
    assert {path.name for path in (CHECKPOINT / "snapshots").iterdir()} > {"s_iter_20.caffemodel"}
    assert resume() == expected


CALLS = ["os.fsync", "os.link", "Path.replace", "Path.mkdir", "Path.write_text", "shutil.copyfile", "shutil.rmtree"]


@pytest.mark.own_device
@pytest.mark.parametrize("which", CALLS)
def test_a_training_killed_while_writing_a_checkpoint_keeps_the_previous_one(here, which):
    expected = train_uninterrupted()
    where, name = which.split(".")
    killed = train_in_subprocess(f"""
        called = {where}.{name}

        def killing(*arguments, **options):
            if iteration[0] == 25 and Path("checkpoint/25").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            return called(*arguments, **options)

        {where}.{name} = killing
    """)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    last = iterations()
    assert last in ([25], [25, 26])  # the latter if it was killed while removing the older one
    assert (CHECKPOINT / str(last[-1]) / "state.json").exists()
    assert resume() == expected
    assert not list(Path().rglob("*.part"))


@pytest.mark.own_device
def test_a_training_killed_while_its_results_are_published_only_publishes_them_when_run_again(here, capsys):
    expected = train_uninterrupted()
    killed = train_in_subprocess("""
        called = os.link

        def killing(*arguments, **options):
            if Path("out/best.json").exists() or Path("out/train.log").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            return called(*arguments, **options)

        os.link = killing
    """)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not Path("snap").exists()
    capsys.readouterr()
    assert resume() == expected
    assert "training has ended before" in capsys.readouterr().out


FULL = """
def at_test(iteration):
    if iteration == 25:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, resource.RLIM_INFINITY))  # more than the log, less than the weights
        {then}
    if iteration == 30:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""


@pytest.fixture
def large(here):
    """The training with 3 MB of weights, which exceed a file size limit that log and metrics do not, and without snapshots."""
    for name in ("train.prototxt", "test.prototxt"):
        change(name, "num_output: 6", "num_output: 4000")
    change("solver.prototxt", "snapshot: 10", "")
    change("solver.prototxt", "base_lr: 0.05", "base_lr: 0")  # no later test is the best, whose weights would be written
    change("solver.prototxt", "test_interval: 5", "test_interval: 5 test_initialization: false")
    change("test.prototxt", ACCURACY, "")
    return here


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_training(large):
    done = train_in_subprocess(FULL.format(then=""))
    assert done.returncode == 0, done.stderr
    assert "warning: iteration 26: no checkpoint could be written ([Errno 27] File too large); training continues" in done.stdout
    assert Path("out/final.caffemodel").exists()


def test_an_interrupted_training_reports_that_its_checkpoint_could_not_be_written(large):
    done = train_in_subprocess(FULL.format(then="os.kill(os.getpid(), signal.SIGTERM)"))
    assert done.returncode == 128 + signal.SIGTERM
    (line,) = done.stderr.splitlines()
    assert line.startswith("interrupted by SIGTERM at iteration 26; no checkpoint could be written ([Errno 27]")
    assert line.endswith("; run again to resume at iteration 25")
    assert iterations() == [25]


def test_a_training_interrupted_before_its_first_iteration_ends_at_once_and_keeps_its_checkpoint(here, monkeypatch):
    expected = train_uninterrupted()
    interrupt(monkeypatch, 15, signal.SIGTERM)
    done = train_in_subprocess("""
        made = caffe.get_solver

        def signalled(path):
            os.kill(os.getpid(), signal.SIGTERM)
            return made(path)

        caffe.get_solver = signalled
    """)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr == "interrupted by SIGTERM before training began; nothing is lost, run again\n"
    assert iterations() == [16]
    assert resume() == expected


def test_results_lost_after_the_end_are_restored(here, capsys):
    first = resume(keep=True)
    assert iterations() == []
    remove_outputs()
    capsys.readouterr()
    assert resume(keep=True) == first
    assert "training has ended before; its results are in checkpoint; remove it to train again" in capsys.readouterr().out
    remove_outputs()
    change("solver.prototxt", "base_lr: 0.05", "base_lr: 0.06")
    assert resume(keep=True) != first
    assert "training has ended before" not in capsys.readouterr().out


def test_results_of_other_code_are_not_restored(here, monkeypatch, capsys):
    resume(keep=True)
    remove_outputs()
    monkeypatch.setattr(checkpoint, "code_of", lambda _: "edited")
    resume(keep=True)
    assert "training has ended before" not in capsys.readouterr().out


def test_results_of_a_training_resumed_after_an_edit_of_the_code_are_restored(here, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "code_of", lambda _: "before the edit")
        interrupt(monkeypatch, 15, signal.SIGTERM)
    first = resume(keep=True)
    assert "resumes at iteration 16" in capsys.readouterr().out
    remove_outputs()
    assert resume(keep=True) == first
    assert "training has ended before" in capsys.readouterr().out


def test_kept_results_that_were_damaged_are_not_restored(here, capsys):
    first = resume(keep=True)
    weights = Path("out/final.caffemodel")  # with hard links, an in-place change also reaches the kept file
    with (CHECKPOINT / "files/final.caffemodel").open("r+b") as file:
        file.truncate(weights.stat().st_size - 10)
    remove_outputs()
    capsys.readouterr()
    assert resume(keep=True) == first
    assert "training has ended before" not in capsys.readouterr().out


def test_a_second_process_waits_until_the_first_has_ended(here):
    CHECKPOINT.mkdir()
    with (CHECKPOINT / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        arguments = [sys.executable, "-m", *TRAIN, "--checkpoint", "checkpoint"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "waiting for another process that trains with checkpoint\n"
        assert [path.name for path in CHECKPOINT.iterdir()] == ["lock"]
    said, _ = process.communicate()
    assert process.returncode == 0
    assert said.startswith("out/final.caffemodel")


def change_rate():
    change("solver.prototxt", "base_lr: 0.05", "base_lr: 0.06")
    return {}


def change_net():
    change("train.prototxt", "scale: 0.004", "scale: 0.005")
    return {}


def change_records():
    path = Path("lmdb/train.manifest.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": "another"}))
    return {}


def change_weights():
    caffe.Net("train.prototxt", caffe.TRAIN).save("start.caffemodel")
    return {"given": WeightFiles([Path("start.caffemodel")])}


def change_early_stopping():
    return {"early_stopping": 100}


def change_skip_layers():
    return {"skip_layers": ["hidden"]}


CHANGES = (change_rate, change_net, change_records, change_weights, change_early_stopping, change_skip_layers)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_training_does_not_resume(here, monkeypatch, capsys, change):
    caffe.Net("train.prototxt", caffe.TRAIN).save("start.caffemodel")
    interrupt(monkeypatch, 15, signal.SIGTERM, given=WeightFiles([Path("start.caffemodel")]))
    fields = {"given": WeightFiles([Path("start.caffemodel")])} | change()
    metrics, _ = train(Path("solver.prototxt"), Path("out"), fields.pop("given"), resumable(**fields))
    assert "resumes at" not in capsys.readouterr().out
    assert metrics.iteration.tolist() == list(range(0, 41, 5))
    assert not CHECKPOINT.exists()


def test_files_that_a_net_does_not_read_do_not_prevent_resuming(here, monkeypatch, capsys):
    interrupt(monkeypatch, 15, signal.SIGTERM)
    Path("data").mkdir()  # named like the first layer
    (Path("data") / "cat.jpg").touch()
    train(Path("solver.prototxt"), Path("out"), NONE, resumable())
    assert "resumes at iteration 16" in capsys.readouterr().out


def test_missing_weights_are_named(here):
    with pytest.raises(caffe.FileError) as raised:
        train(Path("solver.prototxt"), Path("out"), WeightFiles([Path("none.caffemodel")]), resumable())
    assert (raised.value.where, raised.value.found) == ("none.caffemodel", "no such file")


def test_in_the_background_ctrl_c_is_ignored(here, monkeypatch):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    measured = caffe.SGDSolver.test_all

    def told(solver):
        measured(solver)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(caffe.SGDSolver, "test_all", told)
    metrics, _ = train(Path("solver.prototxt"), Path("out"), NONE, resumable())
    assert metrics.iteration.iloc[-1] == 40


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_an_interrupted_command_prints_one_line_and_leaves_no_results(here, number, code):
    change("solver.prototxt", "max_iter: 40", "max_iter: 1000000")
    arguments = [sys.executable, "-m", *TRAIN, "--checkpoint", "checkpoint", "--failed", "failed"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (CHECKPOINT / "snapshots/s_iter_10.solverstate").exists():
        time.sleep(0.02)
    process.send_signal(number)
    said, errors = process.communicate()
    (iteration,) = iterations()
    assert (process.returncode, said) == (code, "")
    assert errors == f"interrupted by {number.name} at iteration {iteration}; run again to resume at iteration {iteration}\n"
    assert not Path("out").exists()
    assert not Path("failed").exists()

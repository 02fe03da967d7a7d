"""A workflow whose training is ended by signals, and that is run again, is bit-identical to an uninterrupted one.

ROASTERY_KILLS sets the number of random moments for each way of ending it; the default is 2.
"""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests import workflows

KILLS = int(os.environ.get("ROASTERY_KILLS", "2"))
CONFIG = workflows.digits(
    "base", "batch_size: 8\nsolver: {base_lr: 0.01, max_iter: 400, test_interval: 50, display: 50, snapshot: 100}"
)
EXPERIMENT = Path("results/experiments/base")
TARGET = str(EXPERIMENT / "train/final.caffemodel")
GOAL = ("--cores", "1", "--", TARGET)


def wait_for_training(workflow: subprocess.Popen) -> list[psutil.Process]:
    """Wait for the processes of its rule `train`: shell, trainer and tee; none if the workflow ends before."""
    while workflow.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes = psutil.Process(workflow.pid).children(recursive=True)
            if "tee" in {process.name() for process in processes} and any(
                "pipeline.training.train" in p.cmdline() for p in processes
            ):
                return processes
        time.sleep(0.02)
    return []


def send(number: signal.Signals, processes: list[psutil.Process]) -> None:
    """Send a signal to the processes that still run."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def results(folder: Path) -> dict[str, str]:
    """Digests of all results of a training, except times and TensorBoard's event files."""
    out = folder / EXPERIMENT / "train"
    paths = [out / "layers.csv", out / "preflight.csv", *out.glob("*.caffemodel"), *out.glob("best.json")]
    paths += (out / "snapshots").glob("base_iter_*")
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    return found | {"metrics.csv": (out / "metrics.csv").read_text()}


def build(folder: Path) -> str:
    """Run the workflow to its end; returns its output."""
    code, said = workflows.snakemake(folder, *GOAL)
    assert code == 0, said
    return said


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A folder in which all but the training is done, the results of an uninterrupted training, and its times.

    The times are the seconds before its first iteration, and after it.
    """
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "config.yaml").write_text(CONFIG)
    workflow = workflows.start(folder, *GOAL)
    processes = wait_for_training(workflow)
    times = [time.monotonic()]
    wait_for_iterations(folder, workflow)
    times.append(time.monotonic())
    psutil.wait_procs(processes)
    times.append(time.monotonic())
    seconds = (times[1] - times[0], times[2] - times[1])
    said, _ = workflow.communicate()
    assert workflow.returncode == 0, said
    expected = results(folder)
    assert len(expected) == 2 + 2 + 1 + 4 * 2 + 1
    shutil.rmtree(folder / EXPERIMENT / "train")
    return folder, expected, seconds


@pytest.fixture
def folder(uninterrupted, tmp_path):
    """A copy of that folder, ready for the training."""
    return Path(shutil.copytree(uninterrupted[0], tmp_path / "workflow"))


def iterations(folder: Path) -> list[int]:
    """Iterations of which there are checkpoints."""
    return [int(path.name) for path in (folder / EXPERIMENT / "checkpoint").glob("[0-9]*")]


def wait_for_iterations(folder: Path, workflow: subprocess.Popen) -> None:
    """Wait until the training has begun."""
    log = folder / EXPERIMENT / "checkpoint/files/train.log"
    while workflow.poll() is None and not (log.exists() and "Iteration 0 (" in log.read_text()):
        time.sleep(0.02)


def wait_for_snapshot(folder: Path, workflow: subprocess.Popen) -> None:
    """Wait until the training has passed iteration 100."""
    while workflow.poll() is None and not (folder / EXPERIMENT / "checkpoint/snapshots/base_iter_100.solverstate").exists():
        time.sleep(0.02)


def terminate_twice(processes: list[psutil.Process], chance: random.Random) -> None:
    """Send SIGTERM twice, as Slurm does at a time limit: to the job, then to its step."""
    send(signal.SIGTERM, processes)
    time.sleep(chance.uniform(0, 2))
    send(signal.SIGTERM, processes)


def kill(processes: list[psutil.Process], _chance: random.Random) -> None:
    """Send SIGKILL, as a cluster does after that."""
    send(signal.SIGKILL, processes)


@pytest.mark.long
@pytest.mark.parametrize("ending", [terminate_twice, kill])
@pytest.mark.parametrize("number", range(KILLS))
def test_a_training_ended_at_a_random_moment_resumes_bit_identically(uninterrupted, folder, number, ending):
    _, expected, (loading, iterating) = uninterrupted
    chance = random.Random(number)
    workflow = workflows.start(folder, *GOAL)
    processes = wait_for_training(workflow)
    if number % 5:
        wait_for_iterations(folder, workflow)
    time.sleep(chance.uniform(0, 1) * (iterating if number % 5 else loading))
    ending(processes, chance)
    said, _ = workflow.communicate()
    assert workflow.returncode in (0, 1), said
    if workflow.returncode:
        assert not (folder / TARGET).exists()
    print(number, ending.__name__, iterations(folder), said.partition("interrupted by ")[2].partition("\n")[0])
    build(folder)
    assert results(folder) == expected
    assert not list((folder / EXPERIMENT).rglob("*.part"))
    assert not (folder / EXPERIMENT / "checkpoint").exists()


def test_a_training_terminated_twice_reports_its_iteration_and_resumes_there(uninterrupted, folder):
    workflow = workflows.start(folder, *GOAL)
    processes = wait_for_training(workflow)
    wait_for_snapshot(folder, workflow)
    trainer = [process for process in processes if process.name().startswith("python")]
    send(signal.SIGSTOP, trainer)
    for _ in range(2):
        send(signal.SIGTERM, processes)
        time.sleep(1)
    assert all(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)
    send(signal.SIGCONT, trainer)
    said, _ = workflow.communicate()
    assert workflow.returncode == 1
    (iteration,) = iterations(folder)
    last_line = f"interrupted by SIGTERM at iteration {iteration}; run again to resume at iteration {iteration}\n"
    assert last_line in said
    assert (folder / "logs/experiments/base/train.log").read_text().endswith(last_line)
    assert f"resumes at iteration {iteration}, from " in build(folder)
    assert results(folder) == uninterrupted[1]


@pytest.mark.long
def test_a_workflow_interrupted_by_ctrl_c_resumes_and_forcerun_starts_over(uninterrupted, folder):
    workflow = workflows.start(folder, *GOAL)
    wait_for_training(workflow)
    wait_for_snapshot(folder, workflow)
    os.killpg(workflow.pid, signal.SIGINT)
    said, _ = workflow.communicate()
    assert workflow.returncode == 1
    (iteration,) = iterations(folder)
    assert f"interrupted by SIGINT at iteration {iteration}; run again" in said
    assert f"resumes at iteration {iteration}, from " in build(folder)
    assert results(folder) == uninterrupted[1]
    code, said = workflows.snakemake(folder, "--forcerun", "train", *GOAL)
    assert code == 0, said
    assert "resumes at iteration" not in said
    assert "training has ended before" not in said
    assert results(folder) == uninterrupted[1]


@pytest.mark.long
def test_a_training_that_ended_after_its_workflow_was_killed_is_not_repeated(uninterrupted, folder):
    workflow = workflows.start(folder, *GOAL)
    processes = wait_for_training(workflow)
    wait_for_snapshot(folder, workflow)
    workflow.kill()
    psutil.wait_procs(processes)
    workflow.communicate()
    assert (folder / EXPERIMENT / "checkpoint/finished.json").exists()
    code, said = workflows.snakemake(folder, "--unlock")
    assert code == 0, said
    assert "training has ended before; its results are in " in build(folder)
    assert results(folder) == uninterrupted[1]
    assert not (folder / EXPERIMENT / "checkpoint").exists()

"""The workflow on a Slurm cluster of one node: `make test-slurm`."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import workflows
from tests.caffe.training import reproducible_nets
from tests.conftest import ROOT
from tests.slurm import cluster

pytestmark = pytest.mark.skipif("ROASTERY_CLUSTER" not in os.environ, reason="no cluster: run `make test-slurm`")
PLUGINS = ("snakemake-executor-plugin-slurm", "snakemake-executor-plugin-slurm-jobstep", "throttler")
QUICK = ("--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2")
"""For a test's impatience: the plugin first looks after 40 s."""
SAME = ("data", "weights", "predictions", "metrics")


class Installed:
    """An environment with Roastery, its dependencies and the plugin."""

    def __init__(self, folder: Path, roastery: Path | str):
        """roastery  a clone, or a wheel"""
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        (site,) = (folder / "lib").glob("python*/site-packages")
        pip = [str(folder / "bin/pip"), "--quiet", "--disable-pip-version-check", "install", "--no-deps"]
        subprocess.run([*pip, *PLUGINS], check=True)
        (dependencies,) = {path for path in sys.path if path.endswith("site-packages") and Path(path, "snakemake").exists()}
        (site / "dependencies.pth").write_text(f"{dependencies}\n")
        if Path(roastery).is_dir():
            (site / "clone.pth").write_text(f"{roastery}\n")
        else:
            subprocess.run([*pip, str(roastery)], check=True)
        names = [name for name in os.environ if name.startswith(("PYTHON", "VIRTUAL"))]
        self.environment = {name: value for name, value in os.environ.items() if name not in names}
        self.environment["PATH"] = f"{folder}/bin:{os.environ['PATH']}"
        self.python = str(folder / "bin/python")

    def run(self, *words: str | Path, cwd: Path) -> str:
        """What a module prints, which has to succeed."""
        done = subprocess.run(
            [self.python, "-m", *map(str, words)], cwd=cwd, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout + done.stderr

    def start(self, *words: str | Path, cwd: Path) -> subprocess.Popen[str]:
        """Start a module, whose output goes to the file `output` in the folder."""
        command = [self.python, "-m", *map(str, words)]
        with (cwd / "output").open("w") as output:
            return subprocess.Popen(command, cwd=cwd, env=self.environment, stdout=output, stderr=output)


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    return Installed(tmp_path_factory.mktemp("environment") / "clone", ROOT)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("environment")
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "results", "logs", "build", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=ignored)
    built = [sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*built, str(source)], check=True)
    return Installed(folder / "wheel", next(folder.glob("*.whl")))


def slurm(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def jobs() -> dict[int, str]:
    """{number: state} of all jobs that the controller remembers, by number."""
    lines = slurm("squeue", "--states=all", "--noheader", "--format=%i %T").split("\n")
    return dict(sorted((int(number), state) for number, state in (line.split() for line in lines if line)))


@pytest.mark.parametrize("installed", ["clone", "wheel"])
def test_the_example_gives_the_recorded_results_in_few_jobs(installed, request, tmp_path):
    environment, before = request.getfixturevalue(installed), max(jobs(), default=0)
    environment.run("pipeline.cli", "init", "project", "--cluster", "slurm", cwd=tmp_path)
    project = tmp_path / "project"
    where = ["-s", ROOT / "Snakefile", "--workflow-profile", ROOT / "profiles/slurm"] if installed == "clone" else []
    environment.run("snakemake", *(where or ["--workflow-profile", "profiles/slurm"]), *QUICK, cwd=project)
    states = [state for number, state in jobs().items() if number > before]
    assert set(states) == {"COMPLETED"}
    assert len(states) <= 15
    recorded = ROOT / "config/example.manifest.json"
    environment.run("pipeline.report.verify", recorded, "results/manifest.json", "--kinds", *SAME, cwd=project)
    assert "Nothing to be done" in environment.run("snakemake", *where, "--cores", "1", cwd=project)


TWO_JOBS = """\
rule all:
    default_target: True
    input:
        expand("{name}.txt", name=["first", "second"]),


rule one:
    output:
        "{name}.txt",
    resources:
        gpu=1,
        mem_mb=100,
        runtime=5,
    shell:
        "date +%s.%N >{output}; echo $CUDA_VISIBLE_DEVICES >>{output}; sleep 8; date +%s.%N >>{output}"
"""


def test_two_jobs_with_a_gpu_each_run_at_the_same_time_on_two_devices(clone, tmp_path):
    (tmp_path / "Snakefile").write_text(TWO_JOBS)
    clone.run("snakemake", "--workflow-profile", ROOT / "profiles/slurm", *QUICK, cwd=tmp_path)
    read = [(tmp_path / f"{name}.txt").read_text().split() for name in ("first", "second")]
    (start, device, end), (other_start, other_device, other_end) = read
    assert {device, other_device} == {"0", "1"}
    assert max(float(start), float(other_start)) < min(float(end), float(other_end))


CONFIG = "numerics: reproducible\n" + workflows.digits(
    "target", "batch_size: 40\nsolver: {base_lr: 0.001, max_iter: 1500, test_interval: 500, display: 100}"
)
WEIGHTS = "results/experiments/base/train/final.caffemodel"
METRICS = "results/experiments/base/train/metrics.csv"


@pytest.fixture(scope="module")
def undisturbed(clone, tmp_path_factory):
    """A folder in which all but the training is done, and digests of an undisturbed training's results."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "config").mkdir()
    (folder / "config/config.yaml").write_text(CONFIG)
    clone.run("snakemake", "-s", ROOT / "Snakefile", "--cores", "all", "--", WEIGHTS, cwd=folder)
    found = digests(folder)
    shutil.rmtree(folder / "results/experiments")
    return folder, found


def digests(folder: Path) -> list[str]:
    return [hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in (WEIGHTS, METRICS)]


def wait_for_training(folder: Path, build: subprocess.Popen[str]) -> int:
    """The number of the job that trains, once it does."""
    for _ in range(1200):
        assert build.poll() is None, (folder / "output").read_text()[-4000:]
        running = [number for number, state in jobs().items() if state == "RUNNING"]
        log = folder / "results/experiments/base/checkpoint/files/train.log"
        if running and log.exists() and "Iteration 100 (" in log.read_text():
            return running[-1]
        time.sleep(0.5)
    pytest.fail("no training within ten minutes")


def cancel(folder: Path, number: int) -> None:
    slurm("scancel", str(number))


def drain(folder: Path, number: int) -> None:
    """The node takes no new jobs for a while, after the job was cancelled."""
    slurm("scontrol", "update", "NodeName=localhost", "State=DRAIN", "Reason=test")
    slurm("scancel", str(number))
    time.sleep(20)
    slurm("scontrol", "update", "NodeName=localhost", "State=RESUME")


def kill_controller(folder: Path, number: int) -> None:
    """The controller is killed, and another one goes on 10 s later."""
    home = Path(os.environ["ROASTERY_CLUSTER"])
    os.kill(int((home / "slurmctld.pid").read_text()), 9)
    time.sleep(10)
    cluster.start(["slurmctld", "-D"], home)


def nothing(folder: Path, number: int) -> None:
    """Jobs meet their own time limits."""


SIGNAL = "slurm_extra='--signal=TERM@20'"
LIMITED = ("--set-resources", "train:runtime=attempt-1", f"train:{SIGNAL}", "prototxt:runtime=1", f"prototxt:{SIGNAL}")
"""One minute for both, one more at each attempt, as slow machines need; and the signal 20 s before the end."""


@pytest.mark.parametrize("fault", [cancel, drain, kill_controller, nothing], ids=lambda fault: fault.__name__)
def test_a_fault_of_the_cluster_only_delays(fault, clone, undisturbed, tmp_path):
    folder = Path(shutil.copytree(undisturbed[0], tmp_path / "workflow", symlinks=True))
    where = ["-s", ROOT / "Snakefile", "--workflow-profile", ROOT / "profiles/slurm", "--retries", "9", *QUICK]
    before = max(jobs(), default=0)
    build = clone.start("snakemake", *where, *(LIMITED if fault is nothing else ()), "--", WEIGHTS, cwd=folder)
    fault(folder, wait_for_training(folder, build))
    assert build.wait(900) == 0, (folder / "output").read_text()[-4000:]
    assert digests(folder) == undisturbed[1]
    ended = [state for number, state in jobs().items() if number > before]
    assert ended[-1] == "COMPLETED"
    if fault is not kill_controller:
        assert set(ended[:-1]) & {"CANCELLED", "TIMEOUT", "FAILED"}, ended
        assert re.search(r"resum|Restoring previous solver status", (folder / "logs/experiments/base/train.log").read_text())


def test_torchrun_over_two_tasks_trains_one_net(clone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reproducible_nets.write("lenet", 3)
    words = f"GLOG_minloglevel=0 srun --overcommit --ntasks=2 {clone.python} -m torch.distributed.run --nnodes 2"
    words += " --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:29517 --rdzv-id 1"
    words += " -m caffe train -solver solver.prototxt"
    slurm("sbatch", "--wait", "--overcommit", "--ntasks=2", "--output=job.log", f"--wrap={words}")
    log = Path("job.log").read_text()
    assert "Optimization Done." in log, log[-4000:]
    assert log.count("caffe.cpp:250] Optimization Done.") == 1, "only the first process logs"
    assert Path("run_iter_3.caffemodel").exists()
    assert re.search(r"2 processes", log), log[-4000:]

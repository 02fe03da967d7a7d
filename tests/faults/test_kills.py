"""The example, killed at random moments of its whole build and started again each time, gives the recorded results.

ROASTERY_KILLS sets how many times it is killed; the default is 4.
"""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import workflows
from tests.conftest import ROOT

KILLS = int(os.environ.get("ROASTERY_KILLS", "4"))
LONGEST = 12
"""Seconds of work, at most, before the next kill."""
SAME = ("data", "weights", "predictions", "metrics")


def all_of_it(processes: list[psutil.Process], _chance: random.Random) -> None:
    """Kill every process at once, as when the machine loses power."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
            processes += [child for child in process.children() if child not in processes]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def the_workflow(processes: list[psutil.Process], _chance: random.Random) -> None:
    """Kill Snakemake alone: its jobs go on, and end by themselves."""
    with contextlib.suppress(psutil.NoSuchProcess):
        processes[0].kill()
    psutil.wait_procs(processes[1:])


def one_process(processes: list[psutil.Process], chance: random.Random) -> None:
    """Kill a process of a step, as the kernel does where memory runs out."""
    with contextlib.suppress(psutil.NoSuchProcess):
        chance.choice(processes[1:] or processes).kill()


def wait(build: subprocess.Popen, seconds: float) -> None:
    """Wait until the build works on its jobs, and then for a time, or until it ends."""
    with contextlib.suppress(subprocess.TimeoutExpired, psutil.NoSuchProcess):
        while build.poll() is None and not any("tee" in p.name() for p in psutil.Process(build.pid).children(recursive=True)):
            time.sleep(0.05)
        build.wait(seconds)


def running_in(build: subprocess.Popen) -> list[psutil.Process]:
    """Snakemake's process, and those below it; none if it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        workflow = psutil.Process(build.pid)
        return [workflow, *workflow.children(recursive=True)]
    return []


def steps_of(processes: list[psutil.Process]) -> list[str]:
    """The steps that run."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {word for word in process.cmdline() if word.startswith("pipeline.")}
    return sorted(found)


class Build:
    """The example in a folder, which is started, killed and started again."""

    def __init__(self, folder: Path):
        shutil.copytree(ROOT / "config", folder / "config")
        self.folder = folder
        files = ("-s", str(ROOT / "Snakefile"), "--workflow-profile", str(ROOT / "profiles/default"))
        self._words = [sys.executable, "-m", "snakemake", *files]

    def start(self) -> subprocess.Popen:
        """Unlock the folder, as Snakemake asks for after a kill, and build."""
        options = {"cwd": self.folder, "env": workflows.environment()}
        subprocess.run([*self._words, "--unlock"], capture_output=True, check=True, **options)
        with (self.folder / "output").open("w") as output:
            return subprocess.Popen(
                [*self._words, "--cores", "2"], stdout=output, stderr=output, start_new_session=True, **options
            )

    def said(self) -> str:
        return (self.folder / "output").read_text()


@pytest.mark.long
def test_the_example_killed_at_random_moments_gives_the_recorded_results(tmp_path):
    chance = random.Random(KILLS)
    number, killed = 0, 0
    while killed < KILLS:
        number += 1
        build, process = Build(tmp_path / str(number)), None
        while process is None or process.returncode:
            process = build.start()
            if killed < KILLS:
                wait(process, chance.uniform(0, LONGEST))
            if killed < KILLS and process.poll() is None and (running := running_in(process)):
                how = chance.choice([all_of_it, the_workflow, one_process])
                killed += 1
                print(f"{killed}: {how.__name__} in {', '.join(steps_of(running)) or 'no step'}", flush=True)
                how(running, chance)
                process.wait()
            elif process.wait():
                pytest.fail(build.said()[-4000:])
        verify = ["pipeline.report.verify", ROOT / "config/example.manifest.json", "results/manifest.json", "--kinds", *SAME]
        done = subprocess.run([sys.executable, "-m", *map(str, verify)], cwd=build.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not list(build.folder.rglob("*.part"))
        print(done.stdout)
        shutil.rmtree(build.folder)

"""Run Snakemake with the project's workflow in a test's own folder, which has a config.yaml."""

import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def digits(part: str, experiment: str) -> str:
    """A config: LeNet trained as experiment `base` on a part, base or target, of the embedded digits.

    experiment  the keys `batch_size` and `solver`, a line each
    """
    dataset = f"source: {{list: results/example/digits/{part}.csv, allow_file: true}}, size: {{height: 28, width: 28}}"
    keys = "\n".join(f"    {line}" for line in ("dataset: digits", "model: lenet", *experiment.splitlines()))
    return f"datasets:\n  digits: {{{dataset}, color: gray, split: {{by: column}}}}\nexperiments:\n  base:\n{keys}\n"


def command(*arguments: str) -> list[str]:
    """The command that builds targets (default: all results of the config) on two cores; `arguments` are added."""
    # An argument right after --configfile would be taken for another config file.
    files = ("-s", str(ROOT / "Snakefile"), "--configfile", "config.yaml", "--workflow-profile", str(ROOT / "profiles/default"))
    return [sys.executable, "-m", "snakemake", "--cores", "2", *files, *arguments]


def commands(output: str, step: str) -> list[str]:
    """Each command of a step, such as dataset.resize, that --printshellcmds has shown."""
    return [line for line in output.splitlines() if f"python -m pipeline.{step} " in line]


def options(output: str, step: str, about: str = "") -> list[dict]:
    """The merged `--options` of each command of a step that --printshellcmds has shown.

    about  text that the command contains
    """
    words = [shlex.split(line) for line in commands(output, step) if about in line]
    held = [[json.loads(given) for flag, given in itertools.pairwise(one) if flag == "--options"] for one in words]
    return [{key: value for part in parts for key, value in part.items()} for parts in held]


def environment() -> dict[str, str]:
    """Environment variables as with the project's virtual environment activated."""
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "NO_PROXY": "127.0.0.1",
    }


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    """Start `command` in a folder, in its own process group; all output goes to its stdout."""
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment()}
    return subprocess.Popen(command(*arguments), cwd=folder, start_new_session=True, **output)


def snakemake(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run `command` in a folder; returns the exit code and all output."""
    done = subprocess.run(command(*arguments), cwd=folder, env=environment(), capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr

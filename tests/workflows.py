"""Snakemake on the project's workflow, in a folder of the test's own that has a config.yaml."""

import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def command(*arguments: str) -> list[str]:
    """What builds targets, all that the config asks for if there are none, on two cores; `arguments` are more words."""
    # A word after a --configfile would be one more of them.
    files = ("-s", str(ROOT / "Snakefile"), "--configfile", "config.yaml", "--workflow-profile", str(ROOT / "profiles/default"))
    return [sys.executable, "-m", "snakemake", "--cores", "2", *files, *arguments]


def commands(output: str, step: str) -> list[str]:
    """Each command of a step, such as dataset.resize, that --printshellcmds has shown."""
    return [line for line in output.splitlines() if f"python -m pipeline.{step} " in line]


def options(output: str, step: str, about: str = "") -> list[dict]:
    """Of each command of a step that --printshellcmds has shown: what its `--options` hold, all together.

    about  text that the command has
    """
    words = [shlex.split(line) for line in commands(output, step) if about in line]
    held = [[json.loads(given) for flag, given in itertools.pairwise(one) if flag == "--options"] for one in words]
    return [{key: value for part in parts for key, value in part.items()} for parts in held]


def environment() -> dict[str, str]:
    """That of somebody who has activated the project's environment."""
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "NO_PROXY": "127.0.0.1",
    }


def snakemake(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run `command` in a folder; the exit code, and all that is printed."""
    done = subprocess.run(command(*arguments), cwd=folder, env=environment(), capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr

"""A workflow that is killed and run again ends with the same bytes as an undisturbed one.

ROASTERY_KILLS says how many random moments are tried; 2 where it does not.
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import workflows
from tests.conftest import SHARED, needs_shared

KILLS = int(os.environ.get("ROASTERY_KILLS", "2"))
CONFIG = f"""\
datasets:
  caltech:
    source: {{folder: {SHARED}/data/caltech101-subset}}
    size: {{height: 128, width: 128}}
    shard_size: 200
"""
TARGETS = ["results/datasets/caltech/mean.binaryproto", "results/datasets/caltech/lmdb/val.manifest.json"]


def started(folder: Path) -> subprocess.Popen:
    """The five stages, in a process group of their own."""
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": workflows.environment()}
    return subprocess.Popen(workflows.command("--", *TARGETS), cwd=folder, start_new_session=True, **output)


def digests(folder: Path) -> dict[str, str]:
    """The final outputs and their digests."""
    dataset = folder / "results/datasets/caltech"
    paths = [*dataset.glob("lists/*"), *dataset.glob("lmdb/*/data.mdb"), *dataset.glob("lmdb/*.json"), *dataset.glob("mean.*")]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def unlock(folder: Path) -> None:
    """What a user does after a kill, if Snakemake asks for it."""
    code, output = workflows.snakemake(folder, "--unlock")
    assert code == 0, output


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Digests of a run that nobody disturbs, and how long it took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "config.yaml").write_text(CONFIG)
    start = time.monotonic()
    process = started(folder)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return digests(folder), time.monotonic() - start


@needs_shared
@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_that_is_run_again_ends_with_the_same_bytes(undisturbed, tmp_path, number):
    expected, seconds = undisturbed
    assert len(expected) == 15
    (tmp_path / "config.yaml").write_text(CONFIG)
    process = started(tmp_path)
    time.sleep(random.Random(number).uniform(0.2, 1) * seconds)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    unlock(tmp_path)
    process = started(tmp_path)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert digests(tmp_path) == expected
    assert not list((tmp_path / "results").rglob("*.part"))
    assert not list((tmp_path / "results").rglob("*.resume"))
    shutil.rmtree(tmp_path / "results")

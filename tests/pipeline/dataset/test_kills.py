"""A workflow that is killed and run again ends with the same bytes as an uninterrupted one.

ROASTERY_KILLS sets the number of random moments to kill at; the default is 2.
"""

import hashlib
import os
import random
import shutil
import signal
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
GOAL = ("--", "results/datasets/caltech/mean.binaryproto", "results/datasets/caltech/lmdb/val.manifest.json")


def digests(folder: Path) -> dict[str, str]:
    """The final outputs and their digests."""
    dataset = folder / "results/datasets/caltech"
    paths = [*dataset.glob("lists/*"), *dataset.glob("lmdb/*/data.mdb"), *dataset.glob("lmdb/*.json"), *dataset.glob("mean.*")]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def unlock(folder: Path) -> None:
    """Unlock the folder, as a user does after a kill."""
    code, output = workflows.snakemake(folder, "--unlock")
    assert code == 0, output


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Digests of an uninterrupted run, and its duration in seconds."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "config.yaml").write_text(CONFIG)
    start = time.monotonic()
    process = workflows.start(folder, *GOAL)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return digests(folder), time.monotonic() - start


@needs_shared
@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_workflow_that_is_run_again_ends_with_the_same_bytes(uninterrupted, tmp_path, number):
    expected, seconds = uninterrupted
    assert len(expected) == 16
    (tmp_path / "config.yaml").write_text(CONFIG)
    process = workflows.start(tmp_path, *GOAL)
    time.sleep(random.Random(number).uniform(0.2, 1) * seconds)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    unlock(tmp_path)
    process = workflows.start(tmp_path, *GOAL)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert digests(tmp_path) == expected
    assert not list((tmp_path / "results").rglob("*.part"))
    assert not list((tmp_path / "results").rglob("*.resume"))
    shutil.rmtree(tmp_path / "results")

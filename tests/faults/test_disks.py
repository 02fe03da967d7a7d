"""Each step of the workflow on a full disk and on one that is read-only: one line says so, and the next run repairs."""

import fnmatch
import shutil
from pathlib import Path

import pytest

from pipeline.report import manifest
from tests import workflows
from tests.faults import small_disk

pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(why := small_disk.missing()), reason=f"no small disk: {why}")]
SIZE = 256 << 20
RULES = [step for step in manifest.STEPS if step not in ("fetch", "build")] + ["manifest"]
"""Rules of the config: `fetch` needs a published collection, and `reuse` writes databases as `build` does."""


@pytest.fixture
def workflow(built, tmp_path):
    """A copy of that folder with its results on a small disk, and the disk."""
    folder = tmp_path / "workflow"
    shutil.copytree(built[0], folder, symlinks=True, ignore=shutil.ignore_patterns("results"))
    (folder / "results").mkdir()
    disk = small_disk.SmallDisk(folder / "results", SIZE)
    shutil.copytree(built[0] / "results", disk.inside, dirs_exist_ok=True, symlinks=True)
    yield folder, disk
    disk.close()


@pytest.mark.parametrize("rule", RULES)
def test_a_step_on_a_full_or_a_read_only_disk_says_so_in_one_line_and_the_next_run_repairs(rule, built, workflow):
    folder, disk = workflow
    outputs = built[1][rule].outputs
    command = workflows.command("--allowed-rules", rule, "--", *outputs)
    sizes = [path.stat().st_blocks * 512 for output in outputs for path in [built[0] / output, *(built[0] / output).rglob("*")]]
    for output in outputs:
        path = disk.inside / Path(output).relative_to("results")
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    for fault, text in (("full", "No space left on device"), ("ro", "Read-only file system")):
        disk.fill(sum(sizes) // 2) if fault == "full" else disk.set("ro")
        done = disk.run(["bash", "-euo", "pipefail", "-c", built[1][rule].command], cwd=folder, env=workflows.environment())
        run = disk.run(command, cwd=folder, env=workflows.environment())
        disk.empty() if fault == "full" else disk.set("rw")
        assert done.returncode == run.returncode == 1, done.stdout + done.stderr + run.stdout + run.stderr
        print(rule, fault, said := done.stdout + done.stderr)
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert "results/" in errors[0]
        assert text in errors[0]
        assert "Traceback" not in said + run.stdout + run.stderr
        assert fault == "full" or "results: cannot be written; make it writable" in run.stdout + run.stderr
        assert not list(disk.inside.rglob("*.part"))
        assert not any((disk.inside / Path(output).relative_to("results")).exists() for output in outputs)
    run = disk.run(command, cwd=folder, env=workflows.environment())
    assert run.returncode == 0, run.stdout + run.stderr
    for output in outputs:
        for path in [built[0] / output, *(built[0] / output).rglob("*")]:
            if path.is_file() and not any(fnmatch.fnmatch(path.name, name) for name in manifest.NOT_COMPARED):
                assert (disk.inside / path.relative_to(built[0] / "results")).read_bytes() == path.read_bytes(), path

"""One build, one config: an edit of the config file during a build does not affect its jobs."""

import json
import os
import subprocess

import pytest

from tests import standins, workflows

CONFIG = """\
datasets:
  few: {source: {list: few.csv, allow_file: true}, size: {height: 16, width: 16}, split: {by: fraction, val: 0.34}}
"""
SUBMIT = """\
#!/bin/bash
# A scheduler of one node: it runs each job where it is submitted. The first job meets an edit of the config file.
[ -e edited ] || sed -i s/16/32/g config.yaml
touch edited
bash "$1" >job.log 2>&1
echo 1
"""
MEAN = "results/datasets/few/mean.json"


@pytest.fixture
def folder(tmp_path):
    standins.listed_pictures(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "submit").write_text(SUBMIT)
    (tmp_path / "submit").chmod(0o755)
    return tmp_path


def test_an_edit_of_the_config_during_a_build_does_not_affect_cluster_jobs(folder):
    cluster = ("--executor", "cluster-generic", "--cluster-generic-submit-cmd", "./submit", "--jobs", "1")
    cluster += ("--seconds-between-status-checks", "1")
    code, output = workflows.snakemake(folder, *cluster, "--latency-wait", "60", "--", MEAN)
    assert code == 0, output
    assert (folder / "config.yaml").read_text() != CONFIG
    assert json.loads((folder / MEAN).read_text())["shape"] == [3, 16, 16]
    code, output = workflows.snakemake(folder, "-n", "--", MEAN)
    assert "resize" in output, "the edited config is that of the next build"
    (folder / "config.yaml").write_text(CONFIG)
    assert "Nothing to be done" in workflows.snakemake(folder, "-n", "--", MEAN)[1]


def run_job(folder, digest: str) -> tuple[int, str]:
    """Run a job as a cluster starts it, with this digest of the config."""
    environment = {**workflows.environment(), "ROASTERY_CONFIG_1": digest}
    words = workflows.command("--mode", "remote", "--force", "--nolock", "--", "results/datasets/few/list")
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_a_job_refuses_a_config_other_than_its_builds(folder):
    code, output = workflows.snakemake(folder, "-n")
    assert code == 0, output
    assert not (folder / "results").exists()
    (fixed,) = (folder / ".snakemake/roastery").iterdir()
    code, output = run_job(folder, "")
    assert code == 1
    assert "not given the digest" in output
    code, output = run_job(folder, "0" * 16)
    assert code == 1
    assert "no such file" in output
    fixed.write_text(fixed.read_text().replace("16", "32"))
    code, output = run_job(folder, fixed.stem)
    assert code == 1
    assert "changed" in output
    assert not (folder / "results").exists()


def test_a_variable_left_from_another_build_is_ignored(folder):
    environment = {**workflows.environment(), "ROASTERY_CONFIG_1": "0" * 16}
    done = subprocess.run(workflows.command("-n"), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert os.environ.get("ROASTERY_CONFIG_1") is None

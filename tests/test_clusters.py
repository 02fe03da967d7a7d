"""Clusters without a cluster: what a scheduler is asked for, and what the profiles read from it. tests/slurm has a real one."""

import json
import re
import stat
import subprocess
import sys

import pytest
import yaml

from pipeline import cluster
from tests import standins, workflows
from tests.conftest import ROOT

CONFIG = """\
datasets:
  few: {source: {list: few.csv, allow_file: true}, size: {height: 16, width: 16}, split: {by: fraction, val: 0.34}}
"""
QSUB = """\
#!/bin/bash
# A scheduler of one node that runs each job at once; it keeps what it was asked for.
job=${@: -1}
printf '%s\\n' "$*" >>asked
bash "$job" >>job.log 2>&1
echo 4711
"""


def program(folder, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(stat.S_IRWXU)


def test_each_group_has_rules_of_the_workflow():
    text = "\n".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    rules = set(re.findall(r"^(?:rule|checkpoint|use rule \w+ as) (\w+)(?::| with:)", text, re.MULTILINE))
    assert set(cluster.groups()) <= rules
    assert rules - set(cluster.groups()) == {"digits", "shards", "fetch", "build", "reuse", "weights", "linear"}
    needs_gpu = set(re.findall(r"^rule (\w+):(?:(?!^rule ).)*gpu=GPUS", text, re.MULTILINE | re.DOTALL))
    assert needs_gpu <= set(cluster.NETS)


def test_the_profile_for_other_schedulers_asks_qsub_for_what_rules_need(tmp_path, monkeypatch):
    standins.listed_pictures(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin", "qsub", QSUB)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{workflows.environment()['PATH']}")
    where = ["-s", ROOT / "Snakefile", "--configfile", "config.yaml", "--workflow-profile", ROOT / "profiles/cluster"]
    often = ["--seconds-between-status-checks", "1", "--cores", "2"]
    words = [sys.executable, "-m", "snakemake", *map(str, where), *often, "--", "results/datasets/few/mean.json"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "results/datasets/few/mean.json").read_text())["shape"] == [3, 16, 16]
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 3, "shards, a shard, and the dataset"
    assert "-pe smp 1 -l gpu=0 -l h_vmem=1000M -l h_rt=600 " in asked[0]
    assert "-pe smp 2 -l gpu=0 -l h_vmem=500M -l h_rt=9000 " in asked[1]


@pytest.mark.parametrize(
    ("sacct", "expected"), [("exit 1", "squeue"), ("exit 0", "sacct"), (None, "squeue")], ids=["off", "on", "missing"]
)
def test_the_state_of_jobs_is_asked_of_accounting_only_where_it_answers(tmp_path, monkeypatch, sacct, expected):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if sacct else str(tmp_path))
    if sacct:
        program(tmp_path, "sacct", f"#!/bin/sh\n{sacct}\n")
    assert cluster.status_command() == expected


@pytest.mark.parametrize(("sinfo", "expected"), [("echo 2; echo 4+", 4), ("echo 64", 8), ("exit 1", 8)])
def test_a_job_asks_for_no_more_processors_than_the_largest_node_has(tmp_path, monkeypatch, sinfo, expected):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program(tmp_path, "sinfo", f"#!/bin/sh\n{sinfo}\n")
    assert cluster.processors() == expected


def test_account_partitions_and_gres_of_a_site_are_asked_for(tmp_path):
    import yte

    text = (ROOT / "profiles/slurm/profile.yaml").read_text()
    for name, value in (("account", "lab"), ("partition", "cpu"), ("gpu_partition", "gpu"), ("gres", "gpu:1")):
        text, count = re.subn(rf'^  - {name} = ""', f'  - {name} = "{value}"', text, flags=re.MULTILINE)
        assert count == 1
    profile = yte.process_yaml(text)
    assert profile["default-resources"] == {"mem_mb": 1000, "runtime": 30, "slurm_account": "lab", "slurm_partition": "cpu"}
    train = profile["set-resources"]["train"]
    assert train == {
        "slurm_partition": "gpu",
        "gres": "gpu:1",
        "gpu": 0,
        "slurm_extra": "--signal=TERM@60",
        "runtime": 1435,
    }
    assert profile["set-resources"]["plots"]["slurm_partition"] == "gpu", "a group has one partition"
    plain = yte.process_yaml((ROOT / "profiles/slurm/profile.yaml").read_text())
    assert "slurm_account" not in plain["default-resources"]


def test_both_profiles_say_the_same_of_jobs_and_groups():
    import yte

    slurm, other = (yte.process_yaml((ROOT / f"profiles/{name}/profile.yaml").read_text()) for name in ("slurm", "cluster"))
    own = ("set-resources", "default-resources", "executor", "cores")
    for profile in (slurm, other):
        for key in [key for key in profile if key in own or key.startswith(("slurm-", "cluster-generic-"))]:
            del profile[key]
    assert slurm == other
    assert yaml.safe_load(yaml.safe_dump(slurm)) == slurm

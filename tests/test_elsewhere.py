"""The workflow from another folder: the small config of .test, a report there, and use as a module of another workflow."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import standins, workflows
from tests.conftest import ROOT

CONFIG = """\
datasets:
  few: {source: {list: few.csv, allow_file: true}, size: {height: 16, width: 16}, split: {by: fraction, val: 0.34}}
"""
OUTER = f"""\
configfile: "config.yaml"


module roastery:
    snakefile:
        "{ROOT}/Snakefile"
    config:
        config["roastery"]
    PREFIX


use rule * from roastery


rule copy:
    default_target: True
    input:
        "PLACEresults/datasets/few/mean.json",
    output:
        "mean.json",
    shell:
        "cp {{input:q}} {{output}}"
"""


def snakemake(*arguments: str | Path, cwd: Path) -> str:
    """Run Snakemake without the tests' usual arguments; what it prints."""
    words = [sys.executable, "-m", "snakemake", "--cores", "2", *map(str, arguments)]
    done = subprocess.run(words, cwd=cwd, env=workflows.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path):
    """A folder with six pictures and a list of them."""
    standins.listed_pictures(tmp_path)
    return tmp_path


@pytest.mark.parametrize("prefix", ["", "some where"])
def test_the_rules_build_as_a_module_of_another_workflow(folder, prefix):
    """A prefix is for results and logs; files that the config names are where it says."""
    (folder / "config.yaml").write_text("roastery:\n" + "".join(f"  {line}\n" for line in CONFIG.splitlines()) + "mine: 1\n")
    outer = OUTER.replace("PREFIX", f'prefix: "{prefix}"' if prefix else "")
    (folder / "Snakefile").write_text(outer.replace("PLACE", f"{prefix}/" if prefix else ""))
    snakemake(cwd=folder)
    assert json.loads((folder / "mean.json").read_text())["shape"] == [3, 16, 16]
    assert "lmdb/val.manifest.json" in snakemake("-n", "all", cwd=folder)
    assert (folder / prefix / "logs/datasets/few/mean.log").exists()
    assert not prefix or not (folder / "results").exists()


@pytest.mark.long
@pytest.mark.parametrize("prefix", ["", "some where"])
def test_the_example_as_a_module_gives_the_recorded_results(tmp_path, prefix):
    example = (ROOT / "config/config.yaml").read_text()
    (tmp_path / "config.yaml").write_text("roastery:\n" + "".join(f"  {line}\n" for line in example.splitlines()))
    outer = OUTER.partition("rule copy:")[0].replace("PREFIX", f'prefix: "{prefix}"' if prefix else "")
    (tmp_path / "Snakefile").write_text(outer)
    snakemake("all", cwd=tmp_path)
    recorded, built = ROOT / "config/example.manifest.json", tmp_path / prefix / "results/manifest.json"
    # With a prefix, weights have other bytes: they hold the net, with the databases' paths.
    same = ["predictions", "metrics"] if prefix else ["data", "weights", "predictions", "metrics"]
    verify = [sys.executable, "-m", "pipeline.report.verify", str(recorded), str(built), "--kinds", *same]
    done = subprocess.run(verify, env=workflows.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


OVERVIEW = "results/datasets/few/pictures/overview.png"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder whose dataset has an overview for the report, and a link to the clone."""
    folder = tmp_path_factory.mktemp("elsewhere")
    standins.listed_pictures(folder)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "clone").symlink_to(ROOT)
    snakemake("-s", ROOT / "Snakefile", "--configfile", "config.yaml", "--", OVERVIEW, cwd=folder)
    return folder


@pytest.mark.parametrize("start", ["clone", "parent", "folder"])
def test_a_report_in_another_folder_has_the_stylesheet(built, start):
    """From the clone with -d; from the folder above both, by relative paths; in the folder itself."""
    cwd, arguments = {
        "clone": (built / "clone", ["-d", built]),
        "parent": (built.parent, ["-d", built.name, "-s", f"{built.name}/clone/Snakefile"]),
        "folder": (built, ["-s", ROOT / "Snakefile"]),
    }[start]
    snakemake(*arguments, "--configfile", built / "config.yaml", "--report", f"{start}.html", "--", OVERVIEW, cwd=cwd)
    html = (built / f"{start}.html").read_text()
    assert (ROOT / "pipeline/report/style.css").read_text() in html
    assert "overview.png" in html


@pytest.mark.long
def test_the_small_config_builds_everything_and_its_report(tmp_path):
    folder = tmp_path / ".test"
    shutil.copytree(ROOT / ".test/config", folder / "config")
    snakemake("--directory", folder, cwd=ROOT)
    snakemake("--directory", folder, "--report", "report.html", cwd=ROOT)
    for experiment in ("base", "finetuned"):
        assert (folder / f"results/experiments/{experiment}/train/final.caffemodel").exists()
    assert (folder / "results/manifest.json").exists()
    assert (folder / "report.html").stat().st_size > 1_000_000

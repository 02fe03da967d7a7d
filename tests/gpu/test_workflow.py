"""A whole workflow with `compute: gpu`, each of its steps on a pretend GPU: the bytes of the same workflow on the CPU."""

import os
import shlex
import stat
import sys

import cv2
import pytest

from pipeline.report import manifest, verify
from tests import standins, workflows
from tests.conftest import ROOT

pytestmark = pytest.mark.own_device

CONFIG = """\
numerics: reproducible
datasets:
  few:
    source: {folder: photos}
    size: {height: 32, width: 32}
    split: {by: fraction, val: 0.34}
    augmentation: {min_area: 0.5, noise: 2}
experiments:
  first:
    {dataset: few, model: cifar10_quick, batch_size: 4, features: [pool3], feature_formats: [npy], evaluate: [val, train],
     solver: {max_iter: 4, test_interval: 2, display: 2, snapshot: 2}}
  second:
    {dataset: few, model: cifar10_quick, batch_size: 4, weights: {experiment: first}, rename_last: true, strategy: auto,
     classify: {images: photos/a, oversample: true}, solver: {max_iter: 2, test_interval: 2}}
"""
PYTHON = """\
#!/bin/sh
if [ "$1" = -m ]; then shift; exec {python} -m tests.gpu.pretend "$@"; fi
exec {python} "$@"
"""


@pytest.fixture
def build(tmp_path, monkeypatch):
    """build(compute) builds the workflow there; gives its manifest."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where steps note which GPU they use

    def run(compute):
        folder = tmp_path / compute
        for number in range(12):
            path = folder / "photos" / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), standins.picture(number % 2, number, 40))
        (folder / "config.yaml").write_text(f"compute: {compute}\n{CONFIG}")
        if compute == "gpu":
            python = tmp_path / "bin/python"
            python.parent.mkdir()
            python.write_text(PYTHON.format(python=shlex.quote(sys.executable)))
            python.chmod(python.stat().st_mode | stat.S_IXUSR)
        with monkeypatch.context() as patched:
            if compute == "gpu":
                environment = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}"}
                patched.setattr(workflows, "environment", lambda: environment)
            code, output = workflows.snakemake(folder)
        assert code == 0, output
        return manifest.read(folder / "results/manifest.json")

    return run


@pytest.mark.long
def test_each_step_computes_on_a_gpu_what_it_computes_on_the_cpu(build):
    on_cpu, on_gpu = build("cpu"), build("gpu")
    assert on_gpu["machines"]["first"]["device"] == "Pretend 0"
    assert on_cpu["machines"]["first"]["device"] != "Pretend 0"
    kinds = ("data", "weights", "predictions", "metrics")
    assert verify.compare(on_cpu, on_gpu, kinds) == []
    assert {result["kind"] for result in on_cpu["results"].values()} >= set(kinds)

"""The workflow with its results in a storage provider of Snakemake, and from there in an empty folder."""

import importlib.util
import shutil

import pytest

from tests import workflows
from tests.conftest import ROOT

MISSING = [name for name in ("snakemake_storage_plugin_fs",) if importlib.util.find_spec(name) is None]
MISSING += [] if shutil.which("rsync") else ["rsync"]


@pytest.mark.long
@pytest.mark.skipif(bool(MISSING), reason=f"missing: {', '.join(MISSING)}")
def test_results_in_storage_are_those_of_a_local_build_and_are_found_from_another_folder(tmp_path):
    storage = ["--default-storage-provider", "fs", "--default-storage-prefix", str(tmp_path / "storage")]
    arguments = {"local": [], "first": [*storage, "--keep-storage-local-copies"], "second": [*storage, "--dry-run"]}
    said = {}
    for name, given in arguments.items():
        folder = tmp_path / name
        folder.mkdir()
        config = (ROOT / ".test/config/config.yaml").read_text()
        (folder / "config.yaml").write_text(f"numerics: reproducible\n{config}")
        code, said[name] = workflows.snakemake(folder, *given)
        assert code == 0, said[name]
    assert "Nothing to be done" in said["second"]
    for path in ("datasets/digits/lmdb/train/data.mdb", "experiments/finetuned/train/metrics.csv"):
        assert (tmp_path / "storage/results" / path).read_bytes() == (tmp_path / "local/results" / path).read_bytes()
    assert not (tmp_path / "first/results/experiments").exists()

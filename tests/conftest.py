"""Shared by all tests: paths of recordings and real data, and a fixture that writes small files."""

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("GLOG_minloglevel", "2")

import pytest

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
SHARED = Path(os.environ.get("ROASTERY_SHARED", ROOT.parent / "shared"))

needs_leveldb = pytest.mark.skipif(importlib.util.find_spec("plyvel") is None, reason="plyvel, which reads LevelDBs, is missing")
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the recordings and data of ../shared are missing")


@pytest.fixture
def write(tmp_path):
    """write(name, text) gives the path of a new file in the test's own folder."""

    def write_file(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write_file

"""Shared by all tests: paths of recordings and real data, and a fixture that writes small files."""

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("GLOG_minloglevel", "2")
os.environ["CAFFE_LAYOUT"] = "channels_last"  # not what is faster on a pretend GPU: its roundings are others

if os.environ.get("TRITON_INTERPRET") != "1":
    os.environ["CAFFE_GPU_KERNELS"] = "0"  # a pretend GPU has no driver

import pytest

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
SHARED = Path(os.environ.get("ROASTERY_SHARED", ROOT.parent / "shared"))

needs_leveldb = pytest.mark.skipif(importlib.util.find_spec("plyvel") is None, reason="plyvel, which reads LevelDBs, is missing")
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the recordings and data of ../shared are missing")


def pytest_addoption(parser):
    parser.addoption("--pretend-gpu", action="store_true", help="run every test on a pretend GPU (tests/gpu/pretend.py)")


@pytest.fixture(autouse=True)
def _device(request, monkeypatch):
    """With --pretend-gpu, nets are made on a pretend GPU, whatever a test asks for."""
    if not request.config.getoption("--pretend-gpu") or request.node.get_closest_marker("own_device"):
        yield
        return
    import caffe
    from caffe.engine import cuda_graphs, mode
    from tests.gpu import pretend

    monkeypatch.setattr(cuda_graphs, "FIRST", 0)  # most tests train for a few iterations
    monkeypatch.setattr(cuda_graphs, "failed", {})
    with pretend.gpus(2):
        caffe.set_device(0)
        caffe.set_mode_gpu()
        for module in (caffe, mode):
            monkeypatch.setattr(module, "set_mode_cpu", lambda: None, raising=False)
        yield
        monkeypatch.undo()  # before the pretend GPU goes: a test may have replaced a part of it
    mode.set_mode_cpu()


@pytest.fixture
def numerics(request):
    """Lets nets compute in the numerics that a test is parametrized with, indirectly."""
    from caffe.engine import mode

    before = mode.numerics()
    mode.set_numerics(request.param)
    yield request.param
    mode.set_numerics(before)


@pytest.fixture
def write(tmp_path):
    """write(name, text) gives the path of a new file in the test's own folder."""

    def write_file(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write_file

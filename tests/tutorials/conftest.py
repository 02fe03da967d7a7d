"""Where BVLC's notebooks are run."""

import matplotlib
import matplotlib.pyplot as plt
import pytest

import caffe


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """The working folder, as `examples` in a checkout; what is plotted is not shown."""
    matplotlib.use("Agg")
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    caffe.set_random_seed(1)
    yield tmp_path / "examples"
    plt.close("all")

"""Several GPUs in one process: right, or one clear error."""

import numpy as np
import pytest
import torch

import caffe
from caffe.commands import devices
from tests.gpu import pretend
from tests.gpu.test_held_views import NET, SOLVER

pytestmark = pytest.mark.own_device


@pytest.fixture
def two_gpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "solver.prototxt").write_text(SOLVER + "average_loss: 3 display: 1")
    with pretend.gpus(2):
        caffe.set_device(0)
        caffe.set_mode_gpu()
        yield
        caffe.set_device(0)
        caffe.set_mode_cpu()


def train(steps=3, after=lambda solver: None):
    solver = caffe.get_solver("solver.prototxt")
    after(solver)
    solver.step(steps)
    weights = [blob.data.copy() for blobs in solver.net.params.values() for blob in blobs]
    solver.close()
    return weights


def test_a_net_stays_on_its_device_when_another_one_is_chosen(two_gpus):
    def change(solver):
        caffe.set_device(1)

    expected = train()
    for mine, theirs in zip(train(after=change), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert caffe.Net("net.prototxt", caffe.TRAIN).params["ip"][0].tensor.device == torch.device("cuda", 1)


def test_a_training_resumes_on_another_device(two_gpus):
    def save(solver):
        solver.step(2)
        solver.snapshot()

    expected = train(2, save)
    caffe.set_device(1)
    for mine, theirs in zip(train(2, lambda solver: solver.restore("run_iter_2.solverstate")), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_nets_on_different_devices_cannot_share_weights(two_gpus):
    first = caffe.Net("net.prototxt", caffe.TRAIN)
    caffe.set_device(1)
    second = caffe.Net("net.prototxt", caffe.TRAIN)
    with pytest.raises(caffe.Error) as error:
        second.share_with(first)
    assert "cuda:0" in error.value.found
    assert "cuda:1" in error.value.expected


@pytest.mark.parametrize(
    ("flag", "found", "expected"),
    [("0,0", "GPU 0 twice", "each is used by one process"), ("1,0,1", "GPU 1 twice", "each is used by one process")],
)
def test_a_gpu_named_twice_is_refused(two_gpus, flag, found, expected):
    with pytest.raises(caffe.Error) as error:
        devices.parse_gpus(flag)
    assert (error.value.found, error.value.expected) == (found, expected)


def test_a_gpu_that_does_not_exist_is_refused(two_gpus):
    with pytest.raises(caffe.Error) as error:
        caffe.set_device(2)
    assert error.value.expected == "there are 2 devices (0 to 1)"

"""Devices: concurrent jobs hold different ones, and a job that dies releases its own."""

import os
import subprocess
import sys
import threading

import pytest
import torch

import caffe
from pipeline import devices
from pipeline.devices import computing, first_free
from pipeline.errors import InputError
from pipeline.options.base import Device
from tests.conftest import ROOT
from tests.gpu import pretend

HOLD = """
import sys
import threading
from pathlib import Path
from pipeline.devices import first_free
with first_free(["GPU-a", "GPU-b"], Path(sys.argv[1])) as number:
    print(number, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def job(tmp_path):
    """job() starts a process that takes one of two devices; gives the process and the device's number."""
    started = []

    def start() -> tuple[subprocess.Popen, int]:
        words = [sys.executable, "-c", HOLD, str(tmp_path)]
        process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process, int(process.stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_concurrent_jobs_take_different_devices(job):
    assert [job()[1], job()[1]] == [0, 1]


def test_the_device_of_a_killed_job_is_free_again(job):
    first, _ = job()
    job()
    first.kill()
    first.wait()
    assert job()[1] == 0


def test_a_device_is_locked_by_its_name_whatever_its_number(tmp_path):
    with first_free(["GPU-a"], tmp_path), first_free(["GPU-b"], tmp_path) as number:
        assert number == 0
    with first_free(["GPU-b"], tmp_path), first_free(["GPU-b", "GPU-a"], tmp_path) as number:
        assert number == 1


def test_a_waiting_job_says_for_whom(job, tmp_path):
    (first, _), (second, _) = job(), job()
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    waiting = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said = waiting.stderr.readline()
        assert said.startswith(f"waiting for a GPU: GPU-a is used by process {first.pid} (")
        assert f"GPU-b is used by process {second.pid} (" in said
        assert "import first_free" in said
        second.kill()
        assert waiting.stdout.readline() == "1\n"
    finally:
        waiting.kill()
        waiting.communicate()


def test_a_job_does_not_wait_for_itself(tmp_path):
    with first_free(["GPU-a"], tmp_path), pytest.raises(InputError) as error, first_free(["GPU-a"], tmp_path):
        pass
    assert "already" in error.value.found


def test_a_lock_that_this_process_left_and_another_holds_is_waited_for(job, tmp_path):
    """As where a job has locked the file and not yet written its own number."""
    with first_free(["GPU-a"], tmp_path):
        pass
    holder, _ = job()
    (tmp_path / "GPU-a.lock").write_text(f"{os.getpid()} train")
    with first_free(["GPU-a", "GPU-b"], tmp_path) as number:
        assert number == 1
    threading.Timer(0.5, holder.kill).start()
    with first_free(["GPU-a"], tmp_path) as number:
        assert number == 0


@pytest.mark.parametrize("name", ["MIG-GPU-1/2/0", "../a"])
def test_a_name_with_slashes_is_a_name(tmp_path, name):
    with first_free([name], tmp_path / "locks") as number:
        assert number == 0
    assert [path.name for path in tmp_path.iterdir()] == ["locks"]


def fake_nvidia_smi(folder, monkeypatch, text):
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_the_card_with_most_free_memory_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    fake_nvidia_smi(tmp_path, monkeypatch, "GPU-pretend-0, 100\nGPU-pretend-1, 9000\nGPU-pretend-2, [N/A]")
    with pretend.gpus(3), computing(Device(gpu=True)):
        assert torch.cuda.current_device() == 1
        with computing(Device(gpu=True)):
            assert torch.cuda.current_device() == 0
        caffe.set_mode_cpu()


def test_without_nvidia_smi_cards_are_taken_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.free_memory() == {}


def test_slices_of_a_card_are_known_by_their_own_ids(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b")
    with pretend.gpus(2):
        assert [devices.name_of(number) for number in range(2)] == ["MIG-a", "MIG-b"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pretend.gpus(2):
        assert [devices.name_of(number) for number in range(2)] == ["pretend-0", "pretend-1"]


@pytest.mark.own_device
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_error_says_to_use_the_cpu():
    with pytest.raises(InputError) as error, computing(Device(gpu=True)):
        pass
    assert error.value.do == "set compute: cpu in the config"

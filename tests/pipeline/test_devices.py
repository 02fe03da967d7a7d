"""Devices: concurrent jobs hold different ones, and a job that dies releases its own."""

import subprocess
import sys

import pytest
import torch

from pipeline.devices import computing, first_free
from pipeline.errors import InputError
from pipeline.options.base import Device
from tests.conftest import ROOT

HOLD = """
import sys
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_error_says_to_use_the_cpu():
    with pytest.raises(InputError) as error, computing(Device(gpu=True)):
        pass
    assert error.value.do == "set compute: cpu in the config"

"""Claim a free GPU, since Snakemake counts GPUs but does not assign them; and describe the machine."""

import contextlib
import fcntl
import importlib.metadata
import importlib.resources
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import caffe
from pipeline.closure import code_of_package
from pipeline.errors import InputError
from pipeline.options.base import Device


@contextlib.contextmanager
def computing(device: Device) -> Iterator[None]:
    """Compute where and how `device` says while the block runs.

    The GPU is one that no other job of this user has claimed; waits for one. GPUs are identified by UUID: a cluster may show each
    job its GPU as number 0.
    """
    caffe.set_numerics(device.numerics)
    if not device.gpu:
        yield
        return
    names = [str(torch.cuda.get_device_properties(number).uuid) for number in range(torch.cuda.device_count())]
    if not names:
        raise InputError("compute: gpu", "PyTorch finds no CUDA device", do="set compute: cpu in the config")
    with first_free(names, Path(tempfile.gettempdir()) / f"roastery-{os.getuid()}") as number:
        caffe.set_device(number)
        caffe.set_mode_gpu()
        yield


def machine(is_gpu: bool) -> dict[str, str | int]:
    """Hardware and software that the bits of a training depend on.

    Versions of Roastery and PyTorch, a digest of the engine's code, processor, vector code, threads, device.
    """
    return {
        "roastery": importlib.metadata.version("roastery"),
        "torch": torch.__version__,
        "engine": code_of_package(Path(str(importlib.resources.files("caffe")))),
        "processor": _processor(),
        "vector_code": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if is_gpu else "cpu",
    }


def _processor() -> str:
    """The processor's name, from /proc/cpuinfo, else from Python."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def first_free(names: list[str], folder: Path) -> Iterator[int]:
    """Lock the first free of `names` while the block runs; wait for one. Yields its position.

    Each name is a lock file in `folder`; the system releases the lock however the job ends.
    """
    folder.mkdir(exist_ok=True)
    while True:
        for number, name in enumerate(names):
            with (folder / f"{name}.lock").open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield number
                return
        time.sleep(1)

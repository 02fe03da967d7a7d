"""Which GPU a job takes, where several run at once: Snakemake counts GPUs but does not say which is free."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import importlib.util
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


@contextlib.contextmanager
def gpu() -> Iterator[int]:
    """The number of a GPU that no other job of this user holds; waits for one, and holds it while the block runs.

    GPUs are told apart by their identity, not their number: a cluster may call the one that it gives each job number 0.
    """
    count = torch.cuda.device_count()
    if not count:
        raise InputError("compute: gpu", "PyTorch finds no CUDA device", do="set compute: cpu in the config")
    names = [str(torch.cuda.get_device_properties(number).uuid) for number in range(count)]
    with first_free(names, Path(tempfile.gettempdir()) / f"roastery-{os.getuid()}") as number:
        yield number


@contextlib.contextmanager
def on_gpu(wanted: bool) -> Iterator[None]:
    """Compute on a GPU that no other job of this user holds while the block runs; or, where none is wanted, on the CPU."""
    if not wanted:
        yield
        return
    with gpu() as number:
        caffe.set_device(number)
        caffe.set_mode_gpu()
        yield


def machine(is_gpu: bool) -> dict[str, str | int]:
    """What this process computes with, on which the bits of a training depend.

    Versions of Roastery and PyTorch, a digest of the engine's code, processor, vector code, threads, device.
    """
    return {
        "roastery": importlib.metadata.version("roastery"),
        "torch": torch.__version__,
        "engine": code_of_package(Path(importlib.util.find_spec("caffe").origin).parent),
        "processor": _processor(),
        "vector_code": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if is_gpu else "cpu",
    }


def _processor() -> str:
    """The processor's name as Linux has it, or elsewhere as Python has it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def first_free(names: list[str], folder: Path) -> Iterator[int]:
    """The number of the first of `names` that nobody holds; waits for one, and holds it while the block runs.

    A name is held by a lock on a file of its own in `folder`, which the system releases however the job ends.
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

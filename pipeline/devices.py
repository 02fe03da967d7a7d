"""Claim a free GPU, since Snakemake counts GPUs but does not assign them; and describe the machine."""

import contextlib
import fcntl
import importlib.metadata
import importlib.resources
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import torch

import caffe
from pipeline.closure import code_of_package
from pipeline.errors import InputError
from pipeline.options.base import Device

_claimed: set[Path] = set()
"""Lock files of the GPUs that this process has claimed."""


@contextlib.contextmanager
def computing(device: Device) -> Iterator[None]:
    """Compute where and how `device` says from now on; while the block runs, the GPU is claimed.

    It is one that no other job of this user has claimed; waits for one. GPUs are identified by UUID: a cluster may show each
    job its GPU as number 0.
    """
    caffe.set_numerics(device.numerics)
    if not device.gpu:
        yield
        return
    numbers = range(torch.cuda.device_count())
    if not numbers:
        raise InputError("compute: gpu", "PyTorch finds no CUDA device", do="set compute: cpu in the config")
    free = free_memory()
    names = {name_of(number): number for number in numbers}
    ordered = sorted(names, key=lambda name: -free.get(name, 0))
    with first_free(ordered, Path(tempfile.gettempdir()) / f"roastery-{os.getuid()}") as place:
        caffe.set_device(names[ordered[place]])
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


def name_of(number: int) -> str:
    """A GPU's UUID; of a slice (MIG) its own, as CUDA_VISIBLE_DEVICES gives it, since CUDA tells that of the whole card."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if number < len(visible) and visible[number].startswith("MIG-"):
        return visible[number]
    return str(torch.cuda.get_device_properties(number).uuid)


def free_memory() -> dict[str, int]:
    """{UUID: free MiB} of the machine's GPUs, by nvidia-smi; empty without it. CUDA itself would take memory on each to tell."""
    command = ["nvidia-smi", "--query-gpu=uuid,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = (line.split(",") for line in done.stdout.splitlines())
    return {row[0].strip().removeprefix("GPU-"): int(row[1]) for row in rows if len(row) == 2 and row[1].strip().isdecimal()}


@contextlib.contextmanager
def first_free(names: list[str], folder: Path) -> Iterator[int]:
    """Lock the first free of `names` while the block runs; yields its position. Waits for one, and says for whom.

    Each name is a lock file in `folder`, with the process that holds it; the system releases the lock however the job ends.
    Raises InputError if this process holds all of them itself.
    """
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{quote(name, safe='')}.lock" for name in names]
    told = ""
    while True:
        holders = []
        for number, path in enumerate(paths):
            with path.open("a+") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.seek(0)
                    holders.append(file.read())
                    continue
                file.truncate(0)
                file.write(f"{os.getpid()} {textwrap.shorten(shlex.join(sys.orig_argv), 200)}")
                file.flush()
                _claimed.add(path)
                try:
                    yield number
                finally:
                    _claimed.remove(path)
                    file.truncate(0)
                return
        if _claimed.issuperset(paths):
            raise InputError("GPU", "this process has claimed all GPUs already", "it would wait for itself", "use one at a time")
        waiting = "waiting for a GPU: " + "; ".join(
            f"{name} is used by process {pid or '(starting)'}" + (f" ({command})" if command else "")
            for name, (pid, _, command) in zip(names, (holder.partition(" ") for holder in holders), strict=True)
        )
        if waiting != told:
            print(waiting, file=sys.stderr, flush=True)
            told = waiting
        time.sleep(1)

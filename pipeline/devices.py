"""Which GPU a job takes, where several run at once: Snakemake counts GPUs but does not say which is free."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from pipeline.errors import InputError


@contextlib.contextmanager
def gpu() -> Iterator[int]:
    """The number of a GPU that no other job of this user holds; waits for one, and holds it while the block runs.

    A GPU is held by a lock on a file of its own, which the system releases however the job ends.
    """
    count = torch.cuda.device_count()
    if not count:
        raise InputError("compute: gpu", "PyTorch finds no CUDA device", do="set compute: cpu in the config")
    folder = Path(tempfile.gettempdir()) / f"roastery-{getpass.getuser()}"
    folder.mkdir(exist_ok=True)
    while True:
        for number in range(count):
            with (folder / f"gpu{number}.lock").open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield number
                return
        time.sleep(1)

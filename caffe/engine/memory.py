"""What an error says when memory runs out: how much was needed, how much there was, and what to lower."""

import contextlib
import os
import re
from collections.abc import Iterator

import torch

from caffe.errors import Error, OutOfMemoryError

_SIGNS = ("out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED")
"""What the messages of CUDA, of PyTorch's allocator on CPUs, and of cuBLAS and cuDNN have in common."""
_NEEDED = re.compile(r"tried to allocate ([\d.]+) (bytes|[KMG]iB)", re.IGNORECASE)
_GPU = re.compile(r"GPU (\d+)")
_UNITS = {"bytes": 2**-30, "KiB": 2**-20, "MiB": 2**-10, "GiB": 1.0}
DO = "lower batch_size (a larger iter_size keeps the number of records of an update), or the size of images"


def shortage(error: RuntimeError) -> str:
    """What was needed and what there was, if `error` says that memory ran out; "" if it says anything else."""
    text = str(error)
    if isinstance(error, Error) or not any(sign in text for sign in _SIGNS):
        return ""
    of_cpu = "DefaultCPUAllocator" in text
    if not of_cpu and not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return ""  # somebody else's words
    match = _NEEDED.search(text)
    needed = f"{float(match[1]) * _UNITS[match[2]]:.2f} GiB more are needed" if match else "more is needed"
    if of_cpu:
        free, total = (os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))
        return f"out of memory: {needed}, and of this machine's {_gib(total)}, {_gib(free)} are free"
    gpu = int(number[1]) if (number := _GPU.search(text)) else torch.cuda.current_device()
    free, total = torch.cuda.mem_get_info(gpu)
    held = _gib(torch.cuda.memory_reserved(gpu))
    return f"out of memory: {needed}, and of GPU {gpu}'s {_gib(total)}, {_gib(free)} are free and {held} are held by this process"


def raise_shortage(error: RuntimeError, where: str) -> None:
    """Raise OutOfMemoryError if `error` says that memory ran out."""
    if found := shortage(error):
        raise OutOfMemoryError(where, found, do=DO) from error


@contextlib.contextmanager
def explained(where: str = "") -> Iterator[None]:
    """Let memory that runs out in this block be told in one line that begins with `where`."""
    try:
        yield
    except RuntimeError as error:
        raise_shortage(error, where)
        raise


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"

"""Device, numerics, solver rank and random numbers, set once for the process as in Caffe."""

import os
from dataclasses import dataclass

import torch

from caffe.errors import Error
from caffe.numerics import NUMERICS
from caffe.numerics.generator import Generator


@dataclass
class _State:
    gpu: bool = False
    device: int = 0
    solvers: int = 1
    rank: int = 0
    numerics: str = "fp32"


_state = _State()

generator = Generator()
"""What fillers and layers draw from; a source of data takes the seed of its own generator from here."""


def set_mode_cpu() -> None:
    """Create nets on the CPU from now on."""
    _state.gpu = False


def set_mode_gpu() -> None:
    """Create nets on the GPU chosen by `set_device` from now on."""
    if not torch.cuda.is_available():
        raise Error("GPU mode", "PyTorch finds no CUDA device", do="call caffe.set_mode_cpu()")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # with which cuBLAS is deterministic; read at its start
    _state.gpu = True
    torch.cuda.set_device(_state.device)


def set_device(device_id: int) -> None:
    """Choose the GPU by its number, from 0."""
    count = torch.cuda.device_count()
    if count and not 0 <= device_id < count:
        raise Error("GPU mode", f"device {device_id}", f"there are {count} devices (0 to {count - 1})")
    _state.device = device_id
    if _state.gpu:
        torch.cuda.set_device(device_id)


def set_numerics(numerics: str) -> None:
    """Choose how nets compute from now on; data layers of nets that exist go on transforming images where they did.

    reproducible  the same inputs give the same bytes on every machine, CPU or GPU; several times slower
    fp32          single precision; the same bytes on one machine with the same number of threads
    fast          what the hardware does best, with lower precision where that is faster
    """
    if numerics not in NUMERICS:
        raise Error("numerics", repr(numerics), f"one of {', '.join(NUMERICS)}")
    _state.numerics = numerics


def numerics() -> str:
    """How nets compute; see `set_numerics`."""
    return _state.numerics


def set_random_seed(seed: int) -> None:
    """Seed fillers, dropout and data augmentation: equal seeds give equal random numbers on every machine and device.

    PyTorch's generator is seeded too, for layers in Python that draw from it.
    """
    generator.state = Generator(seed).state
    torch.manual_seed(seed)


def device() -> torch.device:
    """The device that new blobs are made on."""
    return torch.device("cuda", _state.device) if _state.gpu else torch.device("cpu")


def solver_count() -> int:
    """Number of solvers that train one net together, each on its own device."""
    return _state.solvers


def set_solver_count(count: int) -> None:
    """Set the number of solvers that train one net together."""
    if count < 1:
        raise Error("solver count", str(count), "it must be at least 1")
    _state.solvers = count


def solver_rank() -> int:
    """Rank of this process's solver; rank 0 displays, tests and snapshots."""
    return _state.rank


def set_solver_rank(rank: int) -> None:
    """Set the rank of this process's solver, from 0."""
    if rank < 0:
        raise Error("solver rank", str(rank), "it must be at least 0")
    _state.rank = rank


def set_multiprocess(multiprocess: bool) -> None:
    """Do nothing: scripts for several GPUs call it, and here each solver has its own process in any case."""

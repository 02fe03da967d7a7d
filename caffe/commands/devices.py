"""The device a command runs on, from its -gpu flag."""

import torch

from caffe import events
from caffe.engine import mode
from caffe.errors import Error


def parse_gpus(flag: str) -> list[int]:
    """Device IDs of -gpu: a comma-separated list, or every GPU for `all`; none if it is empty."""
    if flag and not torch.cuda.is_available():
        raise Error(f"-gpu {flag}", "PyTorch finds no CUDA device", do="omit -gpu to run on the CPU")
    if flag == "all":
        return list(range(torch.cuda.device_count()))
    parts = [part.strip() for part in flag.split(",")] if flag else []
    if not all(part.isdigit() for part in parts):
        raise Error(f"-gpu {flag}", "not a list of GPUs", "it must be comma-separated device IDs, or all", "for example -gpu 0,1")
    if repeated := sorted({part for part in parts if parts.count(part) > 1}):
        raise Error(f"-gpu {flag}", f"GPU {repeated[0]} twice", "each is used by one process", "name each once")
    count = torch.cuda.device_count()
    if missing := [part for part in parts if int(part) >= count]:
        raise Error(f"-gpu {flag}", f"no GPU {missing[0]}", f"there are {count} (0 to {count - 1})")
    return [int(part) for part in parts]


def select(gpu: int | None) -> None:
    """Compute on a GPU, or on the CPU if None."""
    if gpu is None:
        mode.set_mode_cpu()
    else:
        mode.set_device(gpu)
        mode.set_mode_gpu()


def use_one(command: str, flag: str, numerics: str) -> None:
    """Run on the first GPU of -gpu, or on the CPU, in the numerics of -numerics; log the device as the command does."""
    mode.set_numerics(numerics or mode.numerics())
    gpus = parse_gpus(flag)
    for number in reversed(gpus[1:]):
        events.gpu_left_out[command](number)
    select(gpus[0] if gpus else None)
    if gpus:
        events.gpu_used[command](gpus[0])
        events.gpu_named[command](torch.cuda.get_device_name(gpus[0]))
    else:
        events.cpu_used[command]()

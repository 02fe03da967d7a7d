"""Which device a command computes on."""

from __future__ import annotations

import torch

from caffe import events
from caffe.engine import mode
from caffe.errors import Error


def numbers(flag: str) -> list[int]:
    """The GPUs that -gpu names: those of a list, every one for `all`, none where it is empty."""
    if flag and not torch.cuda.is_available():
        raise Error(f"-gpu {flag}", "PyTorch finds no CUDA device", do="leave -gpu out to compute on the CPU")
    if flag == "all":
        return list(range(torch.cuda.device_count()))
    parts = [part.strip() for part in flag.split(",")] if flag else []
    if not all(part.isdigit() for part in parts):
        raise Error(f"-gpu {flag}", "not a list of GPUs", "it is numbers separated by commas, or all", "such as -gpu 0,1")
    return [int(part) for part in parts]


def use_one(command: str, flag: str) -> None:
    """Compute on the first GPU that -gpu names, or on the CPU; log which as the command does."""
    gpus = numbers(flag)
    for number in reversed(gpus[1:]):
        events.gpu_left_out[command](number)
    if gpus:
        mode.set_device(gpus[0])
        mode.set_mode_gpu()
        events.gpu_used[command](gpus[0])
        events.gpu_named[command](torch.cuda.get_device_name(gpus[0]))
    else:
        mode.set_mode_cpu()
        events.cpu_used[command]()

"""caffe device_query: show the properties of GPUs."""

from __future__ import annotations

from caffe import glog
from caffe.commands import devices, flags
from caffe.engine import mode

_PROPERTIES = (
    ("Major revision number:", "major"),
    ("Minor revision number:", "minor"),
    ("Name:", "name"),
    ("Total global memory:", "total_memory"),
    ("Total shared memory per block:", "shared_memory_per_block"),
    ("Warp size:", "warp_size"),
    ("Maximum threads per block:", "max_threads_per_block"),
    ("Clock rate:", "clock_rate"),
    ("Number of multiprocessors:", "multi_processor_count"),
)


def main(argv: list[str]) -> int:
    """`caffe device_query [-gpu 0,1]`; all GPUs by default."""
    parser = flags.parser("device_query", "Log the properties of GPUs; memory in bytes, clock rate in kHz.")
    flags.add(parser, "gpu", "comma-separated device IDs, or all (the default)", default="all")
    arguments = flags.parse(parser, argv)
    with flags.logging(arguments):
        glog.info("caffe.cpp:138", f"Querying GPUs {arguments.gpu}")
        for number in devices.parse_gpus(arguments.gpu):
            query(number)
    return 0


def query(number: int) -> None:
    """Log the properties of one GPU, as far as PyTorch has them."""
    import torch

    mode.set_device(number)
    mode.set_mode_gpu()
    properties = torch.cuda.get_device_properties(number)
    glog.info("common.cpp:181", f"{'Device id:':30} {number}")
    for line, (title, name) in enumerate(_PROPERTIES, 182):
        value = getattr(properties, name, None)
        if value is not None:
            glog.info(f"common.cpp:{line}", f"{title:30} {value}")

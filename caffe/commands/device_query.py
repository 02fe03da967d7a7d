"""caffe device_query: show the properties of GPUs."""

import torch

from caffe import events
from caffe.commands import devices, flags


def main(argv: list[str]) -> int:
    """`caffe device_query [-gpu 0,1]`; all GPUs by default. Logs the properties that PyTorch knows."""
    parser = flags.parser("device_query", "Log the properties of GPUs; memory in bytes, clock rate in kHz.")
    flags.add(parser, "gpu", "comma-separated device IDs, or all (the default)", default="all")
    arguments = flags.parse(parser, argv)
    with flags.logging(arguments):
        events.gpus_queried(arguments.gpu)
        for number in devices.parse_gpus(arguments.gpu):
            devices.select(number)
            properties = torch.cuda.get_device_properties(number)
            for name, event in events.gpu_properties.items():
                value = number if name == "number" else getattr(properties, name, None)
                if value is not None:
                    event(value)
    return 0

"""caffe device_query: show the properties of GPUs."""

from caffe import events
from caffe.commands import devices, flags
from caffe.engine import mode


def main(argv: list[str]) -> int:
    """`caffe device_query [-gpu 0,1]`; all GPUs by default."""
    parser = flags.parser("device_query", "Log the properties of GPUs; memory in bytes, clock rate in kHz.")
    flags.add(parser, "gpu", "comma-separated device IDs, or all (the default)", default="all")
    arguments = flags.parse(parser, argv)
    with flags.logging(arguments):
        events.gpus_queried(arguments.gpu)
        for number in devices.parse_gpus(arguments.gpu):
            query(number)
    return 0


def query(number: int) -> None:
    """Log the properties of one GPU, as far as PyTorch has them."""
    import torch

    mode.set_device(number)
    mode.set_mode_gpu()
    properties = torch.cuda.get_device_properties(number)
    for name, event in events.gpu_properties.items():
        value = number if name == "number" else getattr(properties, name, None)
        if value is not None:
            event(value)

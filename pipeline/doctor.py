"""Check the environment: Python, packages, processor, GPU, databases, Snakemake and disk space."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

import caffe
from caffe.proto import caffe_pb2
from pipeline import devices
from pipeline.command import step_parser
from pipeline.errors import InputError

LEAST_SPACE = 5 << 30
"""Bytes; below, a dataset and its checkpoints hardly fit."""
EXTRAS = {"plyvel": "LevelDB", "snakemake_executor_plugin_slurm": "Slurm"}


def versions() -> str:
    """Python and the packages that results depend on."""
    names = ("roastery", "torch", "numpy", "opencv-python-headless", "lmdb")
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {importlib.metadata.version(name)}" for name in names)])


def processor() -> str:
    """Processor, vector instructions and threads."""
    found = devices.machine(is_gpu=False)
    return f"{found['processor']}, {found['vector_code']}, {os.cpu_count()} cores, {found['threads']} threads"


def gpus() -> str:
    """The GPUs, each after a computation on it."""
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    for number in range(len(names)):
        torch.ones(2, device=f"cuda:{number}").sum().item()
    return ", ".join(names) or "none; nets are computed on the processor"


def net() -> str:
    """A convolution of a net."""
    shape = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }'
    filters = 'bottom: "data" top: "conv" convolution_param { num_output: 2 kernel_size: 3 }'
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.prototxt"
        path.write_text(f'{shape} layer {{ name: "conv" type: "Convolution" {filters} }}')
        caffe.init_log(2)
        made = caffe.Net(str(path), caffe.TEST)
    found = made.forward()["conv"].shape
    made.close()
    return f"a convolution gives {'×'.join(map(str, found))} values"


def databases() -> str:
    """An LMDB that is written and read."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        path = Path(folder) / "lmdb"
        datum = caffe_pb2.Datum(channels=1, height=1, width=1, data=b"\1", label=3)
        with caffe.db.DatabaseWriter(str(path), "lmdb") as write:
            write(b"key", datum.SerializeToString())
        records = caffe.db.open_db(str(path), caffe_pb2.DataParameter.LMDB)
        found = [caffe_pb2.Datum.FromString(bytes(value)).label for _, value in records.items()]
    if found != [3]:
        raise InputError("LMDB", f"records {found}", "the one that was written", "use a local file system")
    return "an LMDB is written and read in this folder"


def snakemake() -> str:
    """Version of Snakemake. Raises InputError where the command is missing."""
    if not shutil.which("snakemake"):
        raise InputError("snakemake", "no such command", do="activate the environment that Roastery is installed in")
    return importlib.metadata.version("snakemake")


def extras() -> str:
    """The optional packages."""
    return ", ".join(f"{name} {'yes' if importlib.util.find_spec(package) else 'no'}" for package, name in EXTRAS.items())


def space() -> str:
    """Free disk space in the working directory. Raises InputError where it is small."""
    free = shutil.disk_usage(Path.cwd()).free
    if free < LEAST_SPACE:
        raise InputError(Path.cwd(), f"{free / 2**30:.1f} GiB free", f"at least {LEAST_SPACE >> 30}", "work on a larger disk")
    return f"{free / 2**30:.1f} GiB free in {Path.cwd()}"


CHECKS: dict[str, Callable[[], str]] = {
    "versions": versions,
    "processor": processor,
    "GPU": gpus,
    "net": net,
    "LMDB": databases,
    "Snakemake": snakemake,
    "extras": extras,
    "disk": space,
}
"""Each gives what it has found, and raises where something that is needed is missing or broken."""


def main(argv: list[str] | None = None) -> None:
    step_parser(__doc__).parse_args(argv)
    broken = 0
    for name, check in CHECKS.items():
        try:
            print(f"ok      {name}: {check()}")
        except Exception as error:  # a library that is damaged raises anything
            broken += 1
            print(f"broken  {name}: {error}")
    if broken:
        raise InputError("doctor", f"{broken} of {len(CHECKS)} checks failed")

"""Check the environment; or, with a prototxt, say what a net is, needs and can be converted to.

Without arguments: packages, processor, GPU, where caffe is imported from, engine, databases, Snakemake and disk space. With a
deploy prototxt, and weights: the format's version, the fork, which layers run and can be exported, shapes, memory and operations,
and how its images are prepared.
"""

import importlib.util
import os
import platform
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

import caffe
from caffe.proto import caffe_pb2
from pipeline import devices
from pipeline.command import step_parser
from pipeline.errors import InputError
from pipeline.export import examination

LEAST_SPACE = 5
"""GiB; a dataset and its checkpoints hardly fit into less."""
PACKAGES = ("roastery", "torch", "numpy", "opencv-python-headless", "lmdb")
EXTRAS = {"plyvel": "LevelDB", "snakemake_executor_plugin_slurm": "Slurm"}


def versions() -> str:
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)])


def processor() -> str:
    machine = devices.machine(is_gpu=False)
    return f"{machine['processor']}, {machine['vector_code']}, {os.cpu_count()} cores, {machine['threads']} threads"


def gpu() -> str:
    for number in range(torch.cuda.device_count()):
        torch.ones(2, device=f"cuda:{number}").sum().item()
    return ", ".join(map(torch.cuda.get_device_name, range(torch.cuda.device_count()))) or "none; nets run on the processor"


def engine() -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.prototxt"
        path.write_text('layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 } } }')
        caffe.init_log(2)
        net = caffe.Net(str(path), caffe.TEST)
    net.forward()
    net.close()
    return f"caffe {caffe.__version__} runs a net"


def lmdb() -> str:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        path = str(Path(folder) / "lmdb")
        with caffe.db.DatabaseWriter(path, "lmdb") as write:
            write(b"key", b"value")
        records = dict(caffe.open_db(path, caffe_pb2.DataParameter.LMDB).items())
    if records != {b"key": b"value"}:
        raise InputError("LMDB", f"the records read back are {records}", "one record was written", "use a local file system")
    return "written and read in this folder"


def imports() -> str:
    """Which package `import caffe` is, and whether this folder is in a checkout of BVLC Caffe, whose scripts find another one."""
    spec = importlib.util.find_spec("caffe")
    found = f"import caffe finds {Path(spec.origin or '').parent if spec else 'nothing'}"
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "python/caffe/pycaffe.py").is_file():
            found += f"; {folder / 'python'} has another, of BVLC: scripts find it first by"
            return f'{found} sys.path.insert(0, caffe_root + "python"), so leave that line out (docs/troubleshooting.md)'
    return found


def snakemake() -> str:
    if not shutil.which("snakemake"):
        raise InputError("snakemake", "no such command", do="activate the environment that Roastery is installed in")
    return version("snakemake")


def extras() -> str:
    return ", ".join(f"{name} {'yes' if importlib.util.find_spec(package) else 'no'}" for package, name in EXTRAS.items())


def disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if free < LEAST_SPACE:
        raise InputError(Path.cwd(), f"{free:.1f} GiB free", f"at least {LEAST_SPACE} are needed", "work on a larger disk")
    return f"{free:.1f} GiB free in {Path.cwd()}"


CHECKS = (versions, processor, gpu, imports, engine, lmdb, snakemake, extras, disk)
"""Each returns its finding, and raises if something necessary is missing or broken."""


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__)
    parser.add_argument("net", type=Path, nargs="?", help="a deploy prototxt; without it, the environment is checked")
    parser.add_argument("weights", type=Path, nargs="?", help="the net's .caffemodel or .caffemodel.h5")
    a = parser.parse_args(argv)
    if a.net:
        caffe.init_log(3)
        examination.report(a.net, a.weights)
        return
    broken = 0
    for check in CHECKS:
        try:
            print(f"ok      {check.__name__}: {check()}", flush=True)
        except Exception as error:  # a damaged library raises anything
            broken += 1
            print(f"broken  {check.__name__}: {error}", flush=True)
    if broken:
        raise InputError("doctor", f"{broken} of {len(CHECKS)} checks failed")

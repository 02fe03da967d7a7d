"""What reading costs a net: training and feature extraction from an LMDB against the same net on data that cost nothing.

    python benchmarks/feeding.py [training] [features] [stream] [--turns 7]

training  cifar10_quick, batches of 100: seconds of an iteration from an LMDB with a mean image, and with data augmentation, over
          those of the same net on a constant batch; turns alternate
features  CaffeNet: images/s of the features step (`fc7`, npy), from two numbers of images, so that its start does not count, over
          those of forward passes on a constant batch
stream    the features step's peak memory for 10,000 and for 100,000 images of 32 × 32, without the pages of files that it maps

Prints ratios of medians; 1 is as fast as without reading. The databases are noise, in a temporary folder, in the page cache.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GLOG_minloglevel", "2")

import alternating
import noise
import numpy as np

import caffe
from caffe import layers as L
from caffe.proto import caffe_pb2
from pipeline.nets.models import Last, template

AUGMENTATION = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "min_area": 0.3, "max_aspect": 1.33, "rotation": 10.0}
SOLVER = 'net: "{net}" base_lr: 1e-9 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.004 max_iter: 1000000 random_seed: 1'


def write(path: Path, records: int, size: int) -> Path:
    """A database of noise, and its mean beside it."""
    noise.write(path, records, size)
    mean = caffe.io.array_to_blobproto(np.full((1, 3, size, size), 120, np.float32))
    path.with_suffix(".binaryproto").write_bytes(mean.SerializeToString())
    return path


def data(database: Path, batch: int, **more: object) -> dict[str, object]:
    """A Data layer's arguments."""
    transform = {"mean_file": str(database.with_suffix(".binaryproto")), **more}
    source = {"source": str(database), "backend": caffe_pb2.DataParameter.LMDB, "batch_size": batch}
    return {"data_param": source, "transform_param": transform, "ntop": 2}


def net_of(
    model: str, classes: int, source: dict[str, object] | None, shape: tuple[int, ...], loss: bool
) -> caffe_pb2.NetParameter:
    """A net on a database, or on constant data."""
    n = caffe.NetSpec()
    if source:
        n.data, n.label = L.Data(**source)
    else:
        shapes = [{"dim": list(shape)}, {"dim": [shape[0]]}]
        n.data, n.label = L.DummyData(shape=shapes, data_filler=[{"type": "constant", "value": 1.0}] * 2, ntop=2)
    definition = n.to_proto()
    built = template(model).built(Last("last", classes))
    definition.layer.extend(built.layers)
    if loss:
        definition.layer.add(name="loss", type="SoftmaxWithLoss", bottom=[built.heads[-1][0], "label"], top=["loss"])
    else:
        definition.layer.add(name="silence", type="Silence", bottom=["label"])
    return definition


def trained(folder: Path, name: str, net: caffe_pb2.NetParameter) -> Callable[[], object]:
    """A training iteration."""
    caffe.write_prototxt(folder / f"{name}.prototxt", net)
    path = folder / f"{name}_solver.prototxt"
    path.write_text(SOLVER.format(net=folder / f"{name}.prototxt"))
    solver = caffe.get_solver(str(path))
    return lambda: solver.step(1)


def training(folder: Path, turns: int) -> None:
    """Print what reading costs cifar10_quick's training."""
    database, shape = write(folder / "cifar", 10_000, 32), (100, 3, 32, 32)
    sources = {"constant": None, "LMDB": data(database, 100), "augmented": data(database, 100, augmentation_param=AUGMENTATION)}
    steps = {name: trained(folder, name, net_of("cifar10_quick", 10, source, shape, True)) for name, source in sources.items()}
    medians = alternating.median_times(steps, turns, 40, 5)
    for name in ("LMDB", "augmented"):
        ratio = medians["constant"] / medians[name]
        print(f"training, {name}: {medians[name]:.2f} ms, constant {medians['constant']:.2f} ms; speed {ratio:.2f}", flush=True)


def step_seconds(net: Path, weights: Path, database: Path, blob: str) -> tuple[float, int]:
    """Seconds and peak anonymous memory in MB of the features step, in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "pipeline.inference.features", net, weights, f"{folder}/out", "--database", database]
        start, peak = time.perf_counter(), 0
        process = subprocess.Popen([*map(str, words), "--features", blob], stdout=subprocess.DEVNULL)
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.02)
        if process.returncode:
            raise SystemExit("the features step failed")
        return time.perf_counter() - start, peak // 1024


def anonymous(process: int) -> int:
    """KB of a process's memory that is not of files; 0 once it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
    return 0


def features(folder: Path, turns: int) -> None:
    """Print the speed of extracting CaffeNet's fc7, over that of forward passes."""
    few, many, batch = 128, 640, 64
    databases = [write(folder / f"images{count}", count, 256) for count in (few, many)]
    crop = data(databases[0], batch, crop_size=227)
    caffe.write_prototxt(folder / "caffenet.prototxt", net_of("caffenet", 1000, crop, (), False))
    net = caffe.Net(net_of("caffenet", 1000, None, (batch, 3, 227, 227), False), caffe.TEST)
    net.save(folder / "caffenet.caffemodel")
    forward, extraction = [], []
    for _ in range(turns):
        start = time.perf_counter()
        for _ in range(4):
            net.forward(blobs=["fc7"])
        forward.append((time.perf_counter() - start) / 4 / batch)
        seconds = [
            step_seconds(folder / "caffenet.prototxt", folder / "caffenet.caffemodel", each, "fc7")[0] for each in databases
        ]
        extraction.append((seconds[1] - seconds[0]) / (many - few))
    one, other = statistics.median(forward), statistics.median(extraction)
    print(f"features: {1 / other:.0f} images/s, forward passes {1 / one:.0f} images/s; speed {one / other:.2f}", flush=True)


def stream(folder: Path, _turns: int) -> None:
    """Print the features step's peak memory for few and for many images."""
    for count in (10_000, 100_000):
        database = write(folder / f"small{count}", count, 32)
        net, weights = folder / "quick.prototxt", folder / "quick.caffemodel"
        definition = net_of("cifar10_quick", 10, data(database, 100), (), False)
        caffe.write_prototxt(net, definition)
        caffe.Net(definition, caffe.TEST).save(weights)
        seconds, peak = step_seconds(net, weights, database, "ip1")
        print(f"stream: {count} images, {seconds:.1f} s, peak memory {peak} MB", flush=True)


PARTS = {"training": training, "features": features, "stream": stream}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args()
    for name in arguments.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[name](Path(folder), arguments.turns)


if __name__ == "__main__":
    main()

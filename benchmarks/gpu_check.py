"""Check and measure a GPU in one run of at most 8 minutes: `make gpu-check`. Nothing is downloaded.

Prints a table, and exits with 1 if a check fails. The recordings of BVLC Caffe and MNIST come from ../shared; without it those
rows say so. Each check runs in a process of its own, so that one that fails leaves the others as they are.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GLOG_minloglevel", "2")

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("ROASTERY_SHARED", ROOT.parent / "shared"))
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
LIMIT = 8 * 60
"""Seconds for all checks."""


class NotRunError(Exception):
    """What a check needs is not here."""


def _shared(path: str) -> Path:
    if not (SHARED / path).exists():
        raise NotRunError(f"{path} of ../shared is missing")
    return SHARED / path


def _recordings(kind: str, numerics: str) -> str:
    """The recordings of a kind, on the GPU."""
    check = _shared("golden/check.py")
    code = (
        f"import runpy, sys, caffe; caffe.set_mode_gpu(); caffe.set_numerics({numerics!r}); sys.argv = ['check.py', {kind!r}]\n"
        f"try:\n    runpy.run_path({str(check)!r}, run_name='__main__')\n"
        "finally:\n    from caffe.kernels import _works\n    print(sorted({key[0] for key in _works if not _works[key]}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise AssertionError(done.stdout.strip()[-300:] or done.stderr.strip()[-300:])
    result, refused = done.stdout.strip().splitlines()[-2:]
    if refused != "[]":
        raise AssertionError(f"{result}, without the kernels {refused}")
    return result


def layers() -> str:
    return _recordings("layers", "fp32")


def layers_reproducible() -> str:
    return _recordings("layers", "reproducible")


def solvers() -> str:
    return _recordings("solvers", "fp32")


def _mnist(folder: Path) -> None:
    """MNIST's two LMDBs, as Caffe's example makes them."""
    import lmdb
    import numpy as np

    from caffe.proto import caffe_pb2

    source = _shared("data/mnist")
    for part, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = (next(source.glob(f"{prefix}-{kind}-*")) for kind in ("images", "labels"))
        pixels = np.frombuffer(_opened(images), np.uint8, offset=16).reshape(-1, 784)
        with lmdb.open(str(folder / f"mnist_{part}_lmdb"), map_size=1 << 28).begin(write=True) as transaction:
            for number, (row, label) in enumerate(zip(pixels, _opened(labels)[8:], strict=True)):
                datum = caffe_pb2.Datum(channels=1, height=28, width=28, data=row.tobytes(), label=label)
                transaction.put(b"%08d" % number, datum.SerializeToString())


def _opened(path: Path) -> bytes:
    import gzip

    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _lenet(folder: Path) -> Path:
    """LeNet's net, which reads MNIST, in a folder; returns the recorded initial weights."""
    import caffe

    recorded = _shared("golden/train")
    _mnist(folder)
    net = caffe.read_net(recorded / "lenet_train_test.prototxt")
    for layer in net.layer:
        if layer.type == "Data":
            layer.data_param.source = str(folder / Path(layer.data_param.source).name)
    caffe.write_prototxt(folder / "net.prototxt", net)
    return recorded / "lenet_init.caffemodel"


LENET = 'net: "net.prototxt" base_lr: 0.01 momentum: 0.9 weight_decay: 0.0005 lr_policy: "inv" gamma: 0.0001 power: 0.75 '


def trajectory() -> str:
    """The first 50 losses of LeNet on MNIST, against BVLC Caffe's."""
    import re

    import caffe

    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        weights = _lenet(Path(name))
        Path("solver.prototxt").write_text(LENET + "max_iter: 50")
        log = _shared("golden/train/caffe_train.log").read_text()
        expected = [float(text) for text in re.findall(r"Iteration \d+ .*, loss = ([\d.e+-]+)", log)]
        caffe.set_mode_gpu()
        solver = caffe.get_solver("solver.prototxt")
        solver.net.copy_from(weights)
        worst = 0.0
        for iteration in range(50):
            solver.step(1)
            loss = float(solver.net.blobs["loss"].data)
            worst = max(worst, abs(loss / expected[iteration] - 1))
    assert worst < 1e-3, f"a loss differs by {worst:.1e}, relative"
    return f"50 losses within {worst:.1e}, relative"


def lenet() -> str:
    """LeNet on MNIST, 10,000 iterations: 99 %."""
    import caffe

    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        _lenet(Path(name))
        test = "test_iter: 100 test_interval: 10000 test_initialization: false"
        Path("solver.prototxt").write_text(LENET + f"max_iter: 10000 random_seed: 1 {test}")
        caffe.set_mode_gpu()
        solver = caffe.get_solver("solver.prototxt")
        start = time.monotonic()
        solver.step(10000)
        seconds = time.monotonic() - start
        net = solver.test_nets[0]
        accuracy = 0.0
        for _ in range(100):
            net.forward()
            accuracy += float(net.blobs["accuracy"].data)
    assert accuracy >= 99, f"{accuracy:.2f} %"
    return f"{accuracy:.2f} % after 10,000 iterations, {seconds:.0f} s"


def graphs() -> str:
    """LeNet on MNIST with its passes and update captured as CUDA graphs and without: the same weights; milliseconds of an
    iteration.
    """
    import caffe
    from caffe import events
    from caffe.engine import cuda_graphs
    from tests.caffe.training import reproducible_nets

    digests, seconds, failures = [], [], []
    for event in ("passes_not_captured", "update_not_captured"):
        setattr(events, event, failures.append)
    for switch in ("0", "1"):
        os.environ[cuda_graphs.SWITCH] = switch
        with tempfile.TemporaryDirectory() as name:
            os.chdir(name)
            _lenet(Path(name))
            Path("solver.prototxt").write_text(LENET + "random_seed: 1")
            caffe.set_mode_gpu()
            solver = caffe.get_solver("solver.prototxt")
            solver.step(20)
            start = time.monotonic()
            solver.step(500)
            digests.append(reproducible_nets.digest(solver.net))  # waits for the GPU
            seconds.append(time.monotonic() - start)
            captured = [solver.net._runner._executor._training._captured, solver._updates._captured]
            solver.close()
    plain, replayed = (f"{each / 500 * 1000:.2f} ms" for each in seconds)
    assert digests[0] == digests[1], f"other weights than without graphs, after 520 iterations ({plain}, {replayed} with graphs)"
    assert all(captured), "; ".join(failures) or "not captured"
    return f"the same weights after 520 iterations; {replayed} an iteration, {plain} without graphs"


def kernels() -> str:
    """The engine's kernels give what PyTorch's operations give; their time over that of these."""
    import csv

    with tempfile.TemporaryDirectory() as name:
        figures = Path(name) / "kernels.csv"
        command = [sys.executable, str(Path(__file__).with_name("kernels.py")), "--turns", "3", "--csv", str(figures)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            failed = [line for line in done.stdout.splitlines() if "FAILED" in line]
            raise AssertionError("; ".join(failed)[:1000] or done.stderr.strip()[-300:])
        with figures.open() as file:
            rows = list(csv.DictReader(file))
    return "; ".join(
        f"{row['kernel']} ({row['values']}) {float(row['ratio']):.2f}, {float(row['GB/s']):.0f} GB/s" for row in rows
    )


def reproducible() -> str:
    """The weights of three nets in `reproducible`, on the GPU and on the CPU."""
    import caffe
    from tests.caffe.training import reproducible_nets

    for net in reproducible_nets.NETS:
        digests = []
        for use in (caffe.set_mode_gpu, caffe.set_mode_cpu):
            with tempfile.TemporaryDirectory() as name:
                os.chdir(name)
                reproducible_nets.write(net, 20)
                use()
                solver = caffe.get_solver("solver.prototxt")
                solver.step(20)
                digests.append(reproducible_nets.digest(solver.net))
                solver.close()
        assert digests[0] == digests[1], f"{net}: other weights than on the CPU"
    return f"{', '.join(reproducible_nets.NETS)}: 20 iterations, the same bytes as on the CPU"


def numerics() -> str:
    """A training iteration in each numerics."""
    command = [sys.executable, str(Path(__file__).with_name("numerics.py")), "--gpu", "--rounds", "5"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return "; ".join(" ".join(line.split()) for line in done.stdout.splitlines())


def against_pytorch() -> str:
    """Forward and training steps of the eight nets of `make bench`, over those of the same nets by hand."""
    import csv

    with tempfile.TemporaryDirectory() as name:
        figures = Path(name) / "speed.csv"
        command = [sys.executable, str(Path(__file__).with_name("speed.py")), "--gpu", "--sides", "by hand", "floor"]
        done = subprocess.run([*command, "--csv", str(figures)], capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise AssertionError(done.stderr.strip()[-300:])
        with figures.open() as file:
            rows = [row for row in csv.DictReader(file) if row["side"] != "caffe" and row["ratio"]]
    # By hand in both layouts: whether the engine's is the faster one is not known before.
    return "; ".join(f"{row['net']} {row['step']} {float(row['ratio']):.2f} of {row['side']}" for row in rows)


CHECKS: dict[str, Callable[[], str]] = {
    "recorded layers, fp32": layers,
    "recorded layers, reproducible": layers_reproducible,
    "recorded solvers, fp32": solvers,
    "LeNet's recorded losses": trajectory,
    "kernels": kernels,
    "CUDA graphs": graphs,
    "reproducible": reproducible,
    "training iterations": numerics,
    "LeNet on MNIST": lenet,
    "time over PyTorch's": against_pytorch,
}


def run(name: str) -> None:
    """Run one check and print its result as JSON."""
    try:
        result = {"result": CHECKS[name](), "ok": True}
    except NotRunError as error:
        result = {"result": f"not run: {error}", "ok": True}
    except Exception as error:
        result = {"result": f"FAILED: {type(error).__name__}: {error}", "ok": False}
    print(json.dumps(result))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", choices=CHECKS, help="run one check in this process")
    a = parser.parse_args()
    if a.check:
        run(a.check)
        return 0
    import torch

    if not torch.cuda.is_available():
        print("error: PyTorch finds no CUDA device")
        return 1
    end, failed = time.monotonic() + LIMIT, False
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}\n")
    print("| check | result | seconds |\n|---|---|---|", flush=True)
    for name in CHECKS:
        start = time.monotonic()
        try:
            command = [sys.executable, __file__, "--check", name]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            process = subprocess.Popen(command, start_new_session=True, **pipes)
            output, errors = process.communicate(timeout=max(1, end - start))
            said = json.loads(output.splitlines()[-1])
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
            process.wait()
            said = {"result": "FAILED: no time left", "ok": False}
        except (IndexError, ValueError):
            said = {"result": f"FAILED: {errors.strip()[-300:]}", "ok": False}
        failed |= not said["ok"]
        print(f"| {name} | {' '.join(said['result'].split())} | {time.monotonic() - start:.0f} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

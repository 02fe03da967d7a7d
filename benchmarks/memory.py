"""Peak memory of three training iterations, each side in a process of its own; by hand, one that does not import `caffe`.

    python benchmarks/memory.py NET SIDE --solver FILE --shape N C H W [--gpu]

Prints MB: on the CPU the most that the process had in memory, on a GPU the most that PyTorch's allocator had reserved.
benchmarks/speed.py --memory runs this for each side.
"""

import argparse
import resource
import subprocess
import sys
from pathlib import Path

import by_hand
import numpy as np
import torch

ITERATIONS = 3


SIDES = ("caffe", *by_hand.LAYOUTS)


def peak_of(side: str, name: str, shape: tuple[int, ...], solver: Path, gpu: bool) -> float:
    """MB of a side, in a new process. Raises RuntimeError with that process's message if it fails."""
    words = [sys.executable, __file__, name, side, "--solver", str(solver), "--shape", *map(str, shape)]
    done = subprocess.run(words + ["--gpu"] * gpu, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1])
    return float(done.stdout)


def train(name: str, side: str, shape: tuple[int, ...], solver: Path, gpu: bool) -> None:
    """Train one side."""
    if side == "caffe":
        import caffe

        trained = caffe.get_solver(str(solver))
        images = trained.net.blobs["data"].data
        np.random.default_rng(2).standard_normal(dtype=np.float32, out=images)  # memory that is never written would not count
        trained.step(ITERATIONS)
        return
    module = by_hand.NETS[name]()
    step = by_hand.training_step(module.cuda() if gpu else module, shape, by_hand.LAYOUTS[side])
    for _ in range(ITERATIONS):
        step()


def peak() -> int:
    """The most bytes that this process had in memory.

    On Linux not getrusage's, which after exec still has the peak of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=by_hand.NETS)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("--solver", type=Path, required=True, help="the solver of caffe's net")
    parser.add_argument("--shape", type=int, nargs=4, required=True, help="of a batch")
    parser.add_argument("--gpu", action="store_true")
    a = parser.parse_args()
    train(a.net, a.side, tuple(a.shape), a.solver, a.gpu)
    print(f"{(torch.cuda.max_memory_reserved() if a.gpu else peak()) / 2**20:.1f}")


if __name__ == "__main__":
    main()

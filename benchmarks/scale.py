"""Seconds and peak memory of the data steps for lists of 1,000, 10,000 and 100,000 images.

    python benchmarks/scale.py [--lengths 1000 10000 100000]

The images are distinct JPEGs of 40 × 40 (file:// URLs) in 10 classes; shards have 1,000, resized to 32 × 32. As many downloads at
once as there are processors; resize and database with as many threads. The memory is the peak of a process of the step: anonymous
(RssAnon), and after the slash resident, with pages of files, which the system reclaims if needed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).parents[1]
THREADS = os.cpu_count() or 1
CLASSES = 10
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def write_list(folder: Path, length: int) -> None:
    """Write a list of so many images: smooth noise, of one colour per class."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(length):
        path, kind = folder / f"images/{number:06d}.jpg", number % CLASSES
        coarse = rng.integers(kind * 16, 100 + kind * 16, (6, 6, 3)).astype(np.uint8)
        cv2.imwrite(str(path), cv2.resize(coarse, (40, 40), interpolation=cv2.INTER_CUBIC))
        rows.append(f"{path.as_uri()},class {kind}\n")
    (folder / "list.csv").write_text("url,label\n" + "".join(rows))


def steps(folder: Path) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """The name of each step, and its commands, module first; downloads may run in parallel."""
    yield "shards", [("sources.shards", "list", "--list", "list.csv")]
    shards = sorted(path.stem for path in (folder / "list").iterdir())
    places = [(f"list/{shard}.csv", f"download/{shard}", "--table", f"download/{shard}.csv") for shard in shards]
    yield "download", [("dataset.download", *place, "--allow-file") for place in places]
    size = ("--height", "32", "--width", "32", "--threads", str(THREADS))
    yield "resize", [("dataset.resize", f"download/{shard}", f"resize/{shard}", *size) for shard in shards]
    yield "label", [("dataset.label", "list", "download", "resize", "--output", "lists", "--val", "0.2")]
    files = ("--labels", "lists/labels.txt", "--manifest", "train.json", "--threads", str(THREADS))
    yield "database", [("dataset.database", "lists/train.txt", "resize", "lmdb", *files)]
    yield "mean", [("dataset.mean", "lmdb", "mean.binaryproto", "--values", "mean.json")]


def run(folder: Path, module: str, *arguments: str) -> tuple[int, int]:
    """Run a command, which must succeed; return its peak memory in bytes, anonymous and resident."""
    words = [sys.executable, "-m", f"pipeline.{module}", *arguments]
    process = subprocess.Popen(words, cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    own = [0]
    watch = threading.Thread(target=_watch, args=(process.pid, own))
    watch.start()
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    watch.join()
    if process.returncode:
        sys.exit(f"{' '.join(words)}: {errors}")
    return own[0], usage.ru_maxrss << 10


def _watch(pid: int, own: list[int]) -> None:
    """Record a process's peak of anonymous memory, until it ends."""
    with suppress(OSError, IndexError):
        while lines := Path(f"/proc/{pid}/status").read_text().partition("RssAnon:")[2]:
            own[0] = max(own[0], int(lines.split()[0]) << 10)
            time.sleep(0.02)


def measure(folder: Path, length: int) -> dict[str, str]:
    """Seconds and MB of each step, as text."""
    write_list(folder, length)
    figures = {}
    for name, commands in steps(folder):
        start = time.perf_counter()
        with ThreadPoolExecutor(THREADS if name == "download" else 1) as pool:
            held = list(pool.map(lambda words: run(folder, *words), commands))
        own, whole = (max(column) >> 20 for column in zip(*held, strict=True))
        figures[name] = f"{time.perf_counter() - start:.1f} s, {own}/{whole} MB"
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1000, 10_000, 100_000])
    lengths = parser.parse_args().lengths
    with tempfile.TemporaryDirectory() as name:
        columns = {length: measure(Path(name) / str(length), length) for length in lengths}
    print("".join(f"{head:>22}" for head in ("step", *(f"{length:,} images" for length in lengths))))
    for step in columns[lengths[0]]:
        print("".join(f"{cell:>22}" for cell in (step, *(figures[step] for figures in columns.values()))))


if __name__ == "__main__":
    main()

"""Download and resize URLs to images of 256 × 256, by the pipeline's steps and by img2dataset.

    python -m venv peer && peer/bin/pip install img2dataset 'albumentations<2'
    python benchmarks/download.py FOLDER --img2dataset peer/bin/img2dataset [--count 2000] [--rounds 3]

FOLDER has photographs (*.jpg, recursively), which a local server process serves under COUNT names. The steps: a download for each
1,000 URLs and its resize, with the threads of the rules: one where there are many shards, which then run side by side, as many at
once as there are processors. img2dataset: as many processes, 32 threads each, shards of 1,000, else its defaults (JPEG files of
quality 95, a JSON beside each). It has no squash mode: both scale the shorter side to 256 (`area`) and crop the middle of the
longer (`center_crop`, our `crop`). Rounds alternate; prints median images/s and the ratio of the steps' to img2dataset's.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
SHARD = 1000
THREADS = os.cpu_count() or 1
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1", "NO_ALBUMENTATIONS_UPDATE": "1"}


class Answers(asyncio.Protocol):
    """A minimal HTTP/1.1 server: /NUMBER.jpg is answered by the prepared answer NUMBER modulo their count."""

    def __init__(self, answers: list[bytes]):
        self._answers, self._received = answers, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *requests, self._received = (self._received + data).split(b"\r\n\r\n")
        for request in requests:
            number = int(request.split(b" ", 2)[1][1:].removesuffix(b".jpg"))
            self._transport.write(self._answers[number % len(self._answers)])
            if b"connection: close" in request.lower():
                self._transport.close()


def serve(folder: Path, ready: multiprocessing.Queue[int]) -> None:
    """Serve the photographs of a folder; put the port in `ready`."""
    images = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]
    head = "HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"
    answers = [head.format(len(image)).encode() + image for image in images]

    async def start() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Answers(answers), "127.0.0.1", 0, backlog=1024)
        ready.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(start())


def steps(folder: Path) -> None:
    """Download and resize every shard, with the threads that rules/common_datasets.smk gives a resize."""
    shards = sorted(path.stem for path in (folder / "list").iterdir())
    threads = min(THREADS, max(1, 8 // len(shards)))
    fit = ("--resize-mode", "crop", "--interpolation", "area", "--threads", str(threads))

    def download(shard: str) -> None:
        command, table = (sys.executable, "-m", "pipeline.dataset.download", "--allow-private"), f"download/{shard}.csv"
        run(folder, *command, f"list/{shard}.csv", f"download/{shard}", "--table", table)

    def resize(shard: str) -> None:
        run(folder, sys.executable, "-m", "pipeline.dataset.resize", f"download/{shard}", f"resize/{shard}", *fit)

    with ThreadPoolExecutor(THREADS) as pool:
        if threads == 1:
            list(pool.map(lambda shard: (download(shard), resize(shard)), shards))
        else:
            list(pool.map(download, shards))
            for shard in shards:
                resize(shard)


def peer(folder: Path, command: Path) -> None:
    """The same by img2dataset."""
    size = ("--image_size=256", "--resize_mode=center_crop", f"--number_sample_per_shard={SHARD}")
    work = (f"--processes_count={THREADS}", "--thread_count=32")
    run(folder, str(command), "--url_list=urls.txt", "--output_folder=peer", "--output_format=files", *size, *work)


def run(folder: Path, *words: str) -> None:
    """Run a command, which must succeed."""
    done = subprocess.run(words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr}")


def write_lists(folder: Path, port: int, count: int) -> None:
    """Write the same URLs for both."""
    urls = [f"http://127.0.0.1:{port}/{number:06d}.jpg" for number in range(count)]
    (folder / "urls.txt").write_text("".join(f"{url}\n" for url in urls))
    (folder / "list").mkdir()
    for start in range(0, count, SHARD):
        rows = "".join(f"{url},a,,,\n" for url in urls[start : start + SHARD])
        (folder / f"list/{start // SHARD:05d}.csv").write_text(f"url,label,split,group,sha256\n{rows}")


def count_images(folder: Path) -> dict[str, int]:
    """The number of images of each."""
    ours = sum(np.load(path, mmap_mode="r").shape[0] for path in (folder / "resize").glob("*/pixels.npy"))
    return {"steps": ours, "img2dataset": sum(1 for _ in (folder / "peer").rglob("*.jpg"))}


def measure(port: int, command: Path, count: int, rounds: int) -> None:
    """Print images/s of both, and the ratio."""
    rates: dict[str, list[float]] = {"steps": [], "img2dataset": []}
    for _ in range(rounds):
        for which, work in (("steps", steps), ("img2dataset", lambda folder: peer(folder, command))):
            with tempfile.TemporaryDirectory() as name:
                write_lists(Path(name), port, count)
                start = time.perf_counter()
                work(Path(name))
                rates[which].append(count / (time.perf_counter() - start))
                assert count_images(Path(name))[which] == count, f"{which}: images are missing"
    for which, values in rates.items():
        print(f"{which}: {statistics.median(values):.0f} images/s ({', '.join(f'{value:.0f}' for value in values)})")
    ours, other = (statistics.median(values) for values in rates.values())
    print(f"{count} URLs: the steps make {ours / other:.2f} times as many images/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--img2dataset", type=Path, required=True, metavar="PATH", help="its command")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ready = context.Queue()
    server = context.Process(target=serve, args=(arguments.folder, ready), daemon=True)
    server.start()
    command = Path(shutil.which(arguments.img2dataset) or sys.exit(f"{arguments.img2dataset}: no such command")).absolute()
    measure(ready.get(timeout=60), command, arguments.count, arguments.rounds)
    server.terminate()


if __name__ == "__main__":
    main()

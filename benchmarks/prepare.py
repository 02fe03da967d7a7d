"""Convert photographs to an LMDB, by the pipeline's steps and by a single process like convert_imageset.

    python benchmarks/prepare.py FOLDER [--small 1000] [--large 200] [--rounds 3]

FOLDER has photographs (*.jpg, recursively), which are resized to JPEGs of 500 × 375 and of 3,000 × 2,000. The steps are
resize, label and database, a process each, after a download (not timed, as convert_imageset has none). Rounds alternate; prints
median seconds and the ratio of the loop's to the steps'.
"""

import argparse
import csv
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2

ROOT = Path(__file__).parents[1]
LOOP = """
import sys
import cv2, lmdb
sys.path.insert(0, sys.argv[3])
from caffe.proto import caffe_pb2
environment = lmdb.open(sys.argv[2], map_size=1 << 40)
transaction = environment.begin(write=True)
for number, line in enumerate(open(sys.argv[1])):
    path, label = line.split()
    image = cv2.resize(cv2.imread(path), (256, 256))
    datum = caffe_pb2.Datum(channels=3, height=256, width=256, data=image.transpose(2, 0, 1).tobytes(), label=int(label))
    datum.encoded = False
    transaction.put(b"%08d_%s" % (number, path.encode()), datum.SerializeToString())
    if number % 1000 == 999:
        transaction.commit()
        transaction = environment.begin(write=True)
transaction.commit()
environment.sync()
"""


def photographs(source: Path, folder: Path, count: int, width: int, height: int) -> None:
    """Write a downloaded shard of `count` photographs of that size, and a list of them for the loop."""
    paths = sorted(source.rglob("*.jpg"))
    (folder / "download/00000").mkdir(parents=True)
    (folder / "list").mkdir()
    (folder / "list/00000.csv").touch()
    names = []
    for number in range(count):
        path = paths[number * 7 % len(paths)]
        original = cv2.imread(str(path))
        assert original is not None, path
        image = cv2.resize(original, (width, height), interpolation=cv2.INTER_CUBIC)
        names.append((f"{number:06d}.jpg", path.parent.name))
        cv2.imwrite(str(folder / "download/00000" / names[-1][0]), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    classes = sorted({name for _, name in names})
    with (folder / "download/00000.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "url", "label", "split", "group", "status", "error", "bytes", "sha256", "seconds"])
        writer.writerows([name, f"http://x/{name}", label, "", "", 200, "", 0, "", 0] for name, label in names)
    lines = [f"{folder}/download/00000/{name} {classes.index(label)}\n" for name, label in names]
    (folder / "list.txt").write_text("".join(lines))


def steps(folder: Path) -> None:
    """Resize, label, and build both databases."""
    threads = ("--threads", str(os.cpu_count()))
    run(folder, "pipeline.dataset.resize", "download/00000", "resize/00000", *threads)
    run(folder, "pipeline.dataset.label", "list", "download", "resize", "--output", "lists", "--val", "0.2")
    for part in ("train", "val"):
        files = ("--labels", "lists/labels.txt", "--manifest", f"{part}.json", *threads)
        run(folder, "pipeline.dataset.database", f"lists/{part}.txt", "resize", f"lmdb/{part}", *files)


def run(folder: Path, module: str, *arguments: str) -> None:
    """Run a step's command."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", module, *arguments], cwd=folder, env=environment, check=True, capture_output=True)


def loop(folder: Path) -> None:
    """The baseline, in its own process."""
    shutil.rmtree(folder / "peer", ignore_errors=True)
    subprocess.run([sys.executable, "-c", LOOP, "list.txt", "peer", str(ROOT)], cwd=folder, check=True)


def measure(source: Path, count: int, width: int, height: int, rounds: int) -> None:
    """Print seconds and ratio for photographs of one size."""
    times: dict[str, list[float]] = {"steps": [], "loop": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs(source, folder, count, width, height)
        for _ in range(rounds):
            for which, work in (("steps", steps), ("loop", loop)):
                start = time.perf_counter()
                work(folder)
                times[which].append(time.perf_counter() - start)
    ours, peer = (statistics.median(times[which]) for which in ("steps", "loop"))
    print(
        f"{count} photographs of {width}×{height}: steps {ours:.2f} s, loop {peer:.2f} s; {peer / ours:.2f} times as fast",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", type=int, default=1000, help="number of photographs of 500 × 375; 0 for none")
    parser.add_argument("--large", type=int, default=200, help="number of photographs of 3,000 × 2,000; 0 for none")
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    for count, width, height in ((a.small, 500, 375), (a.large, 3000, 2000)):
        if count:
            measure(a.folder, count, width, height, a.rounds)


if __name__ == "__main__":
    main()

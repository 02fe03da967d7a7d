"""Shared by tests of the steps: real commands, small photographs, a small dataset, and a check of how a step fails."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pandas as pd
import pytest

from pipeline.dataset.duplicates import fingerprint
from pipeline.sources.tables import Source, rows
from tests.conftest import ROOT


@pytest.fixture
def command(tmp_path):
    """command("pipeline.dataset.resize", "in", "out") runs a step in the test's own folder, as a user would."""

    def run_command(module: str, *arguments) -> subprocess.CompletedProcess:
        return _run(tmp_path, module, *arguments)

    return run_command


@pytest.fixture
def fails(command, tmp_path):
    """fails(said, "pipeline.dataset.resize", …): the step exits with 1, one line with all of `said`, and no new file.

    leaves  names of files that may be left behind, such as logs
    """

    def run_and_check(said: list[str], module: str, *arguments, leaves: tuple[str, ...] = ()) -> None:
        before = sorted(tmp_path.rglob("*"))
        done = command(module, *arguments)
        assert done.returncode == 1, done.stderr
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1, done.stderr
        for words in said:
            assert words in done.stderr
        new = [path for path in tmp_path.rglob("*") if path.is_file() and path not in before]
        assert [path for path in new if path.name not in leaves] == []

    return run_and_check


@pytest.fixture
def picture():
    """picture(seed, height, width) gives a smooth colour picture, uint8, height × width × 3."""
    return _picture


@pytest.fixture
def dataset(tmp_path):
    """A resized dataset of two shards, three images of each of the classes cat, dog and owl; relative to the test's folder."""
    return _dataset(tmp_path)


@pytest.fixture
def small(tmp_path, built):
    """The small dataset's lists, databases and mean with a small net and its solver; relative to the test's folder."""
    return Path(shutil.copytree(built, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("out", "snap")))


@pytest.fixture
def here(small, monkeypatch):
    """The small dataset as working folder."""
    monkeypatch.chdir(small)
    return small


@pytest.fixture
def trained(tmp_path, built):
    """As `small`, after training: out/final.caffemodel, out/train.log, out/metrics.csv and snap/."""
    return Path(shutil.copytree(built, tmp_path, dirs_exist_ok=True))


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The folder that `small` and `trained` copy, made by the steps themselves."""
    folder = _dataset(tmp_path_factory.mktemp("built"))
    (folder / "train.prototxt").write_text(NET.format(part="train", accuracy=""))
    (folder / "test.prototxt").write_text(NET.format(part="val", accuracy=ACCURACY))
    (folder / "solver.prototxt").write_text(SOLVER)
    steps = [("pipeline.dataset.label", "list", "download", "resize", "--output", "lists")]
    for part in ("train", "val"):
        files = ("--labels", "lists/labels.txt", "--manifest", f"lmdb/{part}.manifest.json")
        steps.append(("pipeline.dataset.database", f"lists/{part}.txt", "resize", f"lmdb/{part}", *files))
    steps.append(("pipeline.dataset.mean", "lmdb/train", "mean.binaryproto", "--values", "mean.json"))
    steps.append(TRAIN)
    for module, *arguments in steps:
        done = _run(folder, module, *arguments)
        assert done.returncode == 0, done.stderr
    return folder


HOSTILE = [
    "$(touch pwned)",
    "'\"; touch pwned #",
    "`touch pwned`",
    "a b\tc\nd",
    "-rf",
    "--csv=x",
    "é ü 日本",
    "{output} {{x}}",
    "x" * 200,
]
"""Texts that a shell, a format string or an argument parser would misinterpret."""
NET = """
layer {{ name: "data" type: "Data" top: "data" top: "label" data_param {{ source: "lmdb/{part}" batch_size: 3 backend: LMDB }}
  transform_param {{ scale: 0.004 }} }}
layer {{ name: "hidden" type: "InnerProduct" bottom: "data" top: "hidden" inner_product_param {{ num_output: 6
  weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "scores" type: "InnerProduct" bottom: "hidden" top: "scores" inner_product_param {{ num_output: 3
  weight_filler {{ type: "xavier" }} }} }}
{accuracy}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "scores" bottom: "label" top: "loss" }}
"""
ACCURACY = 'layer { name: "accuracy" type: "Accuracy" bottom: "scores" bottom: "label" top: "accuracy" }'
SOLVER = """
train_net: "train.prototxt" test_net: "test.prototxt" test_iter: 1 test_interval: 5 base_lr: 0.05 momentum: 0.9
lr_policy: "fixed" display: 5 max_iter: 20 snapshot_prefix: "snap/s" random_seed: 1 solver_mode: CPU
"""
TRAIN = ("pipeline.training.train", "solver.prototxt", "out")


def records(folder: Path) -> list[tuple[bytes, bytes]]:
    """Keys and values of an LMDB, in order."""
    with lmdb.open(str(folder), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return list(transaction.cursor())


def write_resized(folder: Path, images: dict[str, np.ndarray | None]) -> None:
    """Write what the resize step would write for these images by name; None is an unreadable image."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = next(image.shape for image in images.values() if image is not None)
    np.save(folder / "pixels.npy", [np.zeros(shape, np.uint8) if image is None else image for image in images.values()])
    reasons = ["" if image is not None else "damaged" for image in images.values()]
    prints = ["" if image is None else fingerprint(image).hex() for image in images.values()]
    sums = ["" if image is None else hashlib.sha256(image.tobytes()).hexdigest() for image in images.values()]
    table = pd.DataFrame(
        {"path": list(images), "reason": reasons, "height": 8, "width": 8, "fingerprint": prints, "sha256": sums}
    )
    table.to_csv(folder / "images.csv", index=False)


def _picture(seed: int = 0, height: int = 40, width: int = 60) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _dataset(folder: Path) -> Path:
    (folder / "list").mkdir()
    (folder / "download").mkdir()
    for shard in range(2):
        (folder / "list" / f"{shard:05d}.csv").touch()
    rows = []
    for number in range(9):
        shard, label = f"{number // 5:05d}", ["owl", "cat", "dog"][number % 3]
        name = f"{number % 5:06d}_{label}"
        row = {"shard": shard, "path": f"{name}.jpg", "url": f"http://x/{name}", "label": label}
        rows.append({**row, "split": "train" if number < 6 else "val", "group": "", "error": ""})
    for shard, group in pd.DataFrame(rows).groupby("shard"):
        write_resized(
            folder / "resize" / str(shard), {f"{row.path}": _picture(int(index), 8, 8) for index, row in group.iterrows()}
        )
        group.drop(columns="shard").to_csv(folder / "download" / f"{shard}.csv", index=False)
    return folder


def _run(folder: Path, module: str, *arguments) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(words, cwd=folder, env=_environment(), capture_output=True, text=True)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}


def read_source(source: Source) -> pd.DataFrame:
    """The whole table of a source."""
    return pd.DataFrame(rows(source), dtype=object)

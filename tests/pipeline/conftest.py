"""What tests of the steps share: real commands, small photographs, a small dataset, and what a good failure is."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest

from tests.conftest import ROOT


@pytest.fixture
def command(tmp_path):
    """command("pipeline.resize", "in", "out") runs a step in the test's own folder, as a user would."""

    def run_command(module: str, *arguments) -> subprocess.CompletedProcess:
        words = [sys.executable, "-m", module, *map(str, arguments)]
        return subprocess.run(words, cwd=tmp_path, env=_environment(), capture_output=True, text=True)

    return run_command


@pytest.fixture
def fails(command, tmp_path):
    """fails(said, "pipeline.resize", …): the step ends with 1 and one line that says all of `said`, and leaves no new file.

    leaves  names of files that it may leave: logs
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

    def draw(seed: int = 0, height: int = 40, width: int = 60) -> np.ndarray:
        coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3)).astype(np.uint8)
        return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)

    return draw


@pytest.fixture
def dataset(tmp_path, picture):
    """A resized dataset of two shards, three images of each of the classes cat, dog and owl; relative to the test's folder."""
    (tmp_path / "list").mkdir()
    (tmp_path / "download").mkdir()
    for shard in range(2):
        (tmp_path / "resize" / f"{shard:05d}").mkdir(parents=True)
        (tmp_path / "list" / f"{shard:05d}.csv").touch()
    rows = []
    for number in range(9):
        shard, label = f"{number // 5:05d}", ["owl", "cat", "dog"][number % 3]
        name = f"{number % 5:06d}_{label}"
        cv2.imwrite(str(tmp_path / "resize" / shard / f"{name}.png"), picture(number, 8, 8))
        row = {"shard": shard, "path": f"{name}.jpg", "url": f"http://x/{name}", "label": label}
        rows.append({**row, "split": "train" if number < 6 else "val", "error": ""})
    for shard, group in pd.DataFrame(rows).groupby("shard"):
        group.drop(columns="shard").to_csv(tmp_path / "download" / f"{shard}.csv", index=False)
    return tmp_path


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}

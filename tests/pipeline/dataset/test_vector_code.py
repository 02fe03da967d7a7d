"""The data's bytes do not depend on the processor: decoding, resizing, lists, databases and means without vector code."""

import hashlib
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from tests import without_vector_code
from tests.conftest import ROOT
from tests.pipeline.conftest import _picture

STEPS = """
import sys
from pipeline.dataset import database, download, label, mean, resize
from pipeline.sources import shards
mode, interpolation, encode = sys.argv[1:]
CHANGES = '{"brightness": 0.3, "saturation": 0.3, "pca": 0.1, "rotation": 20, "min_area": 0.5, "noise": 5, "blur": 1}'
shards.main(["list", "--folder", "photos"])
download.main(["list/00000.csv", "download/00000", "--table", "download/00000.csv", "--allow-file"])
size = ["--height=96", "--width=64"]
resize.main(["download/00000", "resize/00000", *size, "--resize-mode", mode, "--interpolation", interpolation])
label.main(["list", "download", "resize", "--output", "lists", "--val=0.3"])
for part in ("train", "val"):
    database.main([f"lists/{part}.txt", "resize", f"lmdb/{part}", "--labels=lists/labels.txt", f"--manifest={part}.json",
                   "--encode", encode, "--copies=1", "--augmentation", CHANGES])
mean.main(["lmdb/train", "mean.binaryproto", "--values", "mean.json"])
"""


@pytest.fixture
def photos(tmp_path):
    """A folder in which two classes have JPEGs and PNGs of several sizes, with fine detail."""
    for number in range(10):
        height, width = 60 + 37 * number, 301 - 23 * number
        noise = np.random.default_rng(number).integers(0, 60, (height, width, 3))
        image = np.clip(_picture(number, height, width) * 0.75 + noise, 0, 255).astype(np.uint8)
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.{'jpg' if number < 7 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
    return tmp_path


def run_steps(folder, name: str, words: tuple[str, ...], environment: dict) -> dict[str, str]:
    """Run the steps in a new folder; return the SHA-256 of each file that they write."""
    here = folder / name
    here.mkdir()
    (here / "photos").symlink_to(folder / "photos")
    done = subprocess.run(
        [sys.executable, "-c", STEPS, *words],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    kept = [path for path in here.rglob("*") if path.is_file() and "seconds" not in path.name and path.name != "lock.mdb"]
    return {path.relative_to(here).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


@pytest.mark.parametrize(
    "words",
    [
        *(("squash", interpolation, "raw") for interpolation in ("linear", "cubic")),
        ("crop", "linear", "jpg"),
        *(pytest.param(("squash", name, "raw"), marks=pytest.mark.long) for name in ("nearest", "area", "lanczos")),
        pytest.param(("fit", "area", "png"), marks=pytest.mark.long),
    ],
    ids="-".join,
)
def test_vector_code_changes_no_byte_of_the_data(photos, words):
    plain = run_steps(photos, "native", words, {})
    assert len(plain) >= 20
    assert run_steps(photos, "scalar", words, {**without_vector_code.environment(), "OMP_NUM_THREADS": "1"}) == plain


def test_the_environment_turns_vector_code_off():
    code = (
        "import cv2, json, torch; from numpy._core._multiarray_umath import __cpu_features__ as have, __cpu_dispatch__ as all;"
        "print(json.dumps([[n for n in all if have[n]], torch.backends.cpu.get_cpu_capability(), cv2.getCPUFeaturesLine()]))"
    )
    environment = {**os.environ, **without_vector_code.environment()}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    numpy, torch, opencv = json.loads(done.stdout)
    assert (numpy, torch) == ([], "DEFAULT")
    assert [name for name in opencv.split() if name.startswith("*AVX") and not name.endswith("?")] == []

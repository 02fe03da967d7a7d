"""The pages about published nets: their commands and scripts run, in order, on stand-ins of the nets with random weights."""

import os
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest

from tests import published_nets
from tests.conftest import ROOT

BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = {
    "openpose": (published_nets.openpose, ["joint 17: ("]),
    "mobilenet_ssd": (published_nets.mobilenet_ssd, [" rows\n"]),
    "face_detector": (published_nets.face_detector, [" rows\n"]),
    "age_gender": (published_nets.age_gender, ["male: 0."]),
    "colorization": (published_nets.colorization, []),
}
"""{page: (its stand-ins, what its last script prints)}."""


def run(*command: str, folder) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOG_minloglevel": "2"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(tmp_path, page):
    stand_ins, said = PAGES[page]
    stand_ins(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "photo.jpg"), cv2.resize(pixels, (320, 240), interpolation=cv2.INTER_CUBIC))
    blocks = BLOCK.findall((ROOT / f"docs/{page}.md").read_text())
    assert {kind for kind, _ in blocks} == {"sh", "python"}
    printed = ""
    for kind, text in blocks:
        if kind == "python":
            (tmp_path / "script.py").write_text(text)
            printed = run(sys.executable, "script.py", folder=tmp_path)
            continue
        for line in text.splitlines():
            command, name, *words = line.split()
            assert command == "roastery"
            output = run(sys.executable, "-m", "pipeline.cli", name, *words, folder=tmp_path)
            if name == "doctor":
                assert f"docs/{page}.md has an example" in " ".join(output.split())
                assert "missing" not in output
                assert len(output.splitlines()) <= 24
            else:
                assert re.search(r"onnxruntime \S+ differs from the net by \d\.\de-\d\d", output)
                assert re.search(r"OpenCV \S+ differs from onnxruntime by \d\.\de[-+]\d\d", output), output
    for words in said:
        assert words in printed
    if page == "colorization":
        assert cv2.imread(str(tmp_path / "coloured.png")).shape == (240, 320, 3)

"""Run the pages about published nets on stand-ins with random weights; `python -m tests.page_pictures` draws their pictures."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
from matplotlib import cbook

from tests import published_nets
from tests.conftest import ROOT

STAND_INS = {
    "openpose": published_nets.openpose,
    "mobilenet_ssd": published_nets.mobilenet_ssd,
    "face_detector": published_nets.face_detector,
    "age_gender": published_nets.age_gender,
    "colorization": published_nets.colorization,
}
"""{page: what writes the files that a reader has before starting}."""
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"!\[[^\]]+\]\((pictures/[^)]+)\)")
PHOTOGRAPH, SIZE = "grace_hopper.jpg", (410, 480)
"""Of matplotlib's sample data: Grace Hopper, US Navy, in the public domain; and its width and height."""


def follow(page: str, folder: Path) -> Iterator[tuple[list[str], str]]:
    """Run a page's commands and scripts in a folder, in order; gives each one's words and what it printed.

    Raises RuntimeError, with its errors, for a command that fails.
    """
    STAND_INS[page](folder)
    photograph = cv2.imread(str(cbook.get_sample_data(PHOTOGRAPH, asfileobj=False)))
    cv2.imwrite(str(folder / "photo.jpg"), cv2.resize(photograph, SIZE, interpolation=cv2.INTER_AREA))
    for kind, text in BLOCK.findall((ROOT / f"docs/{page}.md").read_text()):
        if kind == "python":
            (folder / "script.py").write_text(text)
            yield ["python"], _run(["script.py"], folder)
            continue
        for line in text.splitlines():
            command, *words = line.split()
            if command != "roastery":
                raise RuntimeError(f"docs/{page}.md: {line}: only roastery's commands are run")
            yield [command, *words], _run(["-m", "pipeline.cli", *words], folder)


def _run(arguments: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOG_minloglevel": "2", "MPLBACKEND": "Agg"}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}\n{done.stdout}{done.stderr}")
    return done.stdout


def pictures_of(page: str) -> list[Path]:
    """The pictures that a page shows."""
    return [ROOT / "docs" / picture for picture in PICTURE.findall((ROOT / f"docs/{page}.md").read_text())]


def main() -> None:
    for page in STAND_INS:
        with tempfile.TemporaryDirectory() as folder:
            for words, _ in follow(page, Path(folder)):
                print(page, *words[:2])
            for picture in pictures_of(page):
                picture.parent.mkdir(exist_ok=True)
                shutil.copy(Path(folder) / picture.name, picture)
                print(f"{picture.relative_to(ROOT)}: {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

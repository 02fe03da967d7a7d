"""Every page of docs/tutorials works as written: its blocks are run in order, and their output is compared with the page.

docs/tutorials/README.md explains the notes that a page may have.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import caffe
from tests import standins
from tests.conftest import ROOT, SHARED, needs_shared

PAGES = ROOT / "docs/tutorials"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOTE = re.compile(r"<!-- test: ((?:(?!-->).)*) -->\s*$", re.DOTALL)
FILE = re.compile(r"`([^`\n]+)`:\s*$")
NUMBER = r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
END = "-- end of block --"
SESSION = f"""
import json, sys
names = {{"__name__": "__main__"}}
for line in sys.stdin:
    block = json.loads(line)
    exec(compile(chr(10) * block["line"] + block["text"], block["page"], "exec"), names)
    print({END!r}, flush=True)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its first line, the file it is written to, the note before it, its text."""

    kind: str
    line: int
    file: str
    note: str
    text: str

    @property
    def run(self) -> str:
        """The text that the tests run: each line `A => B` of the note replaces A by B."""
        text = self.text
        for line in self.note.splitlines():
            before, arrow, after = line.strip().partition(" => ")
            assert arrow, f"line {self.line}: {line!r} is not A => B"
            assert before in text, f"line {self.line}: no {before!r} in the block"
            text = text.replace(before, after)
        return text


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    text, blocks = page.read_text(), []
    for found in BLOCK.finditer(text):
        before = text[: found.start()]
        note = NOTE.search(before)
        file = FILE.search(before[: note.start()] if note else before)
        line = before.count("\n") + 1
        blocks.append(Block(found[1], line, file[1] if file else "", note[1] if note else "", found[2]))
    return blocks


def tolerance_of(note: str) -> float:
    """Relative tolerance of the numbers of an output; infinity if they are not compared."""
    if note == "other numbers":
        return math.inf
    if within := re.fullmatch(r"within (\d+) %", note):
        return int(within[1]) / 100
    assert not note, f"no such note: {note}"
    return 0.02


def first_difference(expected: list[str], printed: list[str], tolerance: float) -> str:
    """The first expected line that was not printed; empty if all were. `…` matches any lines."""
    positions = {0}
    for line in expected:
        if line == "…":
            positions = set(range(min(positions), len(printed) + 1))
        else:
            positions = {at + 1 for at in positions if at < len(printed) and matches(line, printed[at], tolerance)}
        if not positions:
            return line
    return "" if len(printed) in positions else "the end"


def matches(expected: str, printed: str, tolerance: float) -> bool:
    """Whether a line is as expected; `…` matches anything, and integers are compared exactly unless numbers are ignored."""
    any_numbers, pattern, wanted = math.isinf(tolerance), "", []
    for part in re.split(rf"(\s+|…|{NUMBER})", expected.strip()):
        if part == "…":
            pattern += ".*"
        elif part.isspace():
            pattern += r"\s+"
        elif re.fullmatch(NUMBER, part) and (any_numbers or "." in part):
            pattern += f"({NUMBER})"
            wanted.append(float(part))
        else:
            pattern += re.escape(part)
    found = re.fullmatch(pattern, printed.strip())
    if found is None or any_numbers:
        return found is not None
    given = map(float, found.groups())
    return all(math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-3) for a, b in zip(wanted, given, strict=True))


class Reader:
    """Follows a page, in a folder that looks like a clone of the repository."""

    def __init__(self, page: Path, folder: Path):
        self.page, self.folder = page, folder
        for name in ("Snakefile", "rules", "config", "profiles", "report"):
            (folder / name).symlink_to(ROOT / name)
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "GLOG_minloglevel"},
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "NO_PROXY": "127.0.0.1",
            "MPLBACKEND": "Agg",
            "CAFFE": str(folder / "caffe_checkout"),
        }
        self.python: subprocess.Popen | None = None

    def follow(self) -> None:
        """Run the page's blocks. Raises AssertionError if one fails, or prints something other than the page says."""
        printed: list[str] = []
        try:
            for block in blocks_of(self.page):
                where = f"{self.page.name}:{block.line}"
                if block.file:
                    (self.folder / block.file).parent.mkdir(parents=True, exist_ok=True)
                    (self.folder / block.file).write_text(block.run)
                elif block.kind == "sh":
                    printed = self._shell(block, where)
                elif block.kind == "python":
                    printed = self._session(block, where)
                elif block.kind == "text":
                    line = first_difference(block.text.splitlines(), printed, tolerance_of(block.note))
                    assert not line, f"{where}: not printed: {line}\n--- printed:\n" + "\n".join(printed)
                else:
                    pytest.fail(f"{where}: a block of {block.kind} without a file name before it")
        finally:
            if self.python:
                self.python.kill()
                self.python.communicate()

    def _shell(self, block: Block, where: str) -> list[str]:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.run],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{where}: exit code {done.returncode}\n{done.stdout}"
        return done.stdout.splitlines()

    def _session(self, block: Block, where: str) -> list[str]:
        """Run the block in the page's Python session, which keeps its names; returns its standard output."""
        errors = self.folder / "python_errors.log"
        if self.python is None:
            self.python = subprocess.Popen(
                [sys.executable, "-c", SESSION],
                cwd=self.folder,
                env={**self.environment, "GLOG_minloglevel": "2"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors.open("w"),
                text=True,
            )
        self.python.stdin.write(json.dumps({"line": block.line, "text": block.run, "page": self.page.name}) + "\n")
        self.python.stdin.flush()
        lines = []
        for line in self.python.stdout:
            if line.strip() == END:
                return lines
            lines.append(line.rstrip("\n"))
        pytest.fail(f"{where}:\n" + "\n".join(lines) + errors.read_text())


def lenet_mnist(folder: Path) -> None:
    """MNIST's files; LeNet's prototxts of 2014, and weights trained with them at that time."""
    (folder / "mnist_copy").symlink_to(SHARED / "data/mnist")
    examples = folder / "caffe_checkout/examples/mnist"
    examples.mkdir(parents=True)
    for name in ("lenet_train_test", "lenet_solver", "lenet"):
        shutil.copy(SHARED / f"zoo/v1_format/mnist__{name}.prototxt", examples / f"{name}.prototxt")
    for name in ("lenet_iter_10000.caffemodel", "lenet_iter_5000.solverstate", "lenet_iter_5000.caffemodel"):
        shutil.copy(SHARED / "weights" / name, examples / name)


def photographs(folder: Path, *classes: str, images: int = 40) -> None:
    """CLASS/ with photographs of Caltech-101."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for path in sorted((SHARED / "data/caltech101-subset" / name).iterdir())[:images]:
            (folder / name / path.name).symlink_to(path)


def cifar10_quick(folder: Path) -> None:
    """cifar10_quick's prototxts of 2014, and weights and solver state of that time."""
    examples = folder / "caffe_checkout/examples/cifar10"
    examples.mkdir(parents=True)
    for name in ("cifar10_quick", "cifar10_quick_train_test", "cifar10_quick_solver"):
        shutil.copy(SHARED / f"zoo/v1_format/cifar10__{name}.prototxt", examples / f"{name}.prototxt")
    for name in ("cifar10_quick_iter_4000.caffemodel", "cifar10_quick_iter_4000.solverstate"):
        shutil.copy(SHARED / "weights" / name, examples / name)


def classification(folder: Path) -> None:
    """cifar10_quick, ships, and CaffeNet with random weights."""
    cifar10_quick(folder)
    photographs(folder / "photos", "ketch")
    caffenet(folder)


def two_classes(folder: Path) -> None:
    """cifar10_quick, helicopters and ships."""
    cifar10_quick(folder)
    photographs(folder / "photos", "helicopter", "ketch")


def feature_extraction(folder: Path) -> None:
    """The same, with Caffe's prototxt of 2014, and stand-ins of CaffeNet's weights and ImageNet's mean."""
    two_classes(folder)
    examples = folder / "caffe_checkout/examples/feature_extraction"
    examples.mkdir()
    shutil.copy(SHARED / "zoo/v1_format/feature_extraction__imagenet_val.prototxt", examples / "imagenet_val.prototxt")
    (folder / "models/bvlc_reference_caffenet").mkdir(parents=True)
    standins.random_weights("caffenet", folder / "models/bvlc_reference_caffenet/bvlc_reference_caffenet.caffemodel")
    (folder / "data/ilsvrc12").mkdir(parents=True)
    mean = caffe.io.array_to_blobproto(np.full((1, 3, 256, 256), 115.0))
    (folder / "data/ilsvrc12/imagenet_mean.binaryproto").write_bytes(mean.SerializeToString())


def presetting_weights(folder: Path) -> None:
    """LeNet and cifar10_quick, and MNIST."""
    lenet_mnist(folder)
    cifar10_quick(folder)


def net_surgery(folder: Path) -> None:
    """LeNet and MNIST; CaffeNet, its fully convolutional form, and random weights for it."""
    lenet_mnist(folder)
    examples = folder / "caffe_checkout/examples/net_surgery"
    examples.mkdir()
    shutil.copy(SHARED / "zoo/bvlc/examples/net_surgery/bvlc_caffenet_full_conv.prototxt", examples)
    caffenet(folder)


def caffenet(folder: Path) -> None:
    """CaffeNet's deploy.prototxt, and random weights for it."""
    bvlc = SHARED / "zoo/bvlc/models/bvlc_reference_caffenet"
    shutil.copy(bvlc / "deploy.prototxt", folder / "bvlc_reference_caffenet_deploy.prototxt")
    standins.random_weights("caffenet", folder / "bvlc_reference_caffenet.caffemodel")


def cifar10(folder: Path) -> None:
    """Files in CIFAR-10's format, and the solver of the second part as in a Caffe of 2014."""
    cifar10_quick(folder)
    standins.cifar10_files(folder / "stand_in", images=500)
    examples = folder / "caffe_checkout/examples/cifar10"
    solver = (examples / "cifar10_quick_solver.prototxt").read_text()
    second = solver.replace("base_lr: 0.001", "base_lr: 0.0001").replace("max_iter: 4000", "max_iter: 5000")
    (examples / "cifar10_quick_solver_lr1.prototxt").write_text(second.replace("snapshot: 4000", "snapshot: 5000"))


def flickr_style(folder: Path) -> None:
    """A list with the columns of Caffe's, of local files, a quarter of which are missing; random weights."""
    standins.class_folders(folder / "pictures", {str(label): 4 for label in range(20)})
    for gone in (folder / "pictures").glob("*/2.png"):
        gone.unlink()
    standins.flickr_list(folder / "flickr_style.csv.gz", (folder / "pictures").as_uri(), images=4)
    caffenet(folder)


def dog_breeds(folder: Path) -> None:
    """Small pictures of four breeds, and random weights of ResNet-50."""
    standins.class_folders(folder / "dogs", dict.fromkeys(("beagle", "boxer", "collie", "pug"), 3))
    standins.random_weights("resnet50", folder / "ResNet-50-model.caffemodel")


def which_fine_tuning(folder: Path) -> None:
    """Ten classes of photographs, five for pretraining and five as the reader's own."""
    parts = {
        "pretraining": ("bonsai", "butterfly", "grand_piano", "hawksbill", "helicopter"),
        "mine": ("kangaroo", "ketch", "starfish", "sunflower", "watch"),
    }
    for part, classes in parts.items():
        photographs(folder / part, *classes, images=80)


PREPARED = {
    "which_fine_tuning": which_fine_tuning,
    "cifar10": cifar10,
    "flickr_style": flickr_style,
    "dog_breeds": dog_breeds,
    "presetting_weights": presetting_weights,
    "net_surgery": net_surgery,
    "lenet_mnist": lenet_mnist,
    "classification": classification,
    "two_classes": two_classes,
    "feature_extraction": feature_extraction,
    "layer_pictures": two_classes,
    "solver_by_hand": lenet_mnist,
}
"""{page: function that writes the files that a reader has before starting}."""


def pictures_of(page: Path) -> list[str]:
    """The pictures that a page shows."""
    return re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text())


@pytest.mark.long
@needs_shared
@pytest.mark.parametrize("name", PREPARED)
def test_a_page_works_as_written(name, tmp_path):
    PREPARED[name](tmp_path)
    page = PAGES / f"{name}.md"
    Reader(page, tmp_path).follow()
    for picture in pictures_of(page):
        assert (tmp_path / Path(picture).name).exists(), f"{page.name} shows {picture}, but does not make it"
    shutil.rmtree(tmp_path)


def test_every_page_is_run_and_listed():
    pages = {path.stem for path in PAGES.glob("*.md")} - {"README"}
    assert pages == set(PREPARED)
    listed = re.findall(r"\]\((\w+)\.md\)", (PAGES / "README.md").read_text())
    assert sorted(listed) == sorted(pages)
    assert "(docs/tutorials/README.md)" in (ROOT / "README.md").read_text()


def test_pictures_exist_and_are_small():
    shown = {picture for page in PAGES.glob("*.md") for picture in pictures_of(page)}
    assert shown == {f"pictures/{path.name}" for path in (PAGES / "pictures").iterdir()}
    for picture in shown:
        assert (PAGES / picture).stat().st_size <= 60 * 1024, picture


@pytest.mark.parametrize(
    ("expected", "printed", "note", "same"),
    [
        ("accuracy = 0.9905", "accuracy = 0.9900", "", True),
        ("accuracy = 0.9905", "accuracy = 0.8905", "", False),
        ("accuracy = 0.9905", "accuracy = 0.92", "within 10 %", True),
        ("accuracy = 0.9905", "accuracy = 0.1", "other numbers", True),
        ("10000 records", "1000 records", "", False),
        ("I… loss = 0.5", "I1120 12:00 solver.cpp] loss = 0.5", "", True),
        ("a\n…\nz", "a\nb\nc\nz", "", True),
        ("a\n…\nz", "a\nb\nc", "", False),
        ("a", "a\nb", "", False),
        ("[[1.0  2.0]", "[[1. 2.0]", "other numbers", False),
        ("train   loss", "train loss", "", True),
    ],
)
def test_output_is_compared_with_the_page(expected, printed, note, same):
    assert (first_difference(expected.splitlines(), printed.splitlines(), tolerance_of(note)) == "") == same


def test_a_wrong_page_fails(tmp_path):
    page = tmp_path / "page.md"
    for blocks in ("```sh\nfalse\n```", "```sh\necho 3\n```\n\n```text\n4\n```", "```python\n1 / 0\n```", "```yaml\na: 1\n```"):
        page.write_text(blocks + "\n")
        folder = tmp_path / f"reader_{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            Reader(page, folder).follow()

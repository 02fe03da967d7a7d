"""Each file that a step reads, cut off or edited: the step names it, unless its results are the same."""

import fnmatch
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.formats.digests import CHANGING
from pipeline.report import manifest
from tests import workflows

pytestmark = pytest.mark.long
FILES = 3
"""Of an input that is a folder, so many files are damaged."""
UNCHECKED = ("*/download/*.png", "*/mean.binaryproto", "*/preprocessing.json", "*.prototxt", "*/list/*.csv", "*/download/*.csv")
"""Files of which an edit that can be read may be meant: it gives other results."""
ONLY_THEIRS = ("digits", "weights", "shards", "manifest")
"""Rules that read files of the user's, or whose result is the list of what there is."""


def cut_off(content: bytes) -> bytes:
    """The first half, as after a copy that was interrupted."""
    return content[: len(content) // 2]


def edited(content: bytes) -> bytes:
    """Other bytes in the middle, as a disk returns them that goes bad."""
    middle = len(content) // 2
    return content[:middle] + random.Random(1).randbytes(4) + content[middle + 4 :]


def results(folder: Path, outputs: list[str]) -> dict[str, bytes]:
    """{path: content} of the files that are the same in each build."""
    paths = [path for output in outputs for path in [folder / output, *(folder / output).rglob("*")] if path.is_file()]
    changing = (*manifest.NOT_COMPARED, ".snakemake_timestamp")
    same = (path for path in paths if not any(fnmatch.fnmatch(path.name, name) for name in changing))
    return {str(path.relative_to(folder)): path.read_bytes() for path in same}


def files_of(path: Path) -> list[Path]:
    """A file, or some of those in a folder."""
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [each for each in found if each.is_file() and each.name not in CHANGING][:FILES]


@pytest.mark.parametrize("rule", [step for step in manifest.STEPS if step not in (*ONLY_THEIRS, "fetch")])
def test_a_step_names_a_damaged_file_that_it_reads(rule, built, tmp_path):
    job = built[1][rule]
    folder = Path(shutil.copytree(built[0], tmp_path / "workflow", symlinks=True))
    expected, wrong = results(folder, job.outputs), []
    inputs = [(source, path) for source in job.inputs for path in files_of(folder / source)]
    for given, path in inputs:
        content, name = path.read_bytes(), str(path.relative_to(folder))
        for damage in (cut_off, edited) if len(content) > 8 else ():
            path.write_bytes(damage(content))
            for output in job.outputs:
                shutil.rmtree(folder / output) if (folder / output).is_dir() else (folder / output).unlink(missing_ok=True)
            words = ["bash", "-euo", "pipefail", "-c", job.command]
            done = subprocess.run(words, cwd=folder, env=workflows.environment(), capture_output=True, text=True)
            path.write_bytes(content)
            said = done.stdout + done.stderr
            errors = [line for line in said.splitlines() if line.startswith("error: ")]
            if "Traceback" in said or (done.returncode and not (len(errors) == 1 and given in errors[0])):
                wrong.append(f"{name} {damage.__name__}: {' '.join(errors) or said[-300:]}")
            elif done.returncode:
                print(errors[0])
            elif results(folder, job.outputs) != expected and not any(fnmatch.fnmatch(name, some) for some in UNCHECKED):
                wrong.append(f"{name} {damage.__name__}: other results")
    assert not wrong, "\n".join(wrong)

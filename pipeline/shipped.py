"""Where the workflow's files are: in the clone, or where the wheel has put them."""

import sysconfig
from importlib import metadata
from pathlib import Path

from pipeline.errors import InputError

NAME = "share/roastery"
"""Folder of the workflow's files below an installation's data folder."""


def folder() -> Path:
    """The folder with Snakefile, rules/, config/, profiles/ and report/. Raises InputError if there is none."""
    clone = Path(__file__).resolve().parents[1]
    candidates = [clone, Path(sysconfig.get_path("data")) / NAME, clone / NAME]  # the last one for `pip install --target`
    try:
        files = metadata.files("roastery") or []
    except metadata.PackageNotFoundError:
        files = []
    candidates += [Path(str(file.locate())).resolve().parent for file in files if str(file).endswith(f"{NAME}/Snakefile")]
    for candidate in candidates:
        if (candidate / "Snakefile").is_file() and (candidate / "rules").is_dir():
            return candidate
    raise InputError("roastery", "no Snakefile beside the package", "an installed wheel, or a clone", "install Roastery again")


def snakefile() -> str:
    """The path of the Snakefile, for `include` in a project's own."""
    return str(folder() / "Snakefile")

"""Layers in Python of the sample's repositories: their modules as Python 3, and where they are imported from."""

import os
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

from caffe.layer_types.known_python import KNOWN
from caffe.proto import caffe_pb2


def collect(git: Path, commit: str, folder: Path) -> None:
    """Copy all Python files of a commit to a folder, and translate them by 2to3."""
    listed = subprocess.run(
        ["git", f"--git-dir={git}", "ls-tree", "-r", "-z", "--name-only", commit], capture_output=True, check=True
    )
    written = []
    for name in filter(None, listed.stdout.decode(errors="surrogateescape").split("\0")):
        if not name.endswith(".py"):
            continue
        shown = subprocess.run(["git", f"--git-dir={git}", "show", f"{commit}:{name}"], capture_output=True)
        if not shown.returncode:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(shown.stdout)
            written.append(target)
    for target in written:  # when all are there: imports of modules beside one become relative
        target.write_text(as_python_3(target), "utf-8")


def as_python_3(path: Path) -> str:
    """A module as 2to3 translates it, with what 2to3 leaves: tabs, yaml.load. What is neither Python 2 nor 3 stays as it is."""
    text = path.read_text("utf-8", "replace")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lib2to3 import refactor  # not in Python 3.13 and later, where the sample's layers can't be collected

        tool = refactor.RefactoringTool(refactor.get_fixers_from_package("lib2to3.fixes"))
        today = text.expandtabs().replace("yaml.load(", "yaml.safe_load(").rstrip() + "\n"
        try:
            return str(tool.refactor_string(today, str(path)))
        except Exception:  # 2to3's parser and fixers raise many kinds
            return text


def folders_of(net: caffe_pb2.NetParameter, path: Path, root: Path) -> Iterator[Path]:
    """The folders from which the modules of a net's Python layers are imported: in `root`, the nearest to the net's own.

    None of data layers, which have stand-ins, and of modules that are built in, whose own need Cython and CUDA extensions.

    path  the net's file, in root
    """
    layers = [layer.python_param for layer in net.layer if layer.type == "Python" and layer.bottom]
    for module in sorted({each.module for each in layers if (each.module, each.layer) not in KNOWN}):
        parts = module.split(".")
        found = list(root.rglob(f"{'/'.join(parts)}.py"))
        if found:
            nearest = max(found, key=lambda each: (len(os.path.commonpath([each, path])), -len(each.parts)))
            yield nearest.parents[len(parts) - 1]

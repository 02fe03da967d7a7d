"""Image lists in Caffe's form and the tables beside them: read and checked, and written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.files import write_table
from pipeline.formats.roots import Root


def read_image_list(path: Path, classes: int | None = None) -> list[tuple[str, int]]:
    """(path, label) of every line of a list in Caffe's form; labels are checked against the number of classes."""
    return list(entries_of(path, classes))


def entries_of(path: Path, classes: int | None = None, root: Root | None = None) -> Iterator[tuple[str, int]]:
    """`read_image_list`, a line after the other; a path that leads out of `root`, where it is given, is an error."""
    if not path.is_file():
        raise InputError(path, "no such image list", do="build it first, or correct its path")
    number = 0
    for number, line in enumerate(_lines(path), 1):
        name, _, label = line.rstrip().rpartition(" ")
        if not name or not re.fullmatch("-?[0-9]+", label):
            raise InputError(f"{path}:{number}", f'"{line.rstrip()}"', "a path, a space and a label are wanted")
        if classes is not None and not 0 <= int(label) < classes:
            raise InputError(
                f"{path}:{number}",
                f"label {label}",
                f"there are {classes} classes (0–{classes - 1})",
                "Caffe's labels start from 0",
            )
        if root is not None:
            root.path_of(name, f"{path}:{number}", "correct the line, or give a folder that has all of the list's files")
        yield name, int(label)
    if not number:
        do = "name some in the source's split; where it names none for val, those for testing are taken for it"
        raise InputError(path, "the list is empty", do=do if path.name == "test.txt" else "")


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text, ends of line and all; names that are not UTF-8 are kept."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        yield from file


def read_labels(path: Path) -> list[str]:
    """The class names of a labels.txt, by number."""
    if not path.is_file():
        raise InputError(path, "no such file of class names", do="build it first, or correct its path")
    names = path.read_text(encoding="utf-8").splitlines()
    if not names:
        raise InputError(path, "no class names", "there is one a line")
    return names


def write_names(folder: Path, names: list[str]) -> None:
    """Write labels.txt and synset_words.txt."""
    write_lines(folder / "labels.txt", names)
    write_lines(folder / "synset_words.txt", [f"n{number:08d} {name}" for number, name in enumerate(names)])


def write_classes(folder: Path, names: list[str], labels: dict[str, Iterable[int]]) -> None:
    """Write classes.csv (number, class, lines in train.txt and in val.txt, weight) and infogain.binaryproto.

    A class's weight makes the classes count alike: the mean number of training images of a class, divided by its own. The
    matrix for InfogainLoss (1 × 1 × classes × classes) has the weights in its diagonal.
    """
    counts = {part: np.bincount(np.asarray(numbers, int), minlength=len(names)) for part, numbers in labels.items()}
    weights = (counts["train"].mean() / np.maximum(counts["train"], 1)).round(6)
    rows = zip(range(len(names)), names, counts["train"], counts["val"], weights, strict=True)
    write_table(folder / "classes.csv", ("number", "class", "train", "val", "weight"), rows)
    side = len(names)
    matrix = caffe_pb2.BlobProto(num=1, channels=1, height=side, width=side, data=np.diag(weights).ravel())
    (folder / "infogain.binaryproto").write_bytes(matrix.SerializeToString())


def write_sizes(folder: Path, counts: dict[tuple[int, int], int]) -> None:
    """Write sizes.csv: height, width and how many images of that size there are."""
    rows = [(height, width, count) for (height, width), count in sorted(counts.items())]
    write_table(folder / "sizes.csv", ("height", "width", "images"), rows)


def write_duplicates(folder: Path, rows: Iterable[tuple[str, str, int, str, str]]) -> None:
    """Write duplicates.csv."""
    write_table(folder / "duplicates.csv", ("val", "train", "bits", "val_class", "train_class"), rows)


def write_lines(path: Path, lines: list[str]) -> None:
    """Write a text file of these lines."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")

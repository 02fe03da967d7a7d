"""Read, check and write image lists in Caffe's form (`path label` lines) and the tables beside them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.files import write_table
from pipeline.formats.roots import Root


def read_image_list(path: Path, classes: int | None = None) -> list[tuple[str, int]]:
    """(path, label) of every line of a list. Raises InputError for a bad line, or a label that is not below `classes`."""
    return list(iter_image_list(path, classes))


def iter_image_list(path: Path, classes: int | None = None, root: Root | None = None) -> Iterator[tuple[str, int]]:
    """`read_image_list`, line by line; with `root`, raises InputError also for a path outside of it."""
    if not path.is_file():
        raise InputError(path, "no such image list", do="build it first, or correct its path")
    number = 0
    with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:  # names may have \r
        for number, line in enumerate(file, 1):
            name, _, label = line.rstrip().rpartition(" ")
            where = f"{path}:{number}"
            if not name or not re.fullmatch("-?[0-9]+", label):
                raise InputError(where, f'"{line.rstrip()}"', "a line is a path, a space and a label")
            if classes is not None and not 0 <= int(label) < classes:
                expected = f"there are {classes} classes (0–{classes - 1})"
                raise InputError(where, f"label {label}", expected, "Caffe's labels start from 0")
            if root is not None:
                root.path_of(name, where, "correct the line, or give a folder with all of the list's files")
            yield name, int(label)
    if not number:
        do = "mark some images as test in the source's split; if it marks none as val, the test images are used for validation"
        raise InputError(path, "the list is empty", do=do if path.name == "test.txt" else "")


def read_labels(path: Path) -> list[str]:
    """The class names in a labels.txt, by label."""
    if not path.is_file():
        raise InputError(path, "no such file", do="build it first, or correct its path")
    names = path.read_text(encoding="utf-8").splitlines()
    if not names:
        raise InputError(path, "no class names", "each line has one")
    return names


def write_names(folder: Path, names: list[str]) -> None:
    """Write labels.txt and synset_words.txt."""
    write_lines(folder / "labels.txt", names)
    write_lines(folder / "synset_words.txt", [f"n{number:08d} {name}" for number, name in enumerate(names)])


def write_classes(folder: Path, names: list[str], labels: Mapping[str, Iterable[int]]) -> None:
    """Write classes.csv (number, class, lines in train.txt and in val.txt, weight) and infogain.binaryproto.

    The weights balance the classes: the mean number of training images per class, divided by that of the class. They are the
    diagonal of the matrix for InfogainLoss (1 × 1 × classes × classes).
    """
    counts = {part: np.bincount(np.asarray(numbers, int), minlength=len(names)) for part, numbers in labels.items()}
    weights = (counts["train"].mean() / np.maximum(counts["train"], 1)).round(6)
    rows = zip(range(len(names)), names, counts["train"], counts["val"], weights, strict=True)
    write_table(folder / "classes.csv", ("number", "class", "train", "val", "weight"), rows)
    side = len(names)
    matrix = caffe_pb2.BlobProto(num=1, channels=1, height=side, width=side, data=np.diag(weights).ravel())
    (folder / "infogain.binaryproto").write_bytes(matrix.SerializeToString())


def write_sizes(folder: Path, counts: dict[tuple[int, int], int]) -> None:
    """Write sizes.csv: height, width, number of images of that size."""
    rows = [(height, width, count) for (height, width), count in sorted(counts.items())]
    write_table(folder / "sizes.csv", ("height", "width", "images"), rows)


def write_duplicates(folder: Path, rows: Iterable[tuple[str, str, int, str, str]]) -> None:
    """Write duplicates.csv: validation or test image, training image, differing bits, both classes."""
    write_table(folder / "duplicates.csv", ("val", "train", "bits", "val_class", "train_class"), rows)


def write_lines(path: Path, lines: list[str]) -> None:
    """Write a text file of these lines."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")

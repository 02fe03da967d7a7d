"""Read, check and write image lists in Caffe's form (`path label` lines) and the tables beside them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.files import write_table, written_whole
from pipeline.formats import digests
from pipeline.formats.roots import Root


def read_image_list(path: Path, classes: int | None = None) -> list[tuple[str, int]]:
    """(path, label) of every line of a list. Raises InputError for a bad line, or a label that is not below `classes`."""
    return list(iter_image_list(path, classes))


def iter_image_list(path: Path, classes: int | None = None, root: Root | None = None) -> Iterator[tuple[str, int]]:
    """`read_image_list`, line by line; with `root`, raises InputError also for a path outside of it."""
    if not path.is_file():
        raise InputError(path, "no such image list", do="build it first, or correct its path")
    digests.check(path)
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
    digests.check(path)
    names = path.read_text(encoding="utf-8").splitlines()
    if not names:
        raise InputError(path, "no class names", "each line must have one")
    return names


def write_list_folder(
    folder: Path,
    lists: Mapping[str, list[tuple[str, int]]],
    names: list[str],
    sizes: Mapping[tuple[int, int], int],
    duplicates: Iterable[tuple[str, str, int, str, str]] = (),
) -> None:
    """Write a dataset's lists and the tables beside them to `folder`, whole.

    lists       (path, label) of each image in `train`, `val` and `test`
    names       class names, by label
    sizes       {(height, width): number of images}
    duplicates  near-duplicates: validation or test image, training image, differing bits, class of each

    train.txt, val.txt, test.txt       `path label` lines; the last is empty if there are no test images
    labels.txt, synset_words.txt       class names, by label; the second as ImageNet's, `nNUMBER name`
    classes.csv, infogain.binaryproto  see `write_classes`
    duplicates.csv, sizes.csv          val, train, bits, val_class, train_class; height, width, images
    """
    with written_whole(folder) as part:
        part.mkdir()
        for name in ("train", "val", "test"):
            _write_lines(part / f"{name}.txt", (f"{path} {label}" for path, label in lists.get(name, ())))
        _write_lines(part / "labels.txt", names)
        _write_lines(part / "synset_words.txt", (f"n{number:08d} {name}" for number, name in enumerate(names)))
        write_classes(part, names, {name: [label for _, label in entries] for name, entries in lists.items()})
        write_table(part / "duplicates.csv", ("val", "train", "bits", "val_class", "train_class"), duplicates)
        write_table(part / "sizes.csv", ("height", "width", "images"), ((*size, sizes[size]) for size in sorted(sizes)))
        digests.seal(part)


def write_classes(folder: Path, names: list[str], labels: Mapping[str, Iterable[int]]) -> None:
    """Write classes.csv (number, class, lines in train.txt and in val.txt, weight) and infogain.binaryproto.

    The weights balance the classes: the mean number of training images per class, divided by that of the class. They are the
    diagonal of the matrix for InfogainLoss (1 × 1 × classes × classes).
    """
    counts = {part: np.bincount(np.asarray(numbers, int), minlength=len(names)) for part, numbers in labels.items()}
    weights = (counts["train"].mean() / np.maximum(counts["train"], 1)).round(6)
    rows = zip(range(len(names)), names, counts["train"], counts["val"], weights, strict=True)
    write_table(folder / "classes.csv", ("number", "class", "train", "val", "weight"), rows)
    matrix = caffe_pb2.BlobProto(num=1, channels=1, height=len(names), width=len(names), data=np.diag(weights).ravel())
    (folder / "infogain.binaryproto").write_bytes(matrix.SerializeToString())


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")

"""Make Caffe's image lists: `path label` lines for training and validation, and the names of the labels.

Labels count from 0 in the sorted order of the class names (numbers sort as numbers). Lists are shuffled by seed. Near-duplicates
of training images among the validation images are reported, or dropped.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.command import run, step_parser
from pipeline.dataset import duplicates
from pipeline.dataset.split import balanced, drawn, way
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.formats.images import TABLE, Resized
from pipeline.formats.lists import read_labels, write_classes, write_duplicates, write_lines, write_names, write_sizes
from pipeline.options.dataset import Duplicates, LabelOptions, Split
from pipeline.options.flags import read_flags

PARTS = ("train", "val", "test")
"""What an image can be for."""


@dataclass(frozen=True)
class Listed:
    """Images that were downloaded and resized, one an element of each.

    paths        SHARD/NAME
    labels, splits, groups
    sizes        height and width of the files
    prints       fingerprints, N × 16 bytes
    """

    paths: list[str]
    labels: list[str]
    splits: list[str]
    groups: list[str]
    sizes: list[tuple[int, int]]
    prints: np.ndarray


def read_tables(tables: list[Path], images: Resized) -> Listed:
    """Every image that was downloaded and resized, in the order of their paths.

    tables  download tables, one a shard, whose names without .csv are the shards' folders of `images`
    """
    classes, found = set(), []
    for table in tables:
        if not table.exists():
            raise InputError(table, "no such table", do="run the download first")
        resized = {row["path"]: row for row in images.rows(table.stem) if not row["reason"]}
        with table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if not row["label"]:
                    raise InputError(table, f"no label for {row['url']}", do="give every image of the list a label")
                classes.add(row["label"])
                if image := resized.get(row["path"]):
                    size = int(image["height"]), int(image["width"])
                    path = f"{table.stem}/{row['path']}"
                    found.append((path, row["label"], row["split"], row["group"], size, image["fingerprint"]))
    missing = sorted(classes - {label for _, label, *_ in found}, key=class_order)
    if missing or not found:
        raise InputError(
            _place(tables),
            f'class "{missing[0]}" has no images' if missing else "no images",
            "every class of the list needs some",
            f"the tables there and {images.root}/*/{TABLE} say what became of them",
        )
    paths, labels, splits, groups, sizes, prints = map(list, zip(*sorted(found), strict=True))
    return Listed(paths, labels, splits, groups, sizes, np.frombuffer(bytes.fromhex("".join(prints)), np.uint8).reshape(-1, 16))


def missing(tables: list[Path], images: Resized) -> Counter[str]:
    """{why: how many images of the list there are no pixels of}."""
    why: Counter[str] = Counter()
    for table in tables:
        with table.open(newline="", encoding="utf-8") as file:
            why.update(row["error"] for row in csv.DictReader(file) if row["error"])
        why.update(row["reason"] for row in images.rows(table.stem) if row["reason"])
    return why


def _place(tables: list[Path]) -> Path:
    """What to call the tables in an error: their folder, or the only one."""
    return tables[0].parent if len(tables) > 1 else tables[0]


def class_order(name: str) -> tuple:
    """Key that sorts numbers as numbers and before names."""
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)


def by_column(listed: Listed, split: Split) -> bool:
    """Whether images are for what their list or folder says."""
    given = set(listed.splits)
    return way(split) == "column" or (not way(split) and "" not in given and given != {"train"})


def assign(
    listed: Listed, options: LabelOptions, where: Path, given: list[str] | None = None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Each image's class as a number, what it is for (train, val or test), and the class names by number.

    where  what errors call the images' tables
    given  the class names; labels are their numbers then

    Where a list has images for testing and none for validation, those are taken for it, as Caffe's examples do.
    """
    split = options.split
    if way(split) == "fold" and not (split.folds and split.fold is not None and split.fold < split.folds):
        raise InputError("split.fold", str(split.fold), f"there are {split.folds or 'no'} folds, which count from 0")
    names = sorted(set(listed.labels), key=class_order)
    number = {name: index for index, name in enumerate(names)}
    if given is not None:
        wrong = [name for name in names if not (name.isdecimal() and int(name) < len(given))]
        if wrong:
            expected = f"labels are numbers of the {len(given)} names (0–{len(given) - 1})"
            raise InputError(where, f'label "{wrong[0]}"', expected, "correct names, or remove it, so that labels are names")
        number, names = {name: int(name) for name in names}, given
    numbers = np.array([number[label] for label in listed.labels])
    if by_column(listed, split):
        for path, part in zip(listed.paths, listed.splits, strict=True):
            if part not in PARTS:
                raise InputError(
                    where,
                    f"no split for {path}",
                    "split.by is column",
                    "fill the list's split column with train, val or test, or use split.by: fraction",
                )
        parts = np.array(listed.splits)
        return numbers, parts if "val" in parts else np.where(parts == "test", "val", parts), names
    # An image without a group is one by itself.
    groups = {name: index for index, name in enumerate(sorted(set(listed.groups)))}
    numbered = np.array([groups[group] if group else len(groups) + at for at, group in enumerate(listed.groups)])
    held_out = drawn(numbers, numbered, split, np.random.default_rng((options.seed, 0)))
    return numbers, np.where(held_out, "val", "train"), names


def lists_of(
    numbers: np.ndarray, parts: np.ndarray, names: list[str], options: LabelOptions, where: Path
) -> dict[str, np.ndarray]:
    """{train, val, test: positions of its images, in shuffled order}."""
    rng, least = np.random.default_rng((options.seed, 1)), options.split.min_per_class or 1
    trained = np.flatnonzero(parts == "train")
    counts = np.bincount(numbers[trained], minlength=len(names))
    for name, count in zip(names, counts, strict=True):
        if count < least:
            found = f'class "{name}" has {count or "no"} training images'
            wanted = f"every class needs {least if least > 1 else 'some'}"
            do = "check its split" + (", or lower split.min_per_class" if least > 1 else ", or remove the class")
            raise InputError(where, found, wanted, do)
    if not (parts == "val").any():
        kept = "a class's only image, and a group larger than the share, are for training"
        do = f"check their split, raise split.val, or add images: {kept}"
        raise InputError(where, "no validation images", "training is judged by some", do)
    chosen = {"train": trained[balanced(numbers[trained], options, rng)]}
    return chosen | {part: rng.permutation(np.flatnonzero(parts == part)) for part in ("val", "test")}


def near_duplicates(listed: Listed, parts: np.ndarray, images: Resized) -> dict[int, tuple[int, int]]:
    """{image held out: (the training image it nearly is, the bits in which their fingerprints differ)}, by position."""
    val, train = np.flatnonzero(parts != "train"), np.flatnonzero(parts == "train")
    found = duplicates.nearest(
        listed.prints[val],
        listed.prints[train],
        lambda query, other: (images[listed.paths[val[query]]], images[listed.paths[train[other]]]),
    )
    return {int(val[query]): (int(train[other]), bits) for query, (other, bits) in found.items()}


def write_lists(tables: list[Path], images: Path, folder: Path, options: LabelOptions) -> dict[str, int]:
    """Write the lists and what is said of them to `folder`, whole; return how many images there are, and near-duplicates.

    train.txt, val.txt, test.txt       `path label` a line; the last is empty where no images are for testing
    labels.txt                         a class name a line, by number
    synset_words.txt                   `nNUMBER name`, as ImageNet's
    classes.csv, infogain.binaryproto  images and weight of each class
    duplicates.csv                     images held out that nearly are training images: val, train, bits, val_class, train_class
    sizes.csv                          sizes of the images' files: height, width, images
    """
    resized, where, policy = Resized(images), _place(tables), options.duplicates
    given = read_labels(options.names) if options.names else None
    listed = read_tables(tables, resized)
    numbers, parts, names = assign(listed, options, where, given)
    pairs = {} if policy == Duplicates.IGNORE else near_duplicates(listed, parts, resized)
    positions = lists_of(numbers, parts, names, options, where)
    if policy == Duplicates.DROP:
        positions |= {part: positions[part][~np.isin(positions[part], list(pairs))] for part in ("val", "test")}
        if not len(positions["val"]):
            raise InputError(where, "every validation image nearly is a training image", do="use duplicates: report, and look")
    with written_whole(folder) as part:
        part.mkdir()
        for name, chosen in positions.items():
            write_lines(part / f"{name}.txt", [f"{listed.paths[at]} {numbers[at]}" for at in chosen])
        write_names(part, names)
        write_classes(part, names, {name: numbers[chosen] for name, chosen in positions.items()})
        write_sizes(part, Counter(listed.sizes))
        rows = [
            (listed.paths[at], listed.paths[other], bits, names[numbers[at]], names[numbers[other]])
            for at, (other, bits) in pairs.items()
        ]
        write_duplicates(part, rows)
    return {**{name: len(chosen) for name, chosen in positions.items()}, "duplicates": len(pairs)}


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, LabelOptions)
    parser.add_argument("shards", type=Path, help="folder of the shards' lists, SHARD.csv")
    parser.add_argument("tables", type=Path, help="folder of the download tables, SHARD.csv")
    parser.add_argument("images", type=Path, help="folder of the resized images, SHARD/")
    parser.add_argument("--output", type=Path, required=True, help="folder for the lists; replaced if it exists")
    a = parser.parse_args(argv)
    options = read_flags(a, LabelOptions)
    tables = [a.tables / shard.name for shard in sorted(a.shards.glob("*.csv"))]
    if not tables:
        raise InputError(a.shards, "no shards", do="run pipeline.sources.shards first")
    counts = write_lists(tables, a.images, a.output, options)
    said = f"{counts['train']} training and {counts['val']} validation images"
    print(f"{a.output}: {said}" + (f", {counts['test']} for testing" if counts["test"] else ""))
    if why := missing(tables, Resized(a.images)):
        reasons = ", ".join(f"{reason} {count}" for reason, count in why.most_common())
        print(f"{why.total()} more could not be had or read ({reasons}): see {a.tables}/*.csv and {a.images}/*/{TABLE}")
    if counts["duplicates"]:
        done = " and were dropped" if options.duplicates == Duplicates.DROP else ""
        print(f"{counts['duplicates']} images held out nearly are training images{done}: see {a.output}/duplicates.csv")


if __name__ == "__main__":
    run(main)

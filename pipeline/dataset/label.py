"""Write Caffe's image lists: `path label` lines for training, validation and testing, and the class names.

Labels count from 0 in the sorted order of the class names (numbers sort as numbers). Lists are shuffled by seed. Near-duplicates
of training images among the validation and test images are reported, or dropped.
"""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.command import run, step_parser
from pipeline.dataset import duplicates
from pipeline.dataset.split import draw_training_images, draw_validation_images, way
from pipeline.errors import InputError
from pipeline.formats.images import TABLE, Resized
from pipeline.formats.lists import read_labels, write_list_folder
from pipeline.formats.tables import read_rows
from pipeline.options.dataset import Duplicates, LabelOptions, Split
from pipeline.options.flags import read_flags

PARTS = ("train", "val", "test")


class Listed(NamedTuple):
    """Images that were downloaded and resized; each field has an element per image.

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


def read_tables(tables: list[Path], images: Resized, where: Path) -> tuple[Listed, Counter[str]]:
    """Every image that was downloaded and resized, in the order of their paths; {error or reason: number} of all others.

    tables  download tables, one per shard, whose names without .csv are the shards' folders of `images`
    where   the tables, for errors
    """
    classes, rows, missing = set(), [], Counter[str]()
    for table in tables:
        if not table.exists():
            raise InputError(table, "no such table", do="run the download first")
        resized = {row["path"]: row for row in images.rows(table.stem)}
        for row in read_rows(table, "url", "path", "label", "split", "group", "error"):
            if not row["label"]:
                raise InputError(table, f"no label for {row['url']}", do="give each image of the list a label")
            classes.add(row["label"])
            image = resized.get(row["path"])
            if reason := image["reason"] if image else row["error"]:
                missing[reason] += 1
            elif image:
                size = int(image["height"]), int(image["width"])
                path = f"{table.stem}/{row['path']}"
                rows.append((path, row["label"], row["split"], row["group"], size, image["fingerprint"]))
    empty = sorted(classes - {label for _, label, *_ in rows}, key=class_order)
    if empty or not rows:
        found = f'class "{empty[0]}" has no images' if empty else "no images"
        do = f"see the errors in these tables and the reasons in {images.root}/*/{TABLE}"
        raise InputError(where, found, "every class of the list needs images", do)
    paths, labels, splits, groups, sizes, hexadecimal = map(list, zip(*sorted(rows), strict=True))
    prints = np.frombuffer(bytes.fromhex("".join(hexadecimal)), np.uint8).reshape(-1, 16)
    return Listed(paths, labels, splits, groups, sizes, prints), missing


def class_order(name: str) -> tuple[int, int, str]:
    """Sort key: numbers by value, before names."""
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)


def uses_split_column(listed: Listed, split: Split) -> bool:
    """Whether the split column, not a random split, decides."""
    splits = set(listed.splits)
    return way(split) == "column" or (not way(split) and "" not in splits and splits != {"train"})


def assign(listed: Listed, options: LabelOptions, where: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(label of each image, its split: train, val or test, class names by label).

    where  the images' tables, for errors

    If a list has test images but no validation images, the former are used for validation, as in Caffe's examples.
    """
    split = options.split
    if way(split) == "fold" and not (split.folds and split.fold is not None and split.fold < split.folds):
        raise InputError("split.fold", str(split.fold), f"there are {split.folds or 'no'} folds, which count from 0")
    names = sorted(set(listed.labels), key=class_order)
    number = {name: index for index, name in enumerate(names)}
    if options.names is not None:
        given = read_labels(options.names)
        wrong = [name for name in names if not (name.isdecimal() and int(name) < len(given))]
        if wrong:
            expected = f"labels are numbers of the {len(given)} names (0–{len(given) - 1})"
            raise InputError(where, f'label "{wrong[0]}"', expected, "correct names, or remove it, so that labels are names")
        number, names = {name: int(name) for name in names}, given
        if (used := max(number.values()) + 1) < len(given):
            found, expected = f"{len(given)} names", f"the labels are 0 to {used - 1}: no image is of {given[used]}"
            raise InputError(options.names, found, expected, f"keep the first {used} names, or add images")
    numbers = np.array([number[label] for label in listed.labels])
    if uses_split_column(listed, split):
        for path, part in zip(listed.paths, listed.splits, strict=True):
            if part not in PARTS:
                do = "fill the list's split column with train, val or test, or use split.by: fraction"
                raise InputError(where, f"no split for {path}", "split.by is column", do)
        parts = np.array(listed.splits)
        return numbers, parts if "val" in parts else np.where(parts == "test", "val", parts), names
    # An image without a group is its own group.
    groups = {name: index for index, name in enumerate(sorted(set(listed.groups)))}
    numbered = np.array([groups[group] if group else len(groups) + at for at, group in enumerate(listed.groups)])
    held_out = draw_validation_images(numbers, numbered, split, np.random.default_rng((options.seed, 0)))
    return numbers, np.where(held_out, "val", "train"), names


def draw_lists(
    numbers: np.ndarray, parts: np.ndarray, names: list[str], options: LabelOptions, where: Path
) -> dict[str, np.ndarray]:
    """{train, val, test: positions of its images, shuffled}."""
    rng, least = np.random.default_rng((options.seed, 1)), options.split.min_per_class or 1
    training = np.flatnonzero(parts == "train")
    counts = np.bincount(numbers[training], minlength=len(names))
    for name, count in zip(names, counts, strict=True):
        if count < least:
            found = f'class "{name}" has {count or "no"} training images'
            expected = f"every class needs {least if least > 1 else 'some'}"
            do = "check its split" + (", or lower split.min_per_class" if least > 1 else ", or remove the class")
            raise InputError(where, found, expected, do)
    if not (parts == "val").any():
        reason = "a class's only image and a group larger than the share are used for training"
        do = f"check their split, raise split.val, or add images: {reason}"
        raise InputError(where, "no validation images", "training needs some for its tests", do)
    train = {"train": training[draw_training_images(numbers[training], options, rng)]}
    return train | {part: rng.permutation(np.flatnonzero(parts == part)) for part in ("val", "test")}


def near_duplicates(listed: Listed, parts: np.ndarray, images: Resized) -> dict[int, tuple[int, int]]:
    """{validation or test image: (training image, bits in which their fingerprints differ)}, by position."""
    val, train = np.flatnonzero(parts != "train"), np.flatnonzero(parts == "train")
    pairs = duplicates.nearest_duplicates(
        listed.prints[val],
        listed.prints[train],
        lambda query, other: (images.pixels(listed.paths[val[query]]), images.pixels(listed.paths[train[other]])),
    )
    return {int(val[query]): (int(train[other]), bits) for query, (other, bits) in pairs.items()}


def write_lists(tables: list[Path], images: Path, folder: Path, options: LabelOptions) -> tuple[dict[str, int], Counter[str]]:
    """Write the lists and the tables beside them to `folder`, whole (see `write_list_folder`).

    Returns the number of images in each list and of `duplicates`, and the numbers of missing images as `read_tables` does.
    """
    resized, policy = Resized(images), options.duplicates
    where = tables[0].parent if len(tables) > 1 else tables[0]
    listed, missing = read_tables(tables, resized, where)
    numbers, parts, names = assign(listed, options, where)
    pairs = {} if policy == Duplicates.IGNORE else near_duplicates(listed, parts, resized)
    positions = draw_lists(numbers, parts, names, options, where)
    if policy == Duplicates.DROP:
        positions |= {part: positions[part][~np.isin(positions[part], list(pairs))] for part in ("val", "test")}
        if not len(positions["val"]):
            raise InputError(where, "all validation images are near-duplicates of training images", do="use duplicates: report")
    lists = {part: [(listed.paths[at], int(numbers[at])) for at in chosen] for part, chosen in positions.items()}
    rows = [
        (listed.paths[at], listed.paths[other], bits, names[numbers[at]], names[numbers[other]])
        for at, (other, bits) in pairs.items()
    ]
    write_list_folder(folder, lists, names, Counter(listed.sizes), rows)
    return {part: len(entries) for part, entries in lists.items()} | {"duplicates": len(pairs)}, missing


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
    counts, missing = write_lists(tables, a.images, a.output, options)
    said = f"{counts['train']} training and {counts['val']} validation images"
    print(f"{a.output}: {said}" + (f", {counts['test']} for testing" if counts["test"] else ""))
    if missing:
        reasons = ", ".join(f"{reason} {count}" for reason, count in missing.most_common())
        print(f"{missing.total()} more were not downloaded or decoded ({reasons}): see {a.tables}/*.csv and {a.images}/*/{TABLE}")
    if counts["duplicates"]:
        done = " and were dropped" if options.duplicates == Duplicates.DROP else ""
        print(
            f"{counts['duplicates']} held-out images are near-duplicates of training images{done}: see {a.output}/duplicates.csv"
        )


if __name__ == "__main__":
    run(main)

"""Make Caffe's image lists: `path label` lines for training and validation, and the names of the labels.

Labels count from 0 in the sorted order of the class names (numbers sort as numbers). Lists are shuffled by seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.command import run
from pipeline.database import read_labels
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.images import TABLE, Resized


@dataclass(frozen=True)
class Split:
    """How images are divided: by their `split` column, or a share of each class, drawn by seed.

    val            share of each class for validation; None takes the column
    min_per_class  the least training images that a class may have
    max_per_class  how many training images of a class are taken, drawn by seed; 0 takes all
    repeat         list the training images of every class as often as the largest class has images, in turn (label shuffling)
    """

    val: float | None
    seed: int
    min_per_class: int = 1
    max_per_class: int = 0
    repeat: bool = False


def read_tables(tables: list[Path], images: Path) -> pd.DataFrame:
    """Path (SHARD/NAME), label and split of every image that was downloaded and resized.

    tables  download tables, one a shard, whose names without .csv are the shards' folders in `images`
    """
    parts, resized = [], Resized(images)
    for table in tables:
        if not table.exists():
            raise InputError(table, "no such table", do="run the download first")
        rows = pd.read_csv(table, dtype=str, keep_default_na=False)
        unlabelled = rows.label == ""
        if unlabelled.any():
            raise InputError(table, f"no label for {rows.url[unlabelled].iloc[0]}", do="give every image of the list a label")
        there, _ = resized.shard(table.stem)
        rows = rows.assign(there=[path in there for path in rows.path], path=f"{table.stem}/" + rows.path)
        parts.append(rows[["path", "label", "split", "there"]])
    listed = pd.concat(parts, ignore_index=True)
    there = listed.pop("there")
    missing = sorted(set(listed.label) - set(listed.label[there]), key=class_order)
    if missing:
        raise InputError(
            _place(tables),
            f'class "{missing[0]}" has no images',
            "every class of the list needs some",
            f"the tables there and {images}/*/{TABLE} say what became of them",
        )
    return listed[there].reset_index(drop=True)


def _place(tables: list[Path]) -> Path:
    """What to call the tables in an error: their folder, or the only one."""
    return tables[0].parent if len(tables) > 1 else tables[0]


def class_order(name: str) -> tuple:
    """Key that sorts numbers as numbers and before names."""
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)


def assign(
    listed: pd.DataFrame, split: Split, where: Path, given: list[str] | None = None
) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """{"train": (path, number), "val": (path, number)} in shuffled order, and the class names by number.

    where  what errors call the images' tables
    given  the class names; labels are their numbers then
    """
    if split.val is not None and not 0 < split.val < 1:
        raise InputError("split.val", f"{split.val} is not between 0 and 1")
    names = sorted(listed.label.unique(), key=class_order)
    number = {name: index for index, name in enumerate(names)}
    if given is not None:
        wrong = [name for name in names if not (name.isdecimal() and int(name) < len(given))]
        if wrong:
            raise InputError(where, f'label "{wrong[0]}"', f"there are {len(given)} names (0–{len(given) - 1})", "correct names")
        number, names = {name: int(name) for name in names}, given
    listed = listed.assign(number=listed.label.map(number)).sort_values("path", ignore_index=True)
    rng = np.random.default_rng(split.seed)
    if split.val is None:
        unknown = ~listed.split.isin(["train", "val"])
        if unknown.any():
            first = listed[unknown].iloc[0]
            raise InputError(
                where,
                f"no split for {first.path}",
                "split.by is column",
                "fill the list's split column with train or val, or use split.by: fraction",
            )
    else:
        listed["split"] = "train"
        for _, group in listed.groupby("number"):
            count = min(round(split.val * len(group)), len(group) - 1)
            listed.loc[rng.permutation(group.index)[:count], "split"] = "val"
    lists = {part: _balanced(listed[listed.split == part], split, rng, part == "train") for part in ("train", "val")}
    trained = listed[listed.split == "train"].number.value_counts()
    for index, name in enumerate(names):
        if (count := int(trained.get(index, 0))) < split.min_per_class:
            found = f'class "{name}" has {count or "no"} training images'
            wanted = f"every class needs {split.min_per_class if split.min_per_class > 1 else 'some'}"
            raise InputError(where, found, wanted, "check its split, or lower split.min_per_class")
    if lists["val"].empty:
        raise InputError(
            where, "no validation images", "training is judged by some", "check its split column, or raise split.val"
        )
    return lists, names


def _balanced(chosen: pd.DataFrame, split: Split, rng: np.random.Generator, training: bool) -> pd.DataFrame:
    """(path, number) of one part in shuffled order; of the training part as many of each class as `split` says."""
    chosen = chosen.iloc[rng.permutation(len(chosen))][["path", "number"]]
    if training and split.max_per_class:
        chosen = chosen[chosen.groupby("number").cumcount() < split.max_per_class]
    if training and split.repeat and len(chosen):
        most = int(chosen.number.value_counts().max())
        groups = [group.iloc[np.arange(most) % len(group)] for _, group in chosen.groupby("number")]
        chosen = pd.concat(groups, ignore_index=True)
        chosen = chosen.iloc[rng.permutation(len(chosen))]
    return chosen


def write_lists(tables: list[Path], images: Path, folder: Path, split: Split, given: list[str] | None = None) -> dict[str, int]:
    """Write the lists, labels.txt, synset_words.txt and classes.csv to `folder`, whole; return the number of images of each list.

    labels.txt has a class name a line, by number; synset_words.txt has `nNUMBER name`, as ImageNet's has.
    """
    lists, names = assign(read_tables(tables, images), split, _place(tables), given)
    with written_whole(folder) as part:
        part.mkdir()
        for name, rows in lists.items():
            write_lines(part / f"{name}.txt", [f"{path} {number}" for path, number in rows.itertuples(index=False)])
        write_names(part, names)
        write_classes(part, names, {name: rows.number for name, rows in lists.items()})
    return {name: len(rows) for name, rows in lists.items()}


def write_names(folder: Path, names: list[str]) -> None:
    """Write labels.txt and synset_words.txt."""
    write_lines(folder / "labels.txt", names)
    write_lines(folder / "synset_words.txt", [f"n{number:08d} {name}" for number, name in enumerate(names)])


def write_classes(folder: Path, names: list[str], labels: dict[str, Iterable[int]]) -> None:
    """Write classes.csv: number, class, lines in train.txt and in val.txt, and the weight that makes classes count alike.

    The weight is the mean number of training images of a class, divided by the class's own.
    """
    counts = {part: np.bincount(np.asarray(numbers, int), minlength=len(names)) for part, numbers in labels.items()}
    weights = counts["train"].mean() / np.maximum(counts["train"], 1)
    table = pd.DataFrame({"number": range(len(names)), "class": names, **counts, "weight": weights.round(6)})
    table.to_csv(folder / "classes.csv", index=False)


def write_lines(path: Path, lines: list[str]) -> None:
    """Write a text file of these lines."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="folder of the shards' lists, SHARD.csv")
    parser.add_argument("tables", type=Path, help="folder of the download tables, SHARD.csv")
    parser.add_argument("images", type=Path, help="folder of the resized images, SHARD/")
    parser.add_argument("--output", type=Path, required=True, help="folder for the lists; replaced if it exists")
    parser.add_argument("--val", type=float, help="share of each class for validation; without it, the split column decides")
    parser.add_argument("--min-per-class", type=int, default=1, help="least training images of a class")
    parser.add_argument("--max-per-class", type=int, default=0, help="most training images of a class; 0 takes all")
    parser.add_argument("--repeat", action="store_true", help="list every class as often as the largest")
    parser.add_argument("--names", type=Path, help="class names, one a line, where the labels are their numbers")
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args(argv)
    tables = [a.tables / shard.name for shard in sorted(a.shards.glob("*.csv"))]
    if not tables:
        raise InputError(a.shards, "no shards", do="run pipeline.shards first")
    given = read_labels(a.names) if a.names else None
    counts = write_lists(tables, a.images, a.output, Split(a.val, a.seed, a.min_per_class, a.max_per_class, a.repeat), given)
    print(f"{a.output}: {counts['train']} training and {counts['val']} validation images")


if __name__ == "__main__":
    run(main)

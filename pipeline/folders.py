"""Folders of images as people have them: CLASS/image, or train/CLASS/image, val/CLASS/image and test/CLASS/image."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InputError
from pipeline.lines import numbered, utf8

SPLITS = {
    **{"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test", "": ""},
}
"""What lists and folders call the splits."""
IMAGES = {
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
}


def images(folder: Path, val_labels: Path | None) -> Iterator[tuple[str, str, str]]:
    """The URL, label and split (empty where it has none) of each image."""
    any_at_all = labelled = False
    for split, part in _parts(folder):
        found = False
        for row in _classes(part, split):
            found = any_at_all = True
            yield row
        if not found and split in ("val", "test") and not labelled:  # ILSVRC's test images have no labels
            rows = _labelled(part, val_labels, split)
            labelled = bool(rows)
            any_at_all |= labelled
            yield from rows
    if not any_at_all:
        kinds = ", ".join(sorted(suffix[1:] for suffix in IMAGES))
        raise InputError(folder, "no images", f"each class is a folder with images ({kinds})", "correct source.folder")
    if val_labels is not None and not labelled:
        found = f"{folder} has no images for validation without folders for classes"
        raise InputError(val_labels, found, "it has the labels of such", "remove source.val_labels")


def listing(folder: Path) -> str:
    """A digest of the paths of all images in the folders of a folder: another where one was added, removed or renamed."""
    digest = hashlib.sha256()
    for _, path in _within(folder):
        digest.update(os.fsencode(path) + b"\0")
    return digest.hexdigest()[:16]


def splits(folder: Path) -> set[str]:
    """The splits that the folders of a folder are of: train, val, test; "" where they are classes."""
    return {split for split, _ in _parts(folder)}


def left_out(folder: Path) -> str:
    """What of a folder is no image of any class, in words; empty where there is nothing."""
    empty, kinds, beside = [], Counter(), 0
    for split, part in _parts(folder):
        classes = _folders(part)
        beside += len(_files(part)) if classes or not split else 0
        for one in classes:
            suffixes = Counter(map(_suffix, _below(one)))
            if split in ("", "train") and not suffixes.keys() & IMAGES:
                empty.append(str(one.relative_to(folder)))
            kinds.update({suffix or "without suffix": n for suffix, n in suffixes.items() if suffix not in IMAGES})
    others = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common(5))
    said = [f"classes without images ({', '.join(empty[:5])}{' …' if empty[5:] else ''})"] if empty else []
    said += [f"files of other kinds ({others})"] if kinds else []
    said += [f"images in no folder of a class ({beside})"] if beside else []
    return "; ".join(said)


def _parts(folder: Path) -> list[tuple[str, Path]]:
    """(split, the folder of its classes): those of train/, val/ and test/, or one for all."""
    named = [(SPLITS[path.name.lower()], path) for path in _folders(folder) if path.name.lower() in SPLITS]
    named.sort(key=lambda part: ("train", "val", "test").index(part[0]))
    return named if "train" in dict(named) else [("", folder)]


def _classes(folder: Path, split: str) -> Iterator[tuple[str, str, str]]:
    for one, path in _within(folder):
        yield Path(path).resolve().as_uri(), utf8(one.name, folder), split


def _within(folder: Path) -> Iterator[tuple[Path, str]]:
    """Each folder in a folder with each image in it or below."""
    for one in _folders(folder):
        for path in filter(_is_image, _below(one)):
            yield one, path


def _labelled(folder: Path, val_labels: Path | None, split: str) -> list[tuple[str, str, str]]:
    """Images of a split without folders for classes, by a list of their labels."""
    files = _files(folder)
    if not files:
        return []
    if val_labels is None:
        raise InputError(
            folder, "images without classes", "each class is a folder", "give source.val_labels, a list of their classes"
        )
    lines = list(numbered(val_labels))
    named = [re.fullmatch(r"(.*\S)\s+(\S+)", line) for _, line in lines]
    if not any(named):
        if len(lines) != len(files):
            raise InputError(val_labels, f"{len(lines)} lines", f"{folder} has {len(files)} images")
        return [(path.resolve().as_uri(), label, split) for path, (_, label) in zip(files, lines, strict=True)]
    by_name = {path.name: path for path in files}
    rows = []
    for (number, line), pair in zip(lines, named, strict=True):
        name, label = pair.groups() if pair else (line, "")
        if Path(name).name not in by_name:
            raise InputError(f"{val_labels}:{number}", f'"{name}"', f"no such image in {folder}")
        if not label:
            raise InputError(f"{val_labels}:{number}", f'"{line}"', "`image label` lines are wanted", "give each image a label")
        rows.append((by_name[Path(name).name].resolve().as_uri(), label, split))
    return rows


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; none that are hidden."""
    if not folder.is_dir():
        raise InputError(folder, "no such folder", "its folders are the classes", "correct source.folder")
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _below(folder: str | Path, above: tuple[str, ...] = ()) -> Iterator[str]:
    """The files in a folder and in those in it, sorted; none that are hidden, and no folder that a link leads back up to."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _below(entry.path, (*above, real))
            else:
                yield entry.path


def _files(folder: Path) -> list[Path]:
    """The image files right in a folder, sorted."""
    return sorted(path for path in folder.iterdir() if _is_image(path) and not path.name.startswith("."))


def _is_image(path: str | Path) -> bool:
    return _suffix(path) in IMAGES


def _suffix(path: str | Path) -> str:
    return os.path.splitext(path)[1].lower()  # noqa: PTH122, a million paths are looked at whenever a workflow starts

"""Folders of images as people have them: CLASS/image, or train/CLASS/image, val/CLASS/image and test/CLASS/image."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import file_url
from pipeline.formats.text import FORM, class_name, numbered

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
    empty, kinds, beside, loops = [], Counter(), 0, []
    for split, part in _parts(folder):
        classes = _folders(part)
        beside += len(_files(part)) if classes or not split else 0
        for one in classes:
            suffixes = Counter(map(_suffix, _below(one, part, loops)))
            if split in ("", "train") and not suffixes.keys() & IMAGES:
                empty.append(str(one.relative_to(folder)))
            kinds.update({suffix or "without suffix": n for suffix, n in suffixes.items() if suffix not in IMAGES})
    others = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common(5))
    said = [f"classes without images ({', '.join(empty[:5])}{' …' if empty[5:] else ''})"] if empty else []
    said += [f"files of other kinds ({others})"] if kinds else []
    said += [f"images in no folder of a class ({beside})"] if beside else []
    upwards = [os.path.relpath(path, folder) for path in loops[:5]]
    said += [f"links to a folder that they are in ({', '.join(upwards)}{' …' if loops[5:] else ''})"] if loops else []
    return "; ".join(said)


def _parts(folder: Path) -> list[tuple[str, Path]]:
    """(split, the folder of its classes): those of train/, val/ and test/, or one for all."""
    named = [(SPLITS[path.name.lower()], path) for path in _folders(folder) if path.name.lower() in SPLITS]
    named.sort(key=lambda part: ("train", "val", "test").index(part[0]))
    return named if "train" in dict(named) else [("", folder)]


def _classes(folder: Path, split: str) -> Iterator[tuple[str, str, str]]:
    for one, path in _within(folder):
        yield _url(path), class_name(one.name, folder), split


def _within(folder: Path) -> Iterator[tuple[Path, str]]:
    """Each folder in a folder with each image in it or below."""
    for one in _folders(folder):
        for path in filter(_is_image, _below(one, folder)):
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
        numbers = zip(files, lines, strict=True)
        return [(_url(path), class_name(label, f"{val_labels}:{number}"), split) for path, (number, label) in numbers]
    by_name = {unicodedata.normalize(FORM, path.name): path for path in files} | {path.name: path for path in files}
    rows = []
    for (number, line), pair in zip(lines, named, strict=True):
        where = f"{val_labels}:{number}"
        name, label = pair.groups() if pair else (line, "")
        path = by_name.get(Path(name).name) or by_name.get(unicodedata.normalize(FORM, Path(name).name))
        if path is None:
            raise InputError(where, f'"{name}"', f"no such image in {folder}")
        if not label:
            raise InputError(where, f'"{line}"', "`image label` lines are wanted", "give each image a label")
        rows.append((_url(path), class_name(label, where), split))
    return rows


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; none that are hidden."""
    if not folder.is_dir():
        raise InputError(folder, "no such folder", "its folders are the classes", "correct source.folder")
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _below(folder: Path, source: Path, loops: list[str] | None = None) -> Iterator[str]:
    """The files in a folder of `source` and in those in it, sorted; none that are hidden.

    Links are followed, also those that lead out of `source`: who can put one there can put the images there. Each folder is
    entered once; a link to a folder that it is in, or to one above `source`, is skipped, and appended to `loops`.
    """
    top = os.path.realpath(source)
    seen = {top, *map(str, Path(top).parents)}
    real = os.path.realpath(folder)
    if real in seen:
        if loops is not None:
            loops.append(str(folder))
        return
    above, levels = [*seen, real], [_entries(folder)]
    seen.add(real)
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
            above.pop()
        elif not _is_folder(entry):
            yield entry.path
        elif (real := os.path.realpath(entry.path)) not in seen:
            seen.add(real)
            above.append(real)
            levels.append(_entries(entry.path))
        elif real in above and loops is not None:
            loops.append(entry.path)


def _entries(folder: str | Path) -> Iterator[os.DirEntry]:
    """What is in a folder, sorted by name; nothing that is hidden."""
    with os.scandir(folder) as entries:
        return iter(sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name))


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder, or a link to one; False for a link that leads to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _url(path: str | Path) -> str:
    """The URL of a file, where its links lead."""
    return file_url(os.path.realpath(path))


def _files(folder: Path) -> list[Path]:
    """The image files right in a folder, sorted."""
    return sorted(path for path in folder.iterdir() if _is_image(path) and not path.name.startswith("."))


def _is_image(path: str | Path) -> bool:
    return _suffix(path) in IMAGES


def _suffix(path: str | Path) -> str:
    return os.path.splitext(path)[1].lower()  # noqa: PTH122, a million paths are looked at whenever a workflow starts

"""Read folders of images: CLASS/image, or train/CLASS/image, val/CLASS/image and test/CLASS/image."""

import csv
import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import file_url, path_of_url
from pipeline.formats.text import FORM, class_name, numbered_lines

SPLITS = {
    **{"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test", "": ""},
}
"""Names of the splits in lists and folders."""
IMAGES = frozenset((".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))


def images(folder: Path, val_labels: Path | None) -> Iterator[tuple[str, str, str]]:
    """The URL, label and split (empty if unknown) of each image."""
    is_empty, labelled = True, False
    for split, part in _parts(folder):
        has_classes = False
        for folder_of_class, path in _images_of_classes(part):
            has_classes, is_empty = True, False
            yield _url(path), class_name(folder_of_class.name, part), split
        if not has_classes and split in ("val", "test") and not labelled:  # ILSVRC's test images have no labels
            rows = _by_list(part, val_labels, split)
            labelled = bool(rows)
            is_empty &= not labelled
            yield from rows
    if is_empty:
        kinds = ", ".join(sorted(suffix[1:] for suffix in IMAGES))
        raise InputError(folder, "no images", f"each class is a folder with images ({kinds})", "correct source.folder")
    if val_labels is not None and not labelled:
        found = f"in {folder} no validation images lie outside of class folders"
        raise InputError(val_labels, found, "it has the labels of such images", "remove source.val_labels")


def listing(folder: Path) -> str:
    """Digest of the paths of all images in a folder's class folders: it changes if one is added, removed or renamed."""
    digest = hashlib.sha256()
    for _, path in _images_of_classes(folder):
        digest.update(os.fsencode(path) + b"\0")
    return digest.hexdigest()[:16]


def state(shard: Path) -> str:
    """Digest of size and time of each local file that a shard lists: it changes if an image is replaced under its name.

    shard  a table with the column `url`; "" if it is missing, or lists no local files
    """
    if not shard.is_file():
        return ""
    digest, is_local = hashlib.sha256(), False
    with shard.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            url = row.get("url") or ""
            if url.startswith("file:"):
                is_local = True
                try:
                    found = os.stat(path_of_url(url))  # noqa: PTH116, called for a million paths
                    digest.update(b"%d %d\0" % (found.st_size, found.st_mtime_ns))
                except (OSError, ValueError):  # the download says what is wrong
                    digest.update(b"missing\0")
    return digest.hexdigest()[:16] if is_local else ""


def splits(folder: Path) -> set[str]:
    """The splits that a folder's folders are: train, val, test; "" if they are classes."""
    return {split for split, _ in _parts(folder)}


def describe_ignored(folder: Path) -> str:
    """The files and folders that are ignored, and the classes without images, as a text; empty if there are none."""
    empty, loops, kinds, outside = list[str](), list[str](), Counter[str](), 0
    for split, part in _parts(folder):
        classes = _folders(part)
        outside += len(_files(part)) if classes or not split else 0
        for folder_of_class in classes:
            suffixes = Counter(map(_suffix, _walk(folder_of_class, part, loops)))
            if split in ("", "train") and not suffixes.keys() & IMAGES:
                empty.append(str(folder_of_class.relative_to(folder)))
            kinds.update({suffix or "without suffix": n for suffix, n in suffixes.items() if suffix not in IMAGES})
    ignored = {
        "classes without images": empty,
        "files of other kinds": [f"{kind} {count}" for kind, count in kinds.most_common(5)],
        "images outside of class folders": [str(outside)] if outside else [],
        "links to a folder above": [os.path.relpath(path, folder) for path in loops],
    }
    return "; ".join(f"{what} ({', '.join(names[:5])}{' …' if names[5:] else ''})" for what, names in ignored.items() if names)


def _parts(folder: Path) -> list[tuple[str, Path]]:
    """(split, folder of its classes): train/, val/ and test/, or the folder itself."""
    named = [(SPLITS[path.name.lower()], path) for path in _folders(folder) if path.name.lower() in SPLITS]
    named.sort(key=lambda part: ("train", "val", "test").index(part[0]))
    return named if "train" in dict(named) else [("", folder)]


def _images_of_classes(folder: Path) -> Iterator[tuple[Path, str]]:
    """(class folder, image in it or below)."""
    for folder_of_class in _folders(folder):
        for path in filter(_is_image, _walk(folder_of_class, folder, [])):
            yield folder_of_class, path


def _by_list(folder: Path, val_labels: Path | None, split: str) -> list[tuple[str, str, str]]:
    """URL, label and split of the images of a split without class folders, by a list of their labels."""
    files = _files(folder)
    if not files:
        return []
    if val_labels is None:
        do = "set source.val_labels, a list of their classes"
        raise InputError(folder, "images without classes", "each class is a folder", do)
    lines = list(numbered_lines(val_labels))
    pairs = [re.fullmatch(r"(.*\S)\s+(\S+)", line) for _, line in lines]
    if not any(pairs):
        if len(lines) != len(files):
            raise InputError(val_labels, f"{len(lines)} lines", f"{folder} has {len(files)} images")
        numbers = zip(files, lines, strict=True)
        return [(_url(path), class_name(label, f"{val_labels}:{number}"), split) for path, (number, label) in numbers]
    by_name = {unicodedata.normalize(FORM, path.name): path for path in files} | {path.name: path for path in files}
    rows = []
    for (number, line), pair in zip(lines, pairs, strict=True):
        where = f"{val_labels}:{number}"
        name, label = pair.groups() if pair else (line, "")
        path = by_name.get(Path(name).name) or by_name.get(unicodedata.normalize(FORM, Path(name).name))
        if path is None:
            raise InputError(where, f'"{name}"', f"no such image in {folder}")
        if not label:
            raise InputError(where, f'"{line}"', "a line is an image and its label", "give each image a label")
        rows.append((_url(path), class_name(label, where), split))
    return rows


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, except hidden ones."""
    if not folder.is_dir():
        raise InputError(folder, "no such folder", "each class is a folder in it", "correct source.folder")
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _walk(folder: Path, source: Path, loops: list[str]) -> Iterator[str]:
    """The files in a folder of `source` and below, sorted, except hidden ones.

    Links are followed, also out of `source`: who can create the link can copy the images. Each folder is entered once; a link to
    a folder that contains it, or to one above `source`, is skipped, and appended to `loops`.
    """
    top = os.path.realpath(source)
    seen = {top, *map(str, Path(top).parents)}
    real = os.path.realpath(folder)
    if real in seen:
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
        elif real in above:
            loops.append(entry.path)


def _entries(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder, sorted by name, except hidden ones."""
    with os.scandir(folder) as entries:
        return iter(sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one; False for a link to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _url(path: str | Path) -> str:
    """The URL of a file, with links resolved."""
    return file_url(os.path.realpath(path))


def _files(folder: Path) -> list[Path]:
    """The image files directly in a folder, sorted."""
    return sorted(path for path in folder.iterdir() if _is_image(path) and not path.name.startswith("."))


def _is_image(path: str | Path) -> bool:
    return _suffix(path) in IMAGES


def _suffix(path: str | Path) -> str:
    return os.path.splitext(path)[1].lower()  # noqa: PTH122, called for a million paths whenever a workflow starts

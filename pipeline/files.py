"""Files and folders written whole or not at all, and tables."""

from __future__ import annotations

import csv
import errno
import hashlib
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from caffe import written_whole

__all__ = ["file_url", "link_or_copy", "plain_name", "stem_of", "sync", "sync_entry", "write_table", "written_whole"]

LONGEST_STEM = 100
"""Bytes of a blob's name in the names of files, which may have 255 with all that is put around it."""


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that is replaced, never changed, or a folder of such files, a second name; copy where there are no links."""
    if source.is_dir():
        target.mkdir()
        for path in source.iterdir():
            link_or_copy(path, target / path.name)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def sync(path: Path) -> None:
    """Bring a file, or a folder with all that is in it, to the disk, so that it outlives a power failure."""
    if path.is_dir():
        for entry in path.iterdir():
            sync(entry)
    sync_entry(path)


def sync_entry(path: Path) -> None:
    """Bring a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some file systems (CIFS, some of FUSE's) cannot do it with a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def stem_of(blob: str) -> str:
    """What a blob is called in the names of files: GoogLeNet's have a `/`, which becomes `_`.

    A name that has other characters than letters of ASCII, digits, `_`, `-` and `.`, or that is long, is cut down to those, with
    a digest behind it that tells it from others.
    """
    stem = blob.replace("/", "_")
    if len(stem) <= LONGEST_STEM and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", stem):
        return stem
    ascii_only = unicodedata.normalize("NFKD", blob).encode("ascii", "ignore").decode()
    digest = hashlib.sha256(blob.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{plain_name(ascii_only, LONGEST_STEM).lstrip('-')}_{digest}"


def plain_name(words: str, size: int) -> str:
    """Words as a part of a file's name: letters, digits, `-` and `_`, in at most `size` bytes of UTF-8."""
    words = unicodedata.normalize("NFC", words)
    plain = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in words)
    return plain.encode()[:size].decode(errors="ignore")


def file_url(path: str | os.PathLike) -> str:
    """The URL of a file: file:PATH, relative, if it is below the working directory; else file:///PATH.

    So the lists of a workflow that has its images beside it are the same wherever the folder lies.

    path  absolute, without links
    """
    here = os.path.join(os.getcwd(), "")  # noqa: PTH109, PTH118, a million paths are compared with it
    path = os.fspath(path)
    return f"file:{quote(os.fsencode(path[len(here) :]))}" if path.startswith(here) else Path(path).as_uri()


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Iterable]) -> None:
    """Write a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)

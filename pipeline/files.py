"""Write files and folders whole or not at all; names of files; CSV tables."""

import csv
import errno
import hashlib
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes, urlsplit

from caffe import disk_errors, written_whole

__all__ = [
    "disk_errors",
    "file_url",
    "link_or_copy",
    "path_of_url",
    "plain_name",
    "retry_mark",
    "stem_of",
    "sync",
    "sync_entry",
    "write_table",
    "written_whole",
]

LONGEST_STEM = 100
"""Most bytes of a blob's name within a file name, which may have 255."""


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file or a folder's files, which are never edited in place; copy if the file system has no links."""
    if source.is_dir():
        target.mkdir()
        for path in source.iterdir():
            link_or_copy(path, target / path.name)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def retry_mark(dataset: Path, shard: str) -> Path:
    """A file with a line for each retry of a shard's failed downloads: where it changes, the rule downloads the shard again.

    dataset  the dataset's folder of results, as the working directory sees it
    """
    return Path(".snakemake/roastery/retries", *dataset.parts[dataset.is_absolute() :], shard)


def sync(path: Path) -> None:
    """Flush a file, or a folder with its content, to disk (fsync), so that it survives a power failure."""
    if path.is_dir():
        for entry in path.iterdir():
            sync(entry)
    sync_entry(path)


def sync_entry(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some file systems (CIFS, some of FUSE's) cannot sync a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def stem_of(blob: str) -> str:
    """A blob's name as part of a file name: a `/`, as in GoogLeNet's, becomes `_`.

    A long name, or one with characters besides ASCII letters, digits, `_`, `-` and `.`, is reduced to these, with a digest as
    suffix.
    """
    stem = blob.replace("/", "_")
    if len(stem) <= LONGEST_STEM and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", stem):
        return stem
    ascii_only = unicodedata.normalize("NFKD", blob).encode("ascii", "ignore").decode()
    digest = hashlib.sha256(blob.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{plain_name(ascii_only, LONGEST_STEM).lstrip('-')}_{digest}"


def plain_name(words: str, size: int) -> str:
    """Words as part of a file name: letters, digits, `-` and `_`, in at most `size` bytes of UTF-8."""
    words = unicodedata.normalize("NFC", words)
    plain = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in words)
    return plain.encode()[:size].decode(errors="ignore")


def file_url(path: str | os.PathLike[str]) -> str:
    """The URL of a file: file:PATH, relative, if it is below the working directory; else file:///PATH.

    So the lists of a workflow with its own images do not depend on where its folder is.

    path  absolute, without symbolic links
    """
    here = os.path.join(os.getcwd(), "")  # noqa: PTH109, PTH118, a million paths are compared with it
    path = os.fspath(path)
    return f"file:{quote(os.fsencode(path[len(here) :]))}" if path.startswith(here) else Path(path).as_uri()


def path_of_url(url: str) -> str:
    """The path of a `file:` URL, the reverse of `file_url`. Raises ValueError if the URL is malformed."""
    return os.fsdecode(unquote_to_bytes(urlsplit(url).path))


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)

"""Download the images of one shard, and write a table of all URLs with their status or error.

The table's columns: path (relative to the folder), url, label, split, group, status (HTTP status, or 200 for a file), error
(empty if the image was downloaded), bytes, sha256. Errors: not_found, http_STATUS, timeout, connection, truncated,
unknown_host, bad_url, too_large, too_many_redirects, not_an_image, too_many_pixels, other_sha256, opted_out, refused.

Downloads are kept beside the folder, in .NAME.resume, until all are complete: after a run that was killed, or that downloaded too
few images, the next one with the same list resumes. SHARD.seconds.csv has the seconds of each image.
"""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
import os
import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.files import disk_errors, plain_name, write_table, written_whole
from pipeline.formats.images import Size, content_of, decode, jpeg_size
from pipeline.options.dataset import DownloadOptions, FetchOptions
from pipeline.options.flags import read_flags
from pipeline.progress import progress
from pipeline.sources import fetch
from pipeline.sources.fetch import FetchError

EXTENSIONS = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif", "WEBP": ".webp"}
LISTED = ("url", "label", "split", "group", "sha256")
"""Columns of a shard; only the first is required."""
Row = dict[str, Any]
"""A row of the table: numbers and texts; with `number`, its position in the list, and `seconds`."""
COLUMNS = ["path", "url", "label", "split", "group", "status", "error", "bytes", "sha256"]

ALLOWED_BY = {
    "refused": "allow files by source.allow_file, and hosts of private networks by source.allow_private",
    "opted_out": "see source.ignore_opt_out",
    "too_large": "raise source.max_bytes",
    "too_many_pixels": "raise source.max_pixels",
    "too_many_redirects": "raise source.max_redirects",
    "timeout": "raise source.timeout and source.total_timeout",
}
"""What to do about errors that are due to an option."""
SMALL = 1 << 16
"""Bytes up to which a file is checked at once: faster than in a thread."""


def read_shard(path: Path) -> list[dict[str, str]]:
    """The rows of a shard, as pipeline.sources.shards writes them."""
    if not path.is_file():
        raise InputError(path, "no such shard", do="run pipeline.sources.shards first")
    do = "make shards with pipeline.sources.shards"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if "url" not in (reader.fieldnames or []):
                raise InputError(f"{path}:1", f"columns {', '.join(reader.fieldnames or ['none'])}", "none is called url", do)
            return [{name: row.get(name) or "" for name in LISTED} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(path, f"not a table ({error})", do=do) from None


def download(source: Path, folder: Path, table: Path, options: FetchOptions) -> list[Row]:
    """Download the URLs of the list `source` into `folder` and write `table` and the seconds of each; all whole or not at all.

    Returns the table's rows. Raises InputError if fewer than `min_yield` of the images could be downloaded.
    """
    listed = read_shard(source)
    journal = Journal(folder.with_name(f".{folder.name}.resume"), hashlib.sha256(source.read_bytes()).hexdigest())
    with disk_errors(folder), journal:
        try:
            asyncio.run(_download_all(listed, journal, options, folder.name))
        except ExceptionGroup as group:  # of tasks that all met a full disk, say
            raise group.exceptions[0] from None
    result = [row | journal.rows[number] for number, row in enumerate(listed)]
    failed = [row for row in result if row["error"]]
    downloaded = len(result) - len(failed)
    if downloaded < options.min_yield * len(result):
        journal.forget_failures()
        errors = Counter(row["error"] for row in failed).most_common()
        reasons = ", ".join(f"{error} {count}" for error, count in errors)
        do = "; ".join(["correct the list, or lower source.min_yield", *filter(None, [ALLOWED_BY.get(errors[0][0])])])
        found = f"{downloaded} of {len(result)} images downloaded ({reasons}; the first: {failed[0]['url']})"
        raise InputError(source, found, f"at least {options.min_yield:.0%} are required", do)
    seconds = table.with_suffix(".seconds.csv")
    with written_whole(folder) as part, written_whole(table) as part_table, written_whole(seconds) as part_seconds:
        write_table(part_table, COLUMNS, ([row[name] for name in COLUMNS] for row in result))
        write_table(part_seconds, ("path", "seconds"), ((row["path"], row["seconds"]) for row in result))
        journal.images.rename(part)
    journal.remove()
    return result


class Journal:
    """The resumable state of a download, on disk: images, and a line for each URL that is done.

    digest  of the list; the state of another list is removed
    """

    def __init__(self, folder: Path, digest: str):
        self.folder, self.images, self._path, self._digest = folder, folder / "images", folder / "journal.jsonl", digest
        self.rows: dict[int, Row] = {}

    def __enter__(self) -> Journal:
        try:
            lines = self._path.read_text(encoding="utf-8").split("\n")
            if json.loads(lines[0]) != {"list": self._digest}:
                raise ValueError("another list")
            rows = [json.loads(line) for line in lines[1:-1]]  # what follows the last line ending was truncated by a kill
        except (OSError, ValueError):
            self.remove()
            rows = []
        self.rows = {row["number"]: row for row in rows if row["error"] or (self.images / row["path"]).is_file()}
        self.images.mkdir(parents=True, exist_ok=True)
        self._write()
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, row: Row) -> None:
        """Record that a URL is done."""
        self.rows[row["number"]] = row
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def forget_failures(self) -> None:
        """Let the next run retry failed URLs."""
        self.rows = {number: row for number, row in self.rows.items() if not row["error"]}
        self._write()

    def _write(self) -> None:
        with written_whole(self._path) as part:
            part.write_text("".join(f"{json.dumps(line)}\n" for line in ({"list": self._digest}, *self.rows.values())))

    def remove(self) -> None:
        """Delete the state."""
        shutil.rmtree(self.folder, ignore_errors=True)


async def _download_all(listed: list[dict[str, str]], journal: Journal, options: FetchOptions, name: str) -> None:
    pending = [(number, row) for number, row in enumerate(listed) if number not in journal.rows]
    queue = iter(pending)
    with (
        ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as checkers,
        progress(total=len(pending), desc=f"download {name}") as bar,
    ):
        async with fetch.Fetcher(options) as fetcher, asyncio.TaskGroup() as tasks:

            async def download_queue() -> None:
                for number, row in queue:
                    journal.add(await _download_one(fetcher, checkers, journal.images, number, row))
                    bar.update()

            for _ in range(min(4 * options.concurrency, len(pending))):
                tasks.create_task(download_queue())


async def _download_one(
    fetcher: fetch.Fetcher, checkers: ThreadPoolExecutor, images: Path, number: int, listed: dict[str, str]
) -> Row:
    """Download and check an image of the list; return its row without what the list says."""
    start = time.monotonic()
    row: Row = {"number": number, "path": "", "status": 0, "error": "", "bytes": 0, "sha256": ""}
    path = images / f".{number}.part"
    try:
        fetched = await fetcher.fetch(listed["url"], path)
        row |= fetched._asdict()
        if listed["sha256"].lower() not in ("", fetched.sha256):
            raise FetchError("other_sha256", fetched.status)
        check = partial(check_image, path, fetcher.options.max_pixels)
        is_small = fetched.bytes <= SMALL
        extension = check() if is_small else await asyncio.get_running_loop().run_in_executor(checkers, check)
        stem = plain_name(Path(unquote(urlsplit(listed["url"]).path)).stem, 60)
        row["path"] = f"{number:06d}_{stem}{extension}"
        path.rename(images / row["path"])
    except FetchError as failure:
        row["error"], row["status"] = failure.error, failure.status or row["status"]
    finally:
        path.unlink(missing_ok=True)
    row["seconds"] = round(time.monotonic() - start, 3)
    return row


def check_image(path: Path, max_pixels: int) -> str:
    """The file extension of an image's format. Raises FetchError if it is not an image or has too many pixels."""
    content = content_of(path)
    kind, (height, width) = _kind_and_size(content)
    if width * height > max_pixels:
        raise FetchError("too_many_pixels")
    if decode(content, color=True, least=Size(1, 1)) is None:
        raise FetchError("not_an_image")
    return EXTENSIONS.get(kind, ".img")


def _kind_and_size(content: bytes) -> tuple[str, Size]:
    """Pillow's name of an image's format, and its size. Raises FetchError if it is not an image."""
    if size := jpeg_size(content):
        return "JPEG", size  # most images, at a tenth of the cost of opening them by Pillow

    from PIL import Image  # slow to import

    Image.MAX_IMAGE_PIXELS = None  # this step has its own limit
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.format or "", Size(image.height, image.width)
    except Exception:  # Pillow's readers raise many kinds of errors
        raise FetchError("not_an_image") from None


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, DownloadOptions)
    parser.add_argument("list", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", type=Path, required=True, help="where the table goes")
    a = parser.parse_args(argv)
    result = download(a.list, a.folder, a.table, read_flags(a, DownloadOptions).source)
    counts = Counter(row["error"] for row in result)
    downloaded = counts.pop("", 0)
    reasons = "".join(f", {count} {error}" for error, count in counts.most_common())
    print(f"{a.folder}: {downloaded} of {len(result)} images downloaded{reasons}")


if __name__ == "__main__":
    run(main)

"""Download the images of one shard, and write a table of what became of every URL.

The table's columns: path (relative to the folder), url, label, split, status (HTTP status, or 200 for a file), error (empty
for an image that arrived), bytes, sha256, seconds. Errors: not_found, http_STATUS, timeout, connection, bad_url, too_large,
not_an_image, other_sha256, refused.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
import pandas as pd
from tqdm import tqdm

from pipeline.command import run
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.images import decode
from pipeline.shards import read_shard

SIGNATURES = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"RIFF": ".webp",
}
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
LONGEST_PAUSE = 60
"""Seconds; a server that asks for more gets this."""


@dataclass(frozen=True)
class Options:
    """How to download.

    concurrency  requests under way at once
    retries      further tries after a transient failure, with a pause that doubles, or as long as the server asks
    timeout      seconds to connect, and between two pieces of an answer; a whole answer may take ten times as long
    max_bytes    the largest file taken
    allow_file   take file:// URLs
    min_yield    the least share of images that must arrive, else the step fails
    """

    concurrency: int = 32
    retries: int = 3
    timeout: float = 20.0
    max_bytes: int = 64 << 20
    allow_file: bool = False
    min_yield: float = 0.5


class Failed(Exception):
    """A URL that gave no image: an error class and the HTTP status, 0 where there was none."""

    def __init__(self, error: str, status: int = 0, pause: float | None = None):
        super().__init__(error)
        self.error, self.status, self.pause = error, status, pause


def download(source: Path, folder: Path, table: Path, options: Options) -> pd.DataFrame:
    """Download the URLs of the list `source` into `folder` and write `table`; both whole or not at all. Returns the table."""
    listed = read_shard(source)
    with written_whole(folder) as part, written_whole(table) as part_table:
        part.mkdir()
        rows = asyncio.run(_download_all(listed, part, options))
        result = listed[["url", "label", "split"]].join(pd.DataFrame(rows, index=listed.index))
        arrived = int((result.error == "").sum())
        if arrived < options.min_yield * len(result):
            reasons = ", ".join(f"{error} {count}" for error, count in Counter(result.error[result.error != ""]).most_common())
            first = result[result.error != ""].iloc[0]
            raise InputError(
                source,
                f"{arrived} of {len(result)} images arrived ({reasons}; the first: {first.url})",
                f"at least {options.min_yield:.0%} must",
                "correct the list, or lower source.min_yield",
            )
        result = result[["path", "url", "label", "split", "status", "error", "bytes", "sha256", "seconds"]]
        result.to_csv(part_table, index=False)
    return result


async def _download_all(listed: pd.DataFrame, folder: Path, options: Options) -> list[dict]:
    gate = asyncio.Semaphore(options.concurrency)
    limits = httpx.Limits(max_connections=options.concurrency, max_keepalive_connections=options.concurrency)
    async with httpx.AsyncClient(
        timeout=options.timeout, limits=limits, follow_redirects=True, max_redirects=5, headers={"User-Agent": "roastery"}
    ) as client:
        with tqdm(total=len(listed), unit=" images", desc=f"download {folder.name}", disable=None) as bar:

            async def one(number: int, url: str, sha256: str) -> dict:
                async with gate:
                    row = await _download_one(client, url, sha256, folder, number, options)
                bar.update()
                return row

            return await asyncio.gather(*(one(n, row.url, row.sha256) for n, row in enumerate(listed.itertuples())))


async def _download_one(client: httpx.AsyncClient, url: str, sha256: str, folder: Path, number: int, options: Options) -> dict:
    start = time.monotonic()
    row = {"path": "", "status": 0, "error": "", "bytes": 0, "sha256": ""}
    try:
        content, row["status"] = await _fetch(client, url, options)
        row["bytes"], row["sha256"] = len(content), hashlib.sha256(content).hexdigest()
        if sha256 and sha256.lower() != row["sha256"]:
            raise Failed("other_sha256", row["status"])
        if await asyncio.to_thread(decode, content, color=True) is None:
            raise Failed("not_an_image", row["status"])
        stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in Path(unquote(urlsplit(url).path)).stem)[:60]
        row["path"] = f"{number:06d}_{stem}{_extension(content)}"
        (folder / row["path"]).write_bytes(content)
    except Failed as failure:
        row["error"], row["status"] = failure.error, failure.status or row["status"]
    row["seconds"] = round(time.monotonic() - start, 3)
    return row


async def _fetch(client: httpx.AsyncClient, url: str, options: Options) -> tuple[bytes, int]:
    scheme = urlsplit(url).scheme
    if scheme == "file":
        if not options.allow_file:
            raise Failed("refused")
        return await asyncio.to_thread(_read_file, url, options.max_bytes), 200
    if scheme not in ("http", "https"):
        raise Failed("refused")
    for attempt in range(options.retries + 1):
        try:
            return await _request(client, url, options)
        except Failed as failure:
            if attempt == options.retries or not (failure.status in TRANSIENT or failure.error in ("timeout", "connection")):
                raise
            pause = 0.5 * 2**attempt * (0.5 + random.random()) if failure.pause is None else failure.pause
            await asyncio.sleep(min(pause, LONGEST_PAUSE))
    raise AssertionError("the last attempt returns or raises")


async def _request(client: httpx.AsyncClient, url: str, options: Options) -> tuple[bytes, int]:
    try:
        async with asyncio.timeout(10 * options.timeout), client.stream("GET", url) as response:
            status = response.status_code
            if status != 200:
                error = "not_found" if status in (404, 410) else f"http_{status}"
                raise Failed(error, status, _pause_asked_for(response.headers.get("retry-after", "")))
            content = bytearray()
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > options.max_bytes:
                    raise Failed("too_large", status)
            return bytes(content), status
    except (httpx.TimeoutException, TimeoutError):
        raise Failed("timeout") from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects):
        raise Failed("bad_url") from None
    except httpx.HTTPError:
        raise Failed("connection") from None


def _pause_asked_for(retry_after: str) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date; None where it says neither."""
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _read_file(url: str, max_bytes: int) -> bytes:
    path = Path(unquote(urlsplit(url).path))
    try:
        if not path.is_file():
            raise Failed("not_found")
        if path.stat().st_size > max_bytes:
            raise Failed("too_large")
        return path.read_bytes()
    except OSError:
        raise Failed("not_found") from None


def _extension(content: bytes) -> str:
    return next((extension for start, extension in SIGNATURES.items() if content.startswith(start)), ".img")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", type=Path, required=True, help="where the table goes")
    parser.add_argument("--concurrency", type=int, default=Options.concurrency)
    parser.add_argument("--retries", type=int, default=Options.retries)
    parser.add_argument("--timeout", type=float, default=Options.timeout, help="seconds")
    parser.add_argument("--max-bytes", type=int, default=Options.max_bytes)
    parser.add_argument("--min-yield", type=float, default=Options.min_yield, help="least share of images that must arrive")
    parser.add_argument("--allow-file", action="store_true", help="take file:// URLs")
    arguments = vars(parser.parse_args(argv))
    source, folder, table = (arguments.pop(name) for name in ("list", "folder", "table"))
    result = download(source, folder, table, Options(**arguments))
    print(f"{folder}: {(result.error == '').sum()} of {len(result)} images arrived")


if __name__ == "__main__":
    run(main)

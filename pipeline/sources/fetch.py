"""Fetch one URL to a file: what is asked, of whom, how often and how long, and what is refused."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import os
import random
import shutil
import socket
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit

import pycurl

from pipeline.options.dataset import FetchOptions
from pipeline.progress import progress
from pipeline.sources.curl import Transfers

TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
"""HTTP statuses that may be others soon."""
OPT_OUTS = {"noai", "noimageai", "noindex", "noimageindex", "none"}
"""What an X-Robots-Tag says of images that are not to be collected."""
LONGEST_PAUSE = 60
"""Seconds; a server that asks for more gets this."""
PIECE = 1 << 18
"""Bytes that are taken of an answer at once, at most."""
REDIRECTS = {301, 302, 303, 307, 308}
LONGEST_REFUSAL = 1 << 16
"""Bytes of an answer other than 200 that are read, so that the connection can be kept."""
SAFE = "%:/?@!$&'()*+,;=~[]|"
"""Characters of a path or query that are sent as they stand, besides letters, digits and -._"""
ERRORS = {
    pycurl.E_COULDNT_RESOLVE_HOST: "unknown_host",
    pycurl.E_OPERATION_TIMEDOUT: "timeout",
    pycurl.E_PARTIAL_FILE: "truncated",
    pycurl.E_UNSUPPORTED_PROTOCOL: "bad_url",
    pycurl.E_URL_MALFORMAT: "bad_url",
}
"""What libcurl's errors are called here; the others are `connection`."""


class Failed(Exception):
    """A URL that gave no file: an error class, the HTTP status (0 where there was none), the seconds the server asks to wait."""

    def __init__(self, error: str, status: int = 0, pause: float | None = None):
        super().__init__(error)
        self.error, self.status, self.pause = error, status, pause

    @property
    def transient(self) -> bool:
        """Whether another try may go better."""
        return self.status in TRANSIENT or self.error in ("timeout", "connection", "truncated")


@dataclass(frozen=True)
class Fetched:
    """A file that came: HTTP status (200 for a file), size, SHA-256."""

    status: int
    bytes: int
    sha256: str


class Fetcher:
    """Fetches URLs over kept connections: `async with Fetcher(options) as fetcher: await fetcher.fetch(url, path)`."""

    def __init__(self, options: FetchOptions):
        self.options = options
        self._gate = asyncio.Semaphore(options.concurrency)
        self._hosts: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(options.per_host))

    async def __aenter__(self) -> Fetcher:
        self._transfers = Transfers(self.options.concurrency)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._transfers.close()

    async def fetch(self, url: str, path: Path, arrived: Callable[[int], object] = lambda _: None) -> Fetched:
        """Write what `url` gives to `path`. Raises Failed, and leaves no file, after as many tries as there may be.

        arrived  is told of every piece of a body how many bytes it has
        """
        if url.startswith("file:"):
            if not self.options.allow_file:
                raise Failed("refused")
            async with self._gate:
                return await asyncio.to_thread(_copy, url, path, self.options.max_bytes)
        for attempt in range(self.options.retries + 1):
            try:
                async with self._gate:
                    return await self._follow(url, path, arrived)
            except Failed as failure:
                path.unlink(missing_ok=True)
                if attempt == self.options.retries or not failure.transient:
                    raise
                pause = 0.5 * 2**attempt * (0.5 + random.random()) if failure.pause is None else failure.pause
                await asyncio.sleep(min(pause, LONGEST_PAUSE))
        raise AssertionError("the last attempt returns or raises")

    async def _follow(self, url: str, path: Path, arrived: Callable[[int], object]) -> Fetched:
        """One try, along its redirects."""
        for _ in range(self.options.max_redirects + 1):
            host, address = _taken_apart(url)
            async with self._hosts[host]:
                answer = await self._request(url, address, path, arrived)
            if isinstance(answer, Fetched):
                return answer
            url = answer
        raise Failed("too_many_redirects")

    async def _request(self, url: str, address: str, path: Path, arrived: Callable[[int], object]) -> Fetched | str:
        """What came, or the address that the answer points to."""
        options, loop = self.options, asyncio.get_running_loop()
        curl = self._transfers.handle()
        try:
            async with asyncio.timeout(options.total_timeout), asyncio.timeout(2 * options.timeout) as pause:

                def alive(size: int) -> None:
                    if not pause.expired():
                        pause.reschedule(loop.time() + options.timeout)
                    arrived(size)

                with path.open("wb") as file:
                    answer = Answer(options, file, alive)
                    curl.setopt(pycurl.URL, address)
                    curl.setopt(pycurl.HTTPHEADER, HEADERS)
                    curl.setopt(pycurl.CONNECTTIMEOUT_MS, max(1, round(1000 * options.timeout)))
                    curl.setopt(pycurl.BUFFERSIZE, PIECE)
                    curl.setopt(pycurl.HEADERFUNCTION, answer.header)
                    curl.setopt(pycurl.WRITEFUNCTION, answer.write)
                    if not options.allow_private:
                        curl.setopt(pycurl.OPENSOCKETFUNCTION, answer.connect)
                    code, _ = await self._transfers.perform(curl)
        except TimeoutError:
            raise Failed("timeout") from None
        if answer.failure:
            raise answer.failure
        if code and not answer.enough:
            raise Failed(ERRORS.get(code, "connection"))
        if answer.status in REDIRECTS and "location" in answer.headers:
            try:
                return urljoin(url, answer.headers["location"][-1])
            except ValueError:
                raise Failed("bad_url", answer.status) from None
        answer.judge()
        return Fetched(answer.status, answer.size, answer.digest.hexdigest())


HEADERS = ["User-Agent: roastery", "Accept: image/*,*/*;q=0.5", "Accept-Encoding: identity"]


class Answer:
    """What a server answers, judged while it comes. libcurl calls the methods.

    file     takes the body of a 200
    alive    is told how many bytes have come
    failure  what ended the transfer
    enough   whether the transfer was ended because the rest of the body does not matter
    """

    def __init__(self, options: FetchOptions, file: BinaryIO, alive: Callable[[int], None]):
        self.options, self._file, self._alive = options, file, alive
        self.status, self.size, self.digest = 0, 0, hashlib.sha256()
        self.headers: dict[str, list[str]] = {}
        self.failure: Failed | OSError | None = None
        self.enough = False

    def connect(self, _: int, address: tuple) -> socket.socket | int:
        """A socket for an address, (family, kind, protocol, (host, …)), but for one of a private network."""
        family, kind, protocol, (host, *_) = address
        host = host.decode() if isinstance(host, bytes) else host
        if not ipaddress.ip_address(host.partition("%")[0]).is_global:
            self.failure = Failed("refused")
            return pycurl.SOCKET_BAD
        return socket.socket(family, kind, protocol)

    def header(self, line: bytes) -> None:
        """Take a header, or the line before them, which begins an answer anew."""
        text = line.decode("latin-1").strip()
        if text.startswith("HTTP/"):
            self._alive(0)
            self.status, self.headers = int(text.split()[1]), {}
        elif ":" in text:
            name, value = text.split(":", 1)
            self.headers.setdefault(name.strip().lower(), []).append(value.strip())

    def write(self, piece: bytes) -> int | None:
        """Take a piece of the body; -1 where no more is wanted."""
        self._alive(len(piece))
        try:
            if self.status != 200:
                self.size += len(piece)
                self.enough = self.size > LONGEST_REFUSAL
                return -1 if self.enough else None
            if not self.size:
                self.judge()
            self.size += len(piece)
            if self.size > self.options.max_bytes:
                raise Failed("too_large", self.status)
            self.digest.update(piece)
            self._file.write(piece)
        except Failed as failure:
            self.failure = failure
        except OSError as error:  # a full disk
            self.failure = error
        return -1 if self.failure else None

    def judge(self) -> None:
        """Raise Failed where the status and the headers say that there is no image to be had."""
        if self.status != 200:
            error = "not_found" if self.status in (404, 410) else f"http_{self.status}"
            raise Failed(error, self.status, _pause_asked_for(self.headers.get("retry-after", [""])[-1]))
        announced = self.headers.get("content-length", [""])[-1]
        if announced.isdecimal() and int(announced) > self.options.max_bytes:
            raise Failed("too_large", self.status)
        if not self.options.ignore_opt_out and _opts_out(self.headers.get("x-robots-tag", [])):
            raise Failed("opted_out", self.status)


def _taken_apart(url: str) -> tuple[str, str]:
    """The host of a URL, and the URL as it is sent: as it stands, for it may be signed, but for what cannot be sent."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if parts.scheme not in ("http", "https"):
            raise Failed("refused")
        name = host if host.isascii() else host.encode("idna").decode()
    except ValueError:
        raise Failed("bad_url") from None
    if not host:
        raise Failed("bad_url")
    place = (f"[{name}]" if ":" in name else name) + (f":{port}" if port else "")
    user = parts.netloc.rpartition("@")[0]
    path, query = (quote(part, safe=SAFE) for part in (parts.path or "/", parts.query))
    return host, parts._replace(netloc=f"{user}@{place}" if user else place, path=path, query=query, fragment="").geturl()


def _opts_out(tags: list[str]) -> bool:
    """Whether an X-Robots-Tag, which may name a robot before a colon, asks everybody not to collect the image."""
    directives = {word.strip().lower() for tag in tags for word in tag.split(",")}
    return bool(directives & OPT_OUTS)


def _pause_asked_for(retry_after: str) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date; None where it says neither."""
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _copy(url: str, path: Path, max_bytes: int) -> Fetched:
    try:
        source = Path(os.fsdecode(unquote_to_bytes(urlsplit(url).path)))
        if not source.is_file():
            raise Failed("not_found")
        if source.stat().st_size > max_bytes:
            raise Failed("too_large")
        shutil.copyfile(source, path)
    except ValueError:
        raise Failed("bad_url") from None
    except OSError:
        path.unlink(missing_ok=True)
        raise Failed("not_found") from None
    with path.open("rb") as file:
        return Fetched(200, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


PUBLISHED = FetchOptions(timeout=30, total_timeout=7200, max_bytes=1 << 30, retries=1, allow_private=True, ignore_opt_out=True)
"""For files that a collection or a config names: large, and from addresses that are trusted."""


def fetch_url(url: str, path: Path) -> Fetched:
    """Write what such a file's URL gives to `path`. Raises Failed, and leaves no file."""

    async def fetched() -> Fetched:
        with progress(desc=path.name, unit=" bytes") as bar:
            async with Fetcher(PUBLISHED) as fetcher:
                return await fetcher.fetch(url, path, bar.update)

    return asyncio.run(fetched())

"""Fetch a URL to a file: requests, redirects, retries, timeouts, limits, opt-outs, refused addresses."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import random
import shutil
import socket
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

import pycurl

from pipeline.files import path_of_url
from pipeline.options.dataset import FetchOptions
from pipeline.progress import progress
from pipeline.sources.curl import Transfers

TRANSIENT = {408, 425, 429, 500, 502, 503, 504, "timeout", "connection", "truncated"}
"""HTTP statuses and errors worth a retry."""
OPT_OUTS = {"noai", "noimageai", "noindex", "noimageindex", "none"}
"""Directives of an X-Robots-Tag that forbid collecting an image."""
LONGEST_PAUSE = 60
"""Longest pause between retries in seconds, also if a server asks for more."""
PIECE = 1 << 18
"""Size of libcurl's receive buffer in bytes."""
REDIRECTS = {301, 302, 303, 307, 308}
LONGEST_REFUSAL = 1 << 16
"""Most bytes read of the body of a status other than 200, to keep the connection."""
HEADERS = ["User-Agent: roastery", "Accept: image/*,*/*;q=0.5", "Accept-Encoding: identity"]
SAFE = "%:/?@!$&'()*+,;=~[]|"
"""Characters of a path or query that are not percent-encoded, besides letters, digits and -._"""
ERRORS = {
    pycurl.E_COULDNT_RESOLVE_HOST: "unknown_host",
    pycurl.E_OPERATION_TIMEDOUT: "timeout",
    pycurl.E_PARTIAL_FILE: "truncated",
    pycurl.E_UNSUPPORTED_PROTOCOL: "bad_url",
    pycurl.E_URL_MALFORMAT: "bad_url",
}
"""Error classes of libcurl's errors; the others are `connection`."""


class FetchError(Exception):
    """A URL could not be fetched: error class, HTTP status (0 if there was none), seconds that the server asks to wait."""

    def __init__(self, error: str, status: int = 0, pause: float | None = None):
        super().__init__(error)
        self.error, self.status, self.pause = error, status, pause


class Fetched(NamedTuple):
    """A fetched file: HTTP status (200 for a local file), size, SHA-256."""

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
        """Write the content of `url` to `path`. Raises FetchError, and leaves no file, after the last retry.

        arrived  called with the number of bytes of each piece of a body
        """
        if url.startswith("file:"):
            if not self.options.allow_file:
                raise FetchError("refused")
            async with self._gate:
                return await asyncio.to_thread(_copy, url, path, self.options.max_bytes)
        for attempt in range(self.options.retries + 1):
            try:
                async with self._gate:
                    return await self._follow(url, path, arrived)
            except FetchError as failure:
                path.unlink(missing_ok=True)
                if attempt == self.options.retries or not TRANSIENT & {failure.status, failure.error}:
                    raise
                pause = 0.5 * 2**attempt * (0.5 + random.random()) if failure.pause is None else failure.pause
                await asyncio.sleep(min(pause, LONGEST_PAUSE))
        raise AssertionError("the last attempt returns or raises")

    async def _follow(self, url: str, path: Path, arrived: Callable[[int], object]) -> Fetched:
        """One attempt, following redirects."""
        for _ in range(self.options.max_redirects + 1):
            host, address = _split_url(url)
            async with self._hosts[host]:
                response = await self._request(url, address, path, arrived)
            if isinstance(response, Fetched):
                return response
            url = response
        raise FetchError("too_many_redirects")

    async def _request(self, url: str, address: str, path: Path, arrived: Callable[[int], object]) -> Fetched | str:
        """The fetched file, or the URL of a redirect."""
        options, loop = self.options, asyncio.get_running_loop()
        try:
            async with asyncio.timeout(options.total_timeout), asyncio.timeout(2 * options.timeout) as stalled:

                def postpone(size: int) -> None:
                    if not stalled.expired():
                        stalled.reschedule(loop.time() + options.timeout)
                    arrived(size)

                with path.open("wb") as file:
                    response = Response(options, file, postpone)
                    how = {
                        pycurl.URL: address,
                        pycurl.HTTPHEADER: HEADERS,
                        pycurl.CONNECTTIMEOUT_MS: max(1, round(1000 * options.timeout)),
                        pycurl.BUFFERSIZE: PIECE,
                        pycurl.HEADERFUNCTION: response.header,
                        pycurl.WRITEFUNCTION: response.write,
                        pycurl.OPENSOCKETFUNCTION: response.connect,
                    }
                    code = await self._transfers.perform(how)
        except TimeoutError:
            raise FetchError("timeout") from None
        if response.failure:
            raise response.failure
        if code and not response.is_cut:
            raise FetchError(ERRORS.get(code, "connection"))
        if response.status in REDIRECTS and "location" in response.headers:
            try:
                return urljoin(url, response.headers["location"][-1])
            except ValueError:
                raise FetchError("bad_url", response.status) from None
        response.check()
        return Fetched(response.status, response.size, response.digest.hexdigest())


class Response:
    """A server's response, checked as it arrives. libcurl calls the methods.

    file     receives the body of a 200
    arrived  called with the number of bytes that arrived
    failure  the error that ended the transfer
    is_cut   whether the transfer was ended because the rest of an error's body is not needed
    """

    def __init__(self, options: FetchOptions, file: BinaryIO, arrived: Callable[[int], None]):
        self.options, self._file, self._arrived = options, file, arrived
        self.status, self.size, self.digest = 0, 0, hashlib.sha256()
        self.headers: dict[str, list[str]] = {}
        self.failure: FetchError | OSError | None = None
        self.is_cut = False

    def connect(self, _purpose: int, address: tuple[int, int, int, tuple[str, int]]) -> socket.socket | int:
        """Open a socket for (family, kind, protocol, (host, port, …)); refuse private addresses unless they are allowed."""
        family, kind, protocol, (host, *_) = address
        if not (self.options.allow_private or ipaddress.ip_address(host.partition("%")[0]).is_global):
            self.failure = FetchError("refused")
            bad: int = pycurl.SOCKET_BAD
            return bad
        return socket.socket(family, kind, protocol)

    def header(self, line: bytes) -> None:
        """Receive a header, or the status line, which starts a new response."""
        text = line.decode("latin-1").strip()
        if text.startswith("HTTP/"):
            self._arrived(0)
            self.status, self.headers = int(text.split()[1]), {}
        elif ":" in text:
            name, value = text.split(":", 1)
            self.headers.setdefault(name.strip().lower(), []).append(value.strip())

    def write(self, piece: bytes) -> int | None:
        """Receive a piece of the body; -1 ends the transfer."""
        self._arrived(len(piece))
        try:
            if self.status != 200:
                self.size += len(piece)
                self.is_cut = self.size > LONGEST_REFUSAL
                return -1 if self.is_cut else None
            if not self.size:
                self.check()
            self.size += len(piece)
            if self.size > self.options.max_bytes:
                raise FetchError("too_large", self.status)
            self.digest.update(piece)
            self._file.write(piece)
        except (FetchError, OSError) as failure:  # OSError: a full disk
            self.failure = failure
        return -1 if self.failure else None

    def check(self) -> None:
        """Raise FetchError for a status or headers that refuse the image."""
        if self.status != 200:
            error = "not_found" if self.status in (404, 410) else f"http_{self.status}"
            raise FetchError(error, self.status, _retry_after(self.headers.get("retry-after", [""])[-1]))
        announced = self.headers.get("content-length", [""])[-1]
        if announced.isdecimal() and int(announced) > self.options.max_bytes:
            raise FetchError("too_large", self.status)
        # A tag for a single robot has its name and a colon: it is no directive of OPT_OUTS.
        directives = {word.strip().lower() for tag in self.headers.get("x-robots-tag", []) for word in tag.split(",")}
        if not self.options.ignore_opt_out and directives & OPT_OUTS:
            raise FetchError("opted_out", self.status)


def _split_url(url: str) -> tuple[str, str]:
    """(host, URL to send): unchanged, since it may be signed, except for characters that must be encoded."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if parts.scheme not in ("http", "https"):
            raise FetchError("refused")
        name = host if host.isascii() else host.encode("idna").decode()
    except ValueError:
        raise FetchError("bad_url") from None
    if not host:
        raise FetchError("bad_url")
    place = (f"[{name}]" if ":" in name else name) + (f":{port}" if port else "")
    user = parts.netloc.rpartition("@")[0]
    path, query = (quote(part, safe=SAFE) for part in (parts.path or "/", parts.query))
    return host, parts._replace(netloc=f"{user}@{place}" if user else place, path=path, query=query, fragment="").geturl()


def _retry_after(header: str) -> float | None:
    """Seconds to wait by a Retry-After header, a number or a date; None if it is neither."""
    if header.isdecimal():
        return float(header)
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _copy(url: str, path: Path, max_bytes: int) -> Fetched:
    try:
        source = Path(path_of_url(url))
        if not source.is_file():
            raise FetchError("not_found")
        if source.stat().st_size > max_bytes:
            raise FetchError("too_large")
        shutil.copyfile(source, path)
    except ValueError:
        raise FetchError("bad_url") from None
    except OSError:
        path.unlink(missing_ok=True)
        raise FetchError("not_found") from None
    with path.open("rb") as file:
        return Fetched(200, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


PUBLISHED = FetchOptions(timeout=30, total_timeout=7200, max_bytes=1 << 30, retries=1, allow_private=True, ignore_opt_out=True)
"""Options for files of collections and configs, which are large, and from trusted addresses."""


def fetch_url(url: str, path: Path) -> Fetched:
    """Write the content of a trusted URL to `path`. Raises FetchError, and leaves no file."""

    async def fetch() -> Fetched:
        with progress(desc=path.name, unit=" bytes") as bar:
            async with Fetcher(PUBLISHED) as fetcher:
                return await fetcher.fetch(url, path, bar.update)

    return asyncio.run(fetch())

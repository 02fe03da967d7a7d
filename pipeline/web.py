"""Fetch one URL to a file: what is asked, of whom, how often and how long, and what is refused."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import random
import shutil
import socket
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import httpx

TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
"""HTTP statuses that may be others soon."""
OPT_OUTS = {"noai", "noimageai", "noindex", "noimageindex", "none"}
"""What an X-Robots-Tag says of images that are not to be collected."""
LONGEST_PAUSE = 60
"""Seconds; a server that asks for more gets this."""
PIECE = 1 << 16


@dataclass(frozen=True)
class Options:
    """How to fetch.

    concurrency     requests under way at once; per_host, at one host
    retries         further tries after a transient failure, with a pause that doubles, or as long as the server asks
    timeout         seconds to connect, and between two pieces of an answer; total_timeout, for a whole answer
    max_bytes       the largest file taken
    max_redirects   how often an answer may point to another address
    allow_file      take file:// URLs
    allow_private   ask hosts of private networks and of this machine
    ignore_opt_out  take images whose server says by X-Robots-Tag that they are not to be collected
    """

    concurrency: int = 32
    per_host: int = 16
    retries: int = 3
    timeout: float = 20.0
    total_timeout: float = 120.0
    max_bytes: int = 64 << 20
    max_redirects: int = 5
    allow_file: bool = False
    allow_private: bool = False
    ignore_opt_out: bool = False


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

    def __init__(self, options: Options):
        self.options = options
        self._gate = asyncio.Semaphore(options.concurrency)
        self._hosts: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(options.per_host))
        self._public: dict[str, bool] = {}
        limits = httpx.Limits(max_connections=options.concurrency, max_keepalive_connections=options.concurrency)
        headers = {"User-Agent": "roastery", "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}
        self._client = httpx.AsyncClient(timeout=options.timeout, limits=limits, headers=headers, http2=True)

    async def __aenter__(self) -> Fetcher:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.__aexit__(*error)

    async def fetch(self, url: str, path: Path) -> Fetched:
        """Write what `url` gives to `path`. Raises Failed, and leaves no file, after as many tries as there may be."""
        scheme = urlsplit(url).scheme
        if scheme == "file":
            if not self.options.allow_file:
                raise Failed("refused")
            async with self._gate:
                return await asyncio.to_thread(_copy, url, path, self.options.max_bytes)
        for attempt in range(self.options.retries + 1):
            try:
                async with self._gate:
                    return await self._follow(url, path)
            except Failed as failure:
                path.unlink(missing_ok=True)
                if attempt == self.options.retries or not failure.transient:
                    raise
                pause = 0.5 * 2**attempt * (0.5 + random.random()) if failure.pause is None else failure.pause
                await asyncio.sleep(min(pause, LONGEST_PAUSE))
        raise AssertionError("the last attempt returns or raises")

    async def _follow(self, url: str, path: Path) -> Fetched:
        """One try, along its redirects."""
        for _ in range(self.options.max_redirects + 1):
            host = await self._checked_host(url)
            async with self._hosts[host]:
                answer = await self._request(url, path)
            if isinstance(answer, Fetched):
                return answer
            url = answer
        raise Failed("too_many_redirects")

    async def _checked_host(self, url: str) -> str:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise Failed("bad_url") from None
        if parts.scheme not in ("http", "https"):
            raise Failed("refused")
        if not host:
            raise Failed("bad_url")
        if not self.options.allow_private:
            if host not in self._public:
                self._public[host] = await _is_public(host, port)
            if not self._public[host]:
                raise Failed("refused")
        return host

    async def _request(self, url: str, path: Path) -> Fetched | str:
        """What came, or the address that the answer points to."""
        try:
            async with asyncio.timeout(self.options.total_timeout), self._client.stream("GET", url) as response:
                self._check_peer(response)
                status = response.status_code
                if response.has_redirect_location:
                    return urljoin(url, response.headers["location"])
                if status != 200:
                    error = "not_found" if status in (404, 410) else f"http_{status}"
                    raise Failed(error, status, _pause_asked_for(response.headers.get("retry-after", "")))
                if not self.options.ignore_opt_out and _opts_out(response.headers.get_list("x-robots-tag")):
                    raise Failed("opted_out", status)
                return await self._write(response, path)
        except (httpx.TimeoutException, TimeoutError):
            raise Failed("timeout") from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError, UnicodeError):
            raise Failed("bad_url") from None
        except httpx.RemoteProtocolError as error:
            cut = "incomplete" in str(error) or "without sending complete" in str(error)
            raise Failed("truncated" if cut else "connection") from None
        except httpx.HTTPError:
            raise Failed("connection") from None

    def _check_peer(self, response: httpx.Response) -> None:
        """Refuse an answer from a private address: a name may have got another one since it was looked up."""
        stream = response.extensions.get("network_stream")
        peer = stream.get_extra_info("server_addr") if stream else None
        if peer and not self.options.allow_private and not ipaddress.ip_address(peer[0].partition("%")[0]).is_global:
            raise Failed("refused", response.status_code)

    async def _write(self, response: httpx.Response, path: Path) -> Fetched:
        limit, digest, size = self.options.max_bytes, hashlib.sha256(), 0
        announced = response.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise Failed("too_large", response.status_code)
        with path.open("wb") as file:
            async for piece in response.aiter_bytes(PIECE):
                size += len(piece)
                if size > limit:
                    raise Failed("too_large", response.status_code)
                digest.update(piece)
                file.write(piece)
        return Fetched(response.status_code, size, digest.hexdigest())


async def _is_public(host: str, port: int | None) -> bool:
    """Whether every address of a host is one of the internet's."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_global
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port or 80, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise Failed("unknown_host") from None
    return all(ipaddress.ip_address(address[0].partition("%")[0]).is_global for *_, address in found)


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
    source = Path(unquote(urlsplit(url).path))
    try:
        if not source.is_file():
            raise Failed("not_found")
        if source.stat().st_size > max_bytes:
            raise Failed("too_large")
        shutil.copyfile(source, path)
    except OSError:
        path.unlink(missing_ok=True)
        raise Failed("not_found") from None
    with path.open("rb") as file:
        return Fetched(200, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())

"""libcurl's transfers under asyncio: many at once over kept connections, HTTP/1.1 and 2."""

from __future__ import annotations

import asyncio

import certifi
import pycurl


class Transfers:
    """Transfers of one event loop: `await transfers.perform(transfers.handle())`.

    connections  how many are kept open for later transfers
    """

    def __init__(self, connections: int):
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._watched: dict[int, int] = {}
        self._running: dict[pycurl.Curl, asyncio.Future[tuple[int, str]]] = {}
        self._idle: list[pycurl.Curl] = []
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._wake)
        self._multi.setopt(pycurl.M_MAXCONNECTS, connections)

    def handle(self) -> pycurl.Curl:
        """A handle with the options that all transfers have."""
        curl = self._idle.pop() if self._idle else pycurl.Curl()
        curl.setopt(pycurl.NOSIGNAL, 1)
        curl.setopt(pycurl.CAINFO, certifi.where())
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS)
        curl.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        return curl

    async def perform(self, curl: pycurl.Curl) -> tuple[int, str]:
        """Transfer what a handle asks for; libcurl's error code (0: it is done) and what it says of it.

        The handle is given back, and serves another transfer. Cancelled, the transfer ends.
        """
        done = self._running[curl] = self._loop.create_future()
        self._multi.add_handle(curl)
        try:
            return await done
        finally:
            self._running.pop(curl)
            self._multi.remove_handle(curl)
            curl.reset()
            self._idle.append(curl)

    def close(self) -> None:
        """Close all connections."""
        for curl in self._idle:
            curl.close()
        self._multi.close()
        for number in list(self._watched):
            self._watch(pycurl.POLL_REMOVE, number)
        self._wake(-1)

    # ---- what libcurl asks of the loop

    def _watch(self, wanted: int, number: int, *_: object) -> None:
        """Watch a socket for reading, writing or both, or no more."""
        watched = self._watched.pop(number, pycurl.POLL_NONE)
        if wanted == pycurl.POLL_REMOVE:
            wanted = pycurl.POLL_NONE
        else:
            self._watched[number] = wanted
        for flag, way, add, remove in (
            (pycurl.POLL_IN, pycurl.CSELECT_IN, self._loop.add_reader, self._loop.remove_reader),
            (pycurl.POLL_OUT, pycurl.CSELECT_OUT, self._loop.add_writer, self._loop.remove_writer),
        ):
            if wanted & flag and not watched & flag:
                add(number, self._act, number, way)
            elif watched & flag and not wanted & flag:
                remove(number)

    def _wake(self, milliseconds: int) -> None:
        """Call libcurl after so many milliseconds; -1: not at all."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if milliseconds >= 0:
            self._timer = self._loop.call_later(milliseconds / 1000, self._act, pycurl.SOCKET_TIMEOUT, 0)

    def _act(self, number: int, ways: int) -> None:
        """Let libcurl do what can be done now, and tell those who wait."""
        self._multi.socket_action(number, ways)
        more = True
        while more:
            more, good, bad = self._multi.info_read()
            for curl, code, said in (*((curl, 0, "") for curl in good), *bad):
                done = self._running.get(curl)
                if done is not None and not done.done():
                    done.set_result((code, said))

"""libcurl's transfers under asyncio: many at once over kept connections, HTTP/1.1 and 2."""

import asyncio

import certifi
import pycurl

OPTIONS = {
    pycurl.NOSIGNAL: 1,
    pycurl.CAINFO: certifi.where(),
    pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_2TLS,
    pycurl.PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
}
"""Options of all transfers."""


class Transfers:
    """Transfers of the running event loop: `await transfers.perform({pycurl.URL: url, …})`.

    connections  most connections kept open for later transfers
    """

    def __init__(self, connections: int):
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._watched: set[int] = set()
        self._running: dict[pycurl.Curl, asyncio.Future[int]] = {}
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._wake)
        self._multi.setopt(pycurl.M_MAXCONNECTS, connections)

    async def perform(self, options: dict[int, object]) -> int:
        """Perform a transfer; return libcurl's error code (0: success). Cancelling the task ends the transfer."""
        curl = pycurl.Curl()
        for option, value in (OPTIONS | options).items():
            curl.setopt(option, value)
        done: asyncio.Future[int] = self._loop.create_future()
        self._running[curl] = done
        self._multi.add_handle(curl)
        try:
            return await done
        finally:
            self._running.pop(curl)
            self._multi.remove_handle(curl)
            curl.close()

    def close(self) -> None:
        """Close all connections."""
        self._multi.close()
        for number in list(self._watched):
            self._watch(pycurl.POLL_REMOVE, number)
        self._wake(-1)

    # ---- callbacks of libcurl

    def _watch(self, events: int, number: int, *_: object) -> None:
        """Watch a socket for reading (POLL_IN), writing (POLL_OUT) or both, or stop watching it (POLL_REMOVE)."""
        if events == pycurl.POLL_REMOVE:
            self._watched.discard(number)
        else:
            self._watched.add(number)
        for flag, direction, add, remove in (
            (pycurl.POLL_IN, pycurl.CSELECT_IN, self._loop.add_reader, self._loop.remove_reader),
            (pycurl.POLL_OUT, pycurl.CSELECT_OUT, self._loop.add_writer, self._loop.remove_writer),
        ):
            if events & flag:
                add(number, self._act, number, direction)
            else:
                remove(number)

    def _wake(self, milliseconds: int) -> None:
        """Set libcurl's timer, in milliseconds; -1 removes it."""
        if self._timer is not None:
            self._timer.cancel()
        if milliseconds >= 0:
            self._timer = self._loop.call_later(milliseconds / 1000, self._act, pycurl.SOCKET_TIMEOUT, 0)

    def _act(self, number: int, directions: int) -> None:
        """Let libcurl transfer what is ready, and finish the transfers that are done."""
        self._multi.socket_action(number, directions)
        _, succeeded, failed = self._multi.info_read()
        for curl, code, *_ in (*((curl, 0) for curl in succeeded), *failed):
            if not self._running[curl].done():  # a cancelled task's transfer is removed later
                self._running[curl].set_result(code)

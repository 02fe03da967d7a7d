"""libcurl's transfers under asyncio: many at once over kept connections, HTTP/1.1 and 2."""

import asyncio

import certifi
import pycurl


class Transfers:
    """Transfers of one event loop: `await transfers.perform(transfers.handle())`.

    connections  kept open for later transfers, at most
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
        """A handle with the options of all transfers."""
        curl = self._idle.pop() if self._idle else pycurl.Curl()
        curl.setopt(pycurl.NOSIGNAL, 1)
        curl.setopt(pycurl.CAINFO, certifi.where())
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS)
        curl.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        return curl

    async def perform(self, curl: pycurl.Curl) -> tuple[int, str]:
        """Perform the transfer of a handle; libcurl's error code (0: success) and message.

        The handle is reused for other transfers. Cancelling the task ends the transfer.
        """
        done: asyncio.Future[tuple[int, str]] = self._loop.create_future()
        self._running[curl] = done
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

    # ---- callbacks of libcurl

    def _watch(self, events: int, number: int, *_: object) -> None:
        """Watch a socket for reading, writing or both; or stop watching it."""
        watched = self._watched.pop(number, pycurl.POLL_NONE)
        if events == pycurl.POLL_REMOVE:
            events = pycurl.POLL_NONE
        else:
            self._watched[number] = events
        for flag, direction, add, remove in (
            (pycurl.POLL_IN, pycurl.CSELECT_IN, self._loop.add_reader, self._loop.remove_reader),
            (pycurl.POLL_OUT, pycurl.CSELECT_OUT, self._loop.add_writer, self._loop.remove_writer),
        ):
            if events & flag and not watched & flag:
                add(number, self._act, number, direction)
            elif watched & flag and not events & flag:
                remove(number)

    def _wake(self, milliseconds: int) -> None:
        """Set libcurl's timer, in milliseconds; -1 removes it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if milliseconds >= 0:
            self._timer = self._loop.call_later(milliseconds / 1000, self._act, pycurl.SOCKET_TIMEOUT, 0)

    def _act(self, number: int, directions: int) -> None:
        """Let libcurl transfer what is ready, and finish the transfers that are done."""
        self._multi.socket_action(number, directions)
        more = True
        while more:
            more, succeeded, failed = self._multi.info_read()
            for curl, code, message in (*((curl, 0, "") for curl in succeeded), *failed):
                done = self._running.get(curl)
                if done is not None and not done.done():
                    done.set_result((code, message))

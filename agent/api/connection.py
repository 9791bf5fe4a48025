"""The connection of one client: limits that the HTTP library lacks, and problem details for malformed requests."""

from __future__ import annotations

import asyncio
import resource
import select
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp import hdrs, web
from ulid import ULID

from agent.api import problems

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.web_request import BaseRequest

log = structlog.get_logger()

MAX_CONNECTIONS: Final = 2048
"""Open connections per listener, if the process may open enough files. The Unix socket has a limit of its own, so that
the command line works while the TCP port is flooded."""

_OTHER_FILES: Final = 128
"""Open files that are left to the rest of the agent: commands, journal, logs, transfers."""

_REPORT_S: Final = 60.0

IDLE_S: Final = 30.0
"""How long a connection may be without a complete request head: idle between requests, or sending one slowly."""


def connection_limit() -> int:
    """Return how many connections a listener may have: with the two listeners, at most half of the open files."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return min(MAX_CONNECTIONS, max(8, (files - _OTHER_FILES) // 4))


class Places:
    """The connections of one listener.

    If there are too many, a new one takes the place of the oldest whose caller has not shown a valid token. So callers
    without a token cannot take the places of those with one.
    """

    def __init__(self) -> None:
        self._strangers: dict[Connection, None] = {}  # ordered: the oldest is first
        self._known: set[Connection] = set()
        self._closed = 0
        self._reported_s: float | None = None

    def admit(self, connection: Connection) -> bool:
        """Give a connection a place. Return False if connections with a token have all places."""
        limit = connection_limit()
        is_full = len(self._strangers) + len(self._known) >= limit
        if is_full:
            self._report(limit)
        if is_full and not self._strangers:
            return False
        if is_full:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.abort()
        self._strangers[connection] = None
        return True

    def keep(self, connection: Connection) -> None:
        """Keep a connection open: its caller has a valid token, or uses the Unix socket."""
        if connection in self._strangers:
            del self._strangers[connection]
            self._known.add(connection)

    def release(self, connection: Connection) -> None:
        """Give the place of a closed connection back."""
        self._strangers.pop(connection, None)
        self._known.discard(connection)

    def _report(self, limit: int) -> None:
        """Log one line a minute while connections are closed."""
        now_s = asyncio.get_running_loop().time()
        self._closed += 1
        if self._reported_s is None or now_s - self._reported_s >= _REPORT_S:
            log.warning("api-connection-refused", limit=limit, closed=self._closed)
            self._closed, self._reported_s = 0, now_s


class Connection(web.RequestHandler):
    """The HTTP protocol of one client."""

    __slots__ = ("_places", "peer")

    def __init__(self, server: web.Server, places: Places) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=IDLE_S,
            access_log=None,  # type: ignore[arg-type]  # None turns it off, as in the library's own runner
            auto_decompress=False,
        )
        self._places = places
        self.peer = ""
        """The address of a TCP client; empty on the Unix socket."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept the client, or close its connection if the listener has too many."""
        super().connection_made(transport)
        address = transport.get_extra_info("peername")
        self.peer = str(address[0]) if isinstance(address, tuple) else ""
        if not self._places.admit(self):
            self.abort()
        elif not self.peer:
            self.keep()

    def keep(self) -> None:
        """Keep this connection open when the listener has too many."""
        self._places.keep(self)

    def abort(self) -> None:
        """Close the connection without waiting for the client."""
        self.force_close()
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Release the connection's place in the limit."""
        self._places.release(self)
        super().connection_lost(exc)

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer malformed requests with problem details. The client caused them, so they are logged at debug level
        only."""
        request_id = str(ULID()).lower()
        log.debug("api-malformed-request", request_id=request_id, error=str(exc or message))
        detail = (message or "the agent failed to answer").strip().splitlines()[0]
        headers = {str(hdrs.SERVER): "hearth", "X-Request-ID": request_id}
        response = problems.from_status(status, detail, request_id=request_id, headers=headers)
        response.force_close()
        return response


def connections(server: web.Server) -> Callable[[], Connection]:
    """Return the factory of the connections of one listener, which share one limit."""
    places = Places()
    return lambda: Connection(server, places)


def has_left(request: web.Request) -> bool:
    """Whether the client has closed its connection, also if the event loop has not noticed yet."""
    transport = request.transport
    if transport is None or transport.is_closing():
        return True
    closed = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR  # macOS has no POLLRDHUP
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), closed)
    return any(events & closed for _, events in poll.poll(0))

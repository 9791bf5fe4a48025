"""The connection of one client: limits that the HTTP library lacks, and problem details for malformed requests."""

from __future__ import annotations

import asyncio
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
"""Open connections per listener; further ones are closed. The Unix socket has a limit of its own, so that the command
line works while the TCP port is flooded."""

IDLE_S: Final = 30.0
"""How long a connection may be without a complete request head: idle between requests, or sending one slowly."""


class Connection(web.RequestHandler):
    """The HTTP protocol of one client."""

    __slots__ = ("_open", "peer")

    def __init__(self, server: web.Server, open_connections: set[Connection]) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=IDLE_S,
            access_log=None,  # type: ignore[arg-type]  # None turns it off, as in the library's own runner
            auto_decompress=False,
        )
        self._open = open_connections
        self.peer = ""
        """The address of a TCP client; empty on the Unix socket."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept the client, or close its connection if the listener has too many."""
        super().connection_made(transport)
        address = transport.get_extra_info("peername")
        self.peer = str(address[0]) if isinstance(address, tuple) else ""
        if len(self._open) < MAX_CONNECTIONS:
            self._open.add(self)
        else:
            log.warning("api-connection-refused", limit=MAX_CONNECTIONS)
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Release the connection's place in the limit."""
        self._open.discard(self)
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
    open_connections: set[Connection] = set()
    return lambda: Connection(server, open_connections)


def has_left(request: web.Request) -> bool:
    """Whether the client has closed its connection, also if the event loop has not noticed yet."""
    transport = request.transport
    if transport is None or transport.is_closing():
        return True
    closed = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR  # macOS has no POLLRDHUP
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), closed)
    return any(events & closed for _, events in poll.poll(0))

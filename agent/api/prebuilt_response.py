"""Responses that are serialised before the request: only their bytes are left to send.

The library builds, orders and checks the headers of its own responses for every request. For the one document that
hundreds of controllers poll this took a sixth of the response time (`scripts/bench/api`)."""

from __future__ import annotations

from email.utils import formatdate
from time import time
from typing import TYPE_CHECKING

from aiohttp import ClientConnectionResetError, HttpVersion11, web

from agent.api.request_keys import REQUEST_ID

if TYPE_CHECKING:
    from asyncio import Transport
    from collections.abc import Mapping
    from http import HTTPStatus

    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.web_request import BaseRequest


class PrebuiltResponse:
    """A status, headers and body as bytes, except the request's id and the date."""

    __slots__ = ("_body", "_head", "status")

    def __init__(self, status: HTTPStatus, headers: Mapping[str, str], body: bytes = b"") -> None:
        lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
        self.status = status.value
        self._head = "\r\n".join(lines).encode("ascii")
        self._body = body

    def bytes_for(self, request_id: str) -> bytes:
        """Return the bytes of the response to one request."""
        return b"%b\r\nDate: %b\r\nX-Request-ID: %b\r\n\r\n%b" % (
            self._head,
            _date.now(),
            request_id.encode("ascii"),
            self._body,
        )


class PrebuiltStreamResponse(web.StreamResponse):
    """Sends a `PrebuiltResponse`. Only for requests that it `suits`; the library keeps their connection."""

    def __init__(self, answer: PrebuiltResponse) -> None:
        super().__init__(status=answer.status)
        self._answer = answer
        self._bytes = b""
        self._transport: Transport | None = None

    @staticmethod
    def suits(request: web.Request) -> bool:
        """Whether the client uses HTTP/1.1 with keep-alive, as pollers do, so that no header depends on the client.

        The client must also have read everything sent before. The library answers a client that does not read, because
        it waits for the client; responses sent from here would accumulate in memory."""
        transport = request.transport
        return (
            request.method == "GET"
            and request.version == HttpVersion11
            and request.keep_alive
            and transport is not None
            and not transport.get_write_buffer_size()
        )

    @property
    def keep_alive(self) -> bool:
        """Whether the connection stays open: see `suits`."""
        return True

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:
        """Store the bytes and the transport: `write_eof` sends everything."""
        self._bytes = self._answer.bytes_for(request[REQUEST_ID])
        self._transport = request.transport
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Send the response. Raises `ClientConnectionResetError` if the client disconnected."""
        if self._transport is None or self._transport.is_closing():
            raise ClientConnectionResetError("the client disconnected")
        self._transport.write(self._bytes)


class _Date:
    """The Date header (RFC 9110 §6.6.1), which changes once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._text = b""

    def now(self) -> bytes:
        """Return the header's value now."""
        second = int(time())
        if second != self._second:
            self._second, self._text = second, formatdate(second, usegmt=True).encode("ascii")
        return self._text


_date = _Date()

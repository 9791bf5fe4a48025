"""Answers whose bytes stand before anybody asks: all that is left to do is to send them.

The library's own responses build, order and check their headers anew for every request. For the one document that
hundreds of controllers poll this was a sixth of an answer's time (`scripts/bench/api`).
"""

from __future__ import annotations

from email.utils import formatdate
from time import time
from typing import TYPE_CHECKING

from aiohttp import ClientConnectionResetError, HttpVersion11, web

from agent.api.context import REQUEST_ID

if TYPE_CHECKING:
    from asyncio import Transport
    from collections.abc import Mapping
    from http import HTTPStatus

    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.web_request import BaseRequest


class ReadyAnswer:
    """A status, headers and body as they go over the wire, all but the request's id and the date."""

    __slots__ = ("_body", "_head", "status")

    def __init__(self, status: HTTPStatus, headers: Mapping[str, str], body: bytes = b"") -> None:
        lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
        self.status = status.value
        self._head = "\r\n".join(lines).encode("ascii")
        self._body = body

    def bytes_for(self, request_id: str) -> bytes:
        """Return the whole answer to one request."""
        return b"%b\r\nDate: %b\r\nX-Request-ID: %b\r\n\r\n%b" % (
            self._head,
            _date.now(),
            request_id.encode("ascii"),
            self._body,
        )


class ReadyResponse(web.StreamResponse):
    """Sends a `ReadyAnswer`. Only for requests that it `suits`; the library goes on with their connection."""

    def __init__(self, answer: ReadyAnswer) -> None:
        super().__init__(status=answer.status)
        self._answer = answer
        self._bytes = b""
        self._transport: Transport | None = None

    @staticmethod
    def suits(request: web.Request) -> bool:
        """Whether the client speaks HTTP/1.1 and will ask again, as pollers do: then no header depends on it.

        And whether it has taken all that it was sent. One that asks and does not read is for the library, which waits
        for it: what is sent from here would pile up.
        """
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
        """Whether the connection stays: see `suits`."""
        return True

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:
        """Remember whom to send to: everything goes out at the end, in one piece."""
        self._bytes = self._answer.bytes_for(request[REQUEST_ID])
        self._transport = request.transport
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Send all. Raises `ClientConnectionResetError` when the client is gone."""
        if self._transport is None or self._transport.is_closing():
            raise ClientConnectionResetError("the client is gone")
        self._transport.write(self._bytes)


class _Date:
    """The Date header (RFC 9110 §6.6.1), which changes once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._text = b""

    def now(self) -> bytes:
        """Return it as of now."""
        second = int(time())
        if second != self._second:
            self._second, self._text = second, formatdate(second, usegmt=True).encode("ascii")
        return self._text


_date = _Date()

"""`/v1/events`: events, as pages of JSON or as a stream of server-sent events that survives restarts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web

from agent.api import request_schemas, schemas
from agent.api.documents import event_document
from agent.api.events import without_lease
from agent.api.handler_context import context, json_response, read_query
from agent.api.operation import Operation
from agent.api.problems import RequestError
from agent.api.request_keys import CALLER

if TYPE_CHECKING:
    from agent.api.auth import Caller
    from agent.api.events import EventHub
    from agent.domain.events import Event

KEEP_ALIVE_S: Final = 15.0
"""Period of comments without events: they show proxies and clients that the connection is alive."""

MAX_COST: Final = 50.0
"""The cost of a page of 1000 events, which takes the processor as long as 50 polls of the host."""

SEND_TIMEOUT_S: Final = 30.0
"""A subscriber that reads nothing for this time is disconnected. It can continue by Last-Event-ID."""

_LAST: Final = request_schemas.LAST_NUMBER
_DIGITS: Final = len(str(_LAST))
_STREAM: Final = "text/event-stream"


async def events(request: web.Request) -> web.StreamResponse:
    """Return a page of events, or stream them if the client accepts `text/event-stream`.

    A stream begins with the next event, or after `Last-Event-ID` (or `after`).
    """
    query = read_query(request, request_schemas.EventQuery)
    if _STREAM in request.headers.get(hdrs.ACCEPT, ""):
        return await _stream(request, query)
    ctx = context(request)
    numbered = await ctx.engine.history.events(after=query.after or 0, vm=query.vm, limit=query.limit)
    caller = request[CALLER]
    page = schemas.EventPage(
        events=tuple(_visible(number, event, caller) for number, event in numbered),
        next=numbered[-1][0] if numbered else query.after or 0,
        last=ctx.events.last,
    )
    return json_response(page)


async def _stream(request: web.Request, query: request_schemas.EventQuery) -> web.StreamResponse:
    hub, caller = context(request).events, request[CALLER]
    last_sent = _resume_at(request, query, hub)
    response = web.StreamResponse(headers={hdrs.CACHE_CONTROL: "no-store"})
    response.content_type = _STREAM
    await response.prepare(request)
    await _send(request, response, b"retry: 2000\n\n")
    while True:
        try:
            async with asyncio.timeout(KEEP_ALIVE_S):
                batch = await hub.after(last_sent)
        except TimeoutError:
            await _send(request, response, b": nothing new\n\n")
            continue
        if not batch:
            return response
        last_sent = batch[-1].number
        text = b"".join(item.sse_for(caller) for item in batch if query.vm in (None, item.document.vm))
        if text:
            await _send(request, response, text)


def _visible(number: int, event: Event, caller: Caller) -> schemas.EventDocument:
    document = event_document(number, event)
    return document if caller.can_see_lease(event.owner) else without_lease(document)


def _cost(request: web.Request) -> float:
    """Return the cost of a page, in proportion to its events. A stream that resumes may send many old events first."""
    if _STREAM in request.headers.get(hdrs.ACCEPT, ""):
        return MAX_COST if "after" in request.query or "Last-Event-ID" in request.headers else 1.0
    limit = request.query.get("limit", "100")
    events = float(limit[:5]) if limit.isascii() and limit.isdigit() else 0.0
    return 1 + min(events, 1000.0) / 1000 * MAX_COST


def _resume_at(request: web.Request, query: request_schemas.EventQuery, hub: EventHub) -> int:
    """Return the number of the last event that the client has."""
    header = request.headers.get("Last-Event-ID", "")
    if header and not (header.isascii() and header.isdigit() and len(header) <= _DIGITS and int(header) <= _LAST):
        raise RequestError(
            f"Last-Event-ID is {header[:40]!r}, which is no event number", remedy="send the id of an event"
        )
    if header:
        return int(header)
    return hub.last if query.after is None else query.after


async def _send(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    try:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await response.write(data)
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()  # closing would wait for the client that reads nothing
        raise ConnectionResetError("the subscriber takes nothing") from None


OPERATIONS: Final = (
    Operation("events", "GET", "/v1/events", events, "Events, as pages or as a live stream", schemas.EventPage,
              query=request_schemas.EventQuery, errors=(422,), stream=_STREAM, cost=_cost),
)  # fmt: skip

"""`/v1/host`: what this host is, carries and could carry."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web

from agent.api import requests, schemas
from agent.api.context import answer, context, not_modified, read_query
from agent.api.operation import Operation
from agent.api.ready import ReadyResponse

if TYPE_CHECKING:
    from agent.api.front import Quick
    from agent.api.views import HostView

_ONE_TAG: Final = re.compile(r'"[^"]*"')
"""One strong entity tag (RFC 9110 §8.8.3)."""


async def host(request: web.Request) -> web.Response:
    """Answer the host document, or 304 when the client has it.

    With `after`, wait until the sequence is another than that one, at most `wait_s`.
    """
    wanted, ctx = read_query(request, requests.HostQuery), context(request)
    if wanted.after is not None:
        with suppress(TimeoutError):
            async with asyncio.timeout(wanted.wait_s):
                await ctx.engine.history.changed(wanted.after)
    rendered = ctx.host_view.render()
    return not_modified(request, rendered.etag) or answer(rendered.body, etag=rendered.etag)


def quick(view: HostView) -> Quick:
    """Return what answers polls before they are routed: all but odd ones, or with a query or several tags."""

    def answered(request: web.Request) -> web.StreamResponse | None:
        if not ReadyResponse.suits(request):
            return None
        sent, rendered = request.headers.get(hdrs.IF_NONE_MATCH), view.render()
        if sent == rendered.quoted:
            return ReadyResponse(rendered.unchanged)
        return ReadyResponse(rendered.whole) if sent is None or _ONE_TAG.fullmatch(sent) else None

    return answered


OPERATIONS: Final = (
    Operation("host", "GET", "/v1/host", host, "What this host is, carries and could carry", schemas.HostDocument,
              query=requests.HostQuery, etag=True, errors=(422,)),
)  # fmt: skip

"""`/v1/host`: the host document."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web

from agent.api import request_schemas, schemas
from agent.api.handler_context import context, json_response, not_modified, read_query
from agent.api.operation import Operation
from agent.api.prebuilt_response import PrebuiltStreamResponse

if TYPE_CHECKING:
    from agent.api.dispatch import FastPath
    from agent.api.host_document_cache import HostDocumentCache

_ONE_TAG: Final = re.compile(r'"[^"]*"')
"""One strong entity tag (RFC 9110 §8.8.3)."""


async def host(request: web.Request) -> web.Response:
    """Return the host document, or 304 if the client has it.

    With `after`, wait until the sequence differs from it, at most `wait_s`.
    """
    query, ctx = read_query(request, request_schemas.HostQuery), context(request)
    if query.after is not None:
        with suppress(TimeoutError):
            async with asyncio.timeout(query.wait_s):
                await ctx.engine.history.changed(query.after)
    rendered = ctx.host_cache.render()
    return not_modified(request, rendered.etag) or json_response(rendered.body, etag=rendered.etag)


def quick(view: HostDocumentCache) -> FastPath:
    """Return the fast path of polls. It leaves requests with a query or several tags to the route."""

    def answered(request: web.Request) -> web.StreamResponse | None:
        if not PrebuiltStreamResponse.suits(request):
            return None
        sent, rendered = request.headers.get(hdrs.IF_NONE_MATCH), view.render()
        if sent == rendered.quoted:
            return PrebuiltStreamResponse(rendered.unchanged)
        return PrebuiltStreamResponse(rendered.whole) if sent is None or _ONE_TAG.fullmatch(sent) else None

    return answered


OPERATIONS: Final = (
    Operation("host", "GET", "/v1/host", host, "The host document", schemas.HostDocument,
              query=request_schemas.HostQuery, etag=True, errors=(422,)),
)  # fmt: skip

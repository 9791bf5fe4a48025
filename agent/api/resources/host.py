"""`/v1/host`: what this host is, carries and could carry."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from agent.api import requests, schemas
from agent.api.context import answer, context, not_modified, read_query
from agent.api.operation import Operation

if TYPE_CHECKING:
    from aiohttp import web


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


OPERATIONS: Final = (
    Operation("host", "GET", "/v1/host", host, "What this host is, carries and could carry", schemas.HostDocument,
              query=requests.HostQuery, etag=True, errors=(422,)),
)  # fmt: skip

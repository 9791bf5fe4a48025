"""`/v1/host`: what this host is, carries and could carry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.api import schemas
from agent.api.context import answer, context, not_modified
from agent.api.operation import Operation

if TYPE_CHECKING:
    from aiohttp import web


async def host(request: web.Request) -> web.Response:
    """Answer the host document, or 304 when the client has it."""
    rendered = context(request).host_view.render()
    return not_modified(request, rendered.etag) or answer(rendered.body, etag=rendered.etag)


OPERATIONS: Final = (
    Operation("host", "GET", "/v1/host", host, "What this host is, carries and could carry", schemas.HostDocument,
              etag=True),
)  # fmt: skip

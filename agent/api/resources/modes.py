"""`/v1/host/cordon`, `/uncordon`, `/drain`: the mode of this host. Durable before the response."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.api import request_schemas, schemas
from agent.api.documents import mode_document
from agent.api.handler_context import context, finish_write, json_response, read_query
from agent.api.operation import Operation
from agent.domain.model import Mode

if TYPE_CHECKING:
    from aiohttp import web


async def cordon(request: web.Request) -> web.Response:
    """Stop granting leases. The pools stay warm, granted leases stay valid, and waiting requests are refused."""
    return await _set(request, Mode.CORDONED)


async def uncordon(request: web.Request) -> web.Response:
    """Grant leases again, and fill the pools if the host was drained."""
    return await _set(request, Mode.OPEN)


async def drain(request: web.Request) -> web.Response:
    """Empty the host: no leases, no new VMs; idle VMs end now, leased ones with their leases. Returns immediately."""
    return await _set(request, Mode.DRAINING)


async def _set(request: web.Request, mode: Mode) -> web.Response:
    reason = read_query(request, request_schemas.Reason).reason
    operations = context(request).engine.operations
    return json_response(mode_document(await finish_write(request, operations.set_mode(mode, reason=reason))))


OPERATIONS: Final = (
    Operation("cordon", "POST", "/v1/host/cordon", cordon, "Stop granting leases", schemas.ModeDocument,
              query=request_schemas.Reason, errors=(422,)),
    Operation("uncordon", "POST", "/v1/host/uncordon", uncordon, "Grant leases again", schemas.ModeDocument,
              query=request_schemas.Reason, errors=(422,)),
    Operation("drain", "POST", "/v1/host/drain", drain, "Empty the host", schemas.ModeDocument,
              query=request_schemas.Reason, errors=(422,)),
)  # fmt: skip

"""`/v1/leases/{id}/exec`: commands in the guests of leased VMs, run to their end or streamed.

Commands need a lease: a warm VM with changes by a command would differ from its image.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp import web

from agent.api import exec_schemas, request_schemas, schemas
from agent.api.auth import Role
from agent.api.documents import exec_document
from agent.api.exec_stream import CLOSE_S, MAX_FRAME_BYTES, PROTOCOL, ExecStream
from agent.api.handler_context import context, finish_write, json_response, read_body
from agent.api.operation import Operation
from agent.api.problems import UpgradeRequiredError
from agent.api.request_keys import CALLER, REQUEST_ID

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.hypervisors.sessions import ExecSession

log = structlog.get_logger()

ABANDON_TIMEOUT_S: Final = 60.0
"""Time for the driver to finish a start whose client disconnected."""


async def execute(request: web.Request) -> web.Response:
    """Run a command in the guest of a leased VM, and return when it has ended."""
    body = await read_body(request, request_schemas.ExecRequest)
    engine = context(request).engine
    lease = await engine.leases.get(request.match_info["id"], user=request[CALLER].lease_user)
    log.info("exec", lease=lease.id, vm=lease.vm, pool=lease.pool, program=body.argv[0])
    return json_response(exec_document(await engine.guests.execute(lease.vm, body.argv, timeout_s=body.timeout_s)))


async def stream(request: web.Request) -> web.StreamResponse:
    """Run a command in the guest of a leased VM over a WebSocket: output, input, signals and exit code.

    The first message names the command. It is killed when the connection ends.
    """
    socket = web.WebSocketResponse(
        timeout=CLOSE_S,
        protocols=(PROTOCOL,),
        compress=False,
        max_msg_size=MAX_FRAME_BYTES + 1,  # the library has this limit already
        decode_text=True,
        autoping=False,
    )
    if not socket.can_prepare(request):
        raise UpgradeRequiredError(
            "this address requires a WebSocket", remedy="send the Upgrade header, or run the command with POST"
        )
    ctx = context(request)
    lease = await ctx.engine.leases.get(request.match_info["id"], user=request[CALLER].lease_user)

    @asynccontextmanager
    async def open_session(body: exec_schemas.ExecStart) -> AsyncIterator[ExecSession]:
        log.info("exec", lease=lease.id, vm=lease.vm, pool=lease.pool, program=body.argv[0])
        opening = asyncio.ensure_future(ctx.engine.guests.open_exec(lease.vm, body.argv, stdin=body.stdin))
        try:
            session = await asyncio.shield(opening)
        except asyncio.CancelledError:
            await finish_write(request, _abandon(opening))
            raise
        try:
            yield session
        finally:
            await finish_write(request, session.close())

    await socket.prepare(request)
    task = asyncio.current_task()
    assert task is not None
    ctx.sockets[socket] = task
    try:
        exit_code = await ExecStream(socket, request_id=request[REQUEST_ID]).serve(open_session)
        log.info("exec-ended", lease=lease.id, vm=lease.vm, pool=lease.pool, exit_code=exit_code)
    finally:
        del ctx.sockets[socket]
    return socket


async def _abandon(opening: asyncio.Future[ExecSession]) -> None:
    """Kill a command that was being started when its client disconnected, or cancel a start that hangs."""
    await asyncio.wait([opening], timeout=ABANDON_TIMEOUT_S)
    if not opening.done():
        opening.cancel()
        log.warning("exec-start-hung", timeout_s=ABANDON_TIMEOUT_S)
    elif opening.exception() is None:
        await opening.result().close()


OPERATIONS: Final = (
    Operation("exec", "POST", "/v1/leases/{id}/exec", execute, "Run a command in the guest of a leased VM",
              schemas.ExecDocument, body=request_schemas.ExecRequest, errors=(404, 409, 410, 502), role=Role.LEASE),
    Operation("stream-exec", "GET", "/v1/leases/{id}/exec", stream, "Follow a command in the guest of a leased VM",
              None, status=101, errors=(404, 410, 426), role=Role.LEASE,
              receives=(exec_schemas.ExecStart, exec_schemas.ExecEndInput, exec_schemas.ExecSignal),
              sends=(exec_schemas.ExecStarted, exec_schemas.ExecExit, exec_schemas.ExecFailed)),
)  # fmt: skip

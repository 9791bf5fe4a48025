"""The aiohttp application: every operation of every resource."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aiohttp import WSCloseCode, web

from agent.api.auth import Role
from agent.api.authorization import Authorization
from agent.api.dispatch import AUTHORIZATION, FAST_PATHS, add_common_headers, authorize_route
from agent.api.events import EventHub
from agent.api.handler_context import CONTEXT, Context
from agent.api.host_document_cache import HostDocumentCache
from agent.api.resources import (
    assignment,
    events,
    evidence,
    execs,
    health,
    host,
    images,
    leases,
    modes,
    openapi,
    page,
    rollouts,
    usage,
    vms,
)
from agent.host.usage import UsageSampler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.api.auth import Authenticator
    from agent.api.engine_protocols import EngineParts
    from agent.api.operation import Operation
    from agent.api.rate_limit import RateLimiter
    from agent.telemetry.metrics import Metrics

MAX_BODY_BYTES: Final = 1 << 20
"""Largest accepted body: several times an assignment of a thousand pools."""

GRACE_S: Final = 5.0
"""How long a stopping agent waits for unfinished writes and commands."""

OPERATIONS: Final[tuple[Operation, ...]] = (
    *health.OPERATIONS,
    *host.OPERATIONS,
    *modes.OPERATIONS,
    *rollouts.OPERATIONS,
    *vms.OPERATIONS,
    *usage.OPERATIONS,
    *evidence.OPERATIONS,
    *images.OPERATIONS,
    *assignment.OPERATIONS,
    *leases.OPERATIONS,
    *execs.OPERATIONS,
    *events.OPERATIONS,
)


def build_application(
    engine: EngineParts, metrics: Metrics, authenticator: Authenticator, limiter: RateLimiter
) -> web.Application:
    """Return the application that serves `engine`. `authenticator` identifies TCP callers, `limiter` limits their rate.

    It needs a `Dispatcher` in front of it, which `Server` adds.
    """
    application = web.Application(middlewares=[authorize_route], client_max_size=MAX_BODY_BYTES)
    application[usage.SAMPLER] = UsageSampler()
    costs = {operation.path: operation.cost for operation in OPERATIONS if operation.cost is not None}
    needs = {("GET", path): Role.NONE for path in page.FILES}
    for operation in (*OPERATIONS, *openapi.contract(OPERATIONS)):
        needs[operation.method, operation.path] = operation.needs
        if operation.method == "GET":
            application.router.add_get(operation.path, operation.handler)  # HEAD too
        else:
            application.router.add_route(operation.method, operation.path, operation.handler)
    for path in page.FILES:
        application.router.add_get(path, page.page)
    view = HostDocumentCache(engine)
    application[CONTEXT] = Context(engine, metrics, view, EventHub(engine))
    application[AUTHORIZATION] = Authorization(authenticator, limiter, needs, costs)
    application[FAST_PATHS] = {"/v1/host": host.quick(view)}
    application.on_response_prepare.append(add_common_headers)
    application.cleanup_ctx.append(_follow_events)
    application.on_shutdown.append(_close_streams)
    return application


async def _follow_events(application: web.Application) -> AsyncIterator[None]:
    hub = application[CONTEXT].events
    await hub.start()
    following = asyncio.create_task(hub.run(), name="events")
    yield
    following.cancel()
    await asyncio.wait([following])


async def _close_streams(application: web.Application) -> None:
    """Close every stream, and wait for writes of disconnected clients."""
    application[CONTEXT].events.close()
    sockets = dict(application[CONTEXT].sockets)
    await asyncio.gather(*(socket.close(code=WSCloseCode.GOING_AWAY) for socket in sockets))
    if sockets:
        await asyncio.wait(sockets.values(), timeout=GRACE_S)
    if unfinished := application[CONTEXT].unfinished:
        await asyncio.wait(unfinished, timeout=GRACE_S)

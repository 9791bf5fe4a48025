"""The aiohttp application: every operation of every resource behind the same middlewares."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aiohttp import WSCloseCode, web

from agent.api.admission import Admission
from agent.api.auth import Role
from agent.api.context import CONTEXT, Context
from agent.api.events import EventHub
from agent.api.front import ADMISSION, QUICK, admitted, name_the_answer
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
from agent.api.views import HostView
from agent.host.usage import UsageSampler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.api.auth import Gate
    from agent.api.limits import RateLimiter
    from agent.api.operation import Operation
    from agent.api.ports import Engine
    from agent.telemetry.metrics import Metrics

MAX_BODY_BYTES: Final = 1 << 20
"""Largest body taken: an assignment of a thousand pools fits several times."""

GRACE_S: Final = 5.0
"""How long a stopping agent waits for writes and commands that are being ended."""

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


def build_application(engine: Engine, metrics: Metrics, gate: Gate, limiter: RateLimiter) -> web.Application:
    """Return the application that serves `engine`. `gate` decides who TCP callers are, `limiter` how often they ask.

    It is complete only behind its `Front`, which `Server` puts there.
    """
    application = web.Application(middlewares=[admitted], client_max_size=MAX_BODY_BYTES)
    application[usage.SAMPLER] = UsageSampler()
    needs = {("GET", path): Role.NONE for path in page.FILES}
    for operation in (*OPERATIONS, *openapi.contract(OPERATIONS)):
        needs[operation.method, operation.path] = operation.needs
        if operation.method == "GET":
            application.router.add_get(operation.path, operation.handler)  # HEAD too
        else:
            application.router.add_route(operation.method, operation.path, operation.handler)
    for path in page.FILES:
        application.router.add_get(path, page.page)
    view = HostView(engine)
    application[CONTEXT] = Context(engine, metrics, view, EventHub(engine))
    application[ADMISSION] = Admission(gate, limiter, needs)
    application[QUICK] = {"/v1/host": host.quick(view)}
    application.on_response_prepare.append(name_the_answer)
    application.cleanup_ctx.append(_follow_events)
    application.on_shutdown.append(_let_go)
    return application


async def _follow_events(application: web.Application) -> AsyncIterator[None]:
    hub = application[CONTEXT].events
    await hub.start()
    following = asyncio.create_task(hub.run(), name="events")
    yield
    following.cancel()
    await asyncio.wait([following])


async def _let_go(application: web.Application) -> None:
    """End every stream, and see writes through whose clients are gone."""
    application[CONTEXT].events.close()
    sockets = dict(application[CONTEXT].sockets)
    await asyncio.gather(*(socket.close(code=WSCloseCode.GOING_AWAY) for socket in sockets))
    if sockets:
        await asyncio.wait(sockets.values(), timeout=GRACE_S)
    if unfinished := application[CONTEXT].unfinished:
        await asyncio.wait(unfinished, timeout=GRACE_S)

"""`/livez`, `/readyz`, `/metrics`: cheap, without I/O, for frequent polls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web
from prometheus_client.exposition import choose_encoder

from agent.api import schemas
from agent.api.auth import Role
from agent.api.documents import COUNTED_STATES, slots
from agent.api.handler_context import context, json_response
from agent.api.operation import Operation
from agent.domain.breaker import Scope

if TYPE_CHECKING:
    from agent.api.engine_protocols import EngineParts
    from agent.domain.world import World
    from agent.telemetry.metrics import Metrics

STUCK_AFTER_S: Final = 60.0
"""Age of the last reconcile pass from which the agent is not alive."""


async def livez(request: web.Request) -> web.Response:
    """Return whether the reconciler runs."""
    age_s = context(request).engine.health.heartbeat_age_s()
    live = schemas.Live(ok=age_s < STUCK_AFTER_S, heartbeat_age_s=max(0.0, age_s))
    return json_response(live, status=200 if live.ok else 503)


async def readyz(request: web.Request) -> web.Response:
    """Return whether this host grants leases, with named checks."""
    checks = tuple(
        schemas.CheckResult(name=check.name, ok=check.ok, reason=check.reason)
        for check in context(request).engine.health.readiness()
    )
    ready = schemas.Ready(ok=all(check.ok for check in checks), checks=checks)
    return json_response(ready, status=200 if ready.ok else 503)


METRICS_COST: Final = 20.0
"""The cost of a scrape, which takes the processor as long as 20 polls of the host."""


async def metrics(request: web.Request) -> web.Response:
    """Answer a Prometheus scrape. Gauges are computed from the world at that moment."""
    ctx = context(request)
    _set_gauges(ctx.metrics, ctx.engine)
    encode, content_type = choose_encoder(request.headers.get(hdrs.ACCEPT, ""))
    return web.Response(body=encode(ctx.metrics.registry), headers={hdrs.CONTENT_TYPE: content_type})


def _set_gauges(metrics: Metrics, engine: EngineParts) -> None:
    world, identity = engine.host.world(), engine.host.identity
    metrics.build.labels(version=identity.agent_version, hypervisor=identity.hypervisor).set(1)
    metrics.heartbeat_age.set(engine.health.heartbeat_age_s())
    for condition in engine.host.conditions():
        metrics.condition.labels(type=condition.type).set(condition.problem)
    for state, count in slots(world).model_dump(exclude={"total", "used"}).items():
        metrics.slots.labels(state=state).set(count)
    for (scope, state), count in breakers(world).items():
        metrics.breakers.labels(scope=scope, state=state).set(count)
    for gauge in (metrics.vms, metrics.warm_target, metrics.waiters):
        gauge.clear()
    for pool in world.pools:
        metrics.warm_target.labels(pool=pool.name).set(pool.warm)
        metrics.waiters.labels(pool=pool.name).set(sum(request.pool == pool.name for request in world.requests))
        for state in COUNTED_STATES:
            metrics.vms.labels(pool=pool.name, state=state).set(0)
    for vm in world.vms:
        metrics.vms.labels(pool=vm.pool, state=vm.state).inc()


def breakers(world: World) -> dict[tuple[str, str], int]:
    """Return how many breakers there are by scope and by state, `open` or `closed`."""
    counts: dict[tuple[str, str], int] = {(scope, state): 0 for scope in Scope for state in ("open", "closed")}
    for key, breaker in world.breakers.items():
        if breaker.failures:
            counts[key.scope, "open" if breaker.is_open(world.now_s) else "closed"] += 1
    return counts


OPERATIONS: Final = (
    Operation("livez", "GET", "/livez", livez, "Whether the reconciler runs", schemas.Live, also=(503,),
              role=Role.NONE),
    Operation("readyz", "GET", "/readyz", readyz, "Whether the host grants leases", schemas.Ready, also=(503,),
              role=Role.NONE),
    Operation("metrics", "GET", "/metrics", metrics, "Prometheus metrics", "text/plain", cost=lambda _: METRICS_COST),
)  # fmt: skip

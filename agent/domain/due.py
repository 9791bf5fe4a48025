"""When the planner must look again even if nothing happens: the next moment a rule could decide otherwise. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.domain.states import VmState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.domain.model import World


def next_due_s(world: World) -> float | None:
    """Return the earliest moment after now at which a lease, a breaker or a resolution runs out, if any does."""
    return min((due_s for due_s in _moments(world) if due_s > world.now_s), default=None)


def _moments(world: World) -> Iterator[float]:
    for lease in world.leases:
        yield lease.expires_at_s
    for breaker in world.breakers.values():
        yield breaker.open_until_s
    for vm in world.vms:
        pool = world.pool(vm.pool)
        if pool is not None and vm.ready_at_s is not None and vm.state is VmState.READY:
            yield from (vm.created_at_s + pool.max_age_s,) if pool.max_age_s else ()
            yield from (vm.ready_at_s + pool.max_idle_s,) if pool.max_idle_s else ()
    for resolution in world.resolutions.values():
        yield resolution.at_s + world.resolve_period_s

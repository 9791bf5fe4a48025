"""When the planner must look again even if nothing happens: the next moment a rule could decide otherwise. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    for resolution in world.resolutions.values():
        yield resolution.at_s + world.resolve_period_s

"""The rule that takes slots: pools by priority; in each, waiting leases, then canaries, then warm targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.domain import capacity
from agent.domain.actions import CreateVm
from agent.domain.breaker import HOST_BREAKER
from agent.domain.demand import pool_views
from agent.domain.names import vm_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.domain.demand import PoolView
    from agent.domain.model import World


@dataclass(frozen=True, slots=True)
class _Want:
    """One VM some pool would like to have. Wants are met in the order of `rank`."""

    rank: tuple[int, int, int, str]  # priority of the pool, urgency, number of the VM in its pool, name
    view: PoolView
    image: str


def fill(world: World) -> Iterator[CreateVm]:
    """Create as many wanted VMs as fit. Where not all fit, pools of one priority take turns.

    What a pool of higher priority waits for is not given to one of lower priority: `retire_outranked` is making room.
    """
    host = world.breakers.get(HOST_BREAKER)
    if world.draining or world.disk_full or (host is not None and host.is_open(world.now_s)):
        return
    room, ids = capacity.free(world), iter(world.fresh_ids)
    added: dict[str, int] = {}
    blocked: int | None = None  # the priority of a want that must wait for room
    for want in sorted(_wants(world), key=lambda want: want.rank):
        pool = want.view.spec
        if added.get(pool.name, 0) >= want.view.room_under_max or (blocked is not None and pool.priority < blocked):
            continue
        if room.lacking_for(pool.size):
            blocked = max(blocked or pool.priority, pool.priority) if capacity.could_fit(world, pool.size) else blocked
            continue
        ulid = next(ids, None)
        if ulid is None:
            return
        room = room.minus(capacity.one(pool.size))
        added[pool.name] = added.get(pool.name, 0) + 1
        yield CreateVm(vm_name(pool.name, ulid, prefix=world.name_prefix), pool, want.image)


def _wants(world: World) -> Iterator[_Want]:
    for view in pool_views(world):
        yield from _canary_want(world, view)
        yield from _serving_wants(world, view)


def _canary_want(world: World, view: PoolView) -> Iterator[_Want]:
    """Want the one VM that proves a new version: before warm VMs, but after requests that wait."""
    if view.needs_canary and view.canary_image and _usable(world, view.canary_image):
        yield _Want((-view.spec.priority, 1, 0, view.spec.name), view, view.canary_image)


def _serving_wants(world: World, view: PoolView) -> Iterator[_Want]:
    """Want what is missing of the serving version. `min_ready` and waiting requests outrank the warm target."""
    image = view.rollout.serving
    if image is None or not _usable(world, image):
        return
    have = len(view.of(image)) + len(view.of(view.canary_image) if view.canary_image else ())
    urgent = view.waiting + (view.spec.min_ready if view.canary_image else 0)
    for number in range(have, view.wanted):
        urgency = 0 if number < urgent else 2
        yield _Want((-view.spec.priority, urgency, number, view.spec.name), view, image)


def _usable(world: World, digest: str) -> bool:
    breaker = world.breakers.get(digest)
    return world.has_image(digest) and not (breaker is not None and breaker.is_open(world.now_s))

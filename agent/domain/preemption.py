"""The rule that frees slots for what is wanted more: requests that wait before idle VMs, higher pools before lower.

Only VMs that nobody waits for are given up, and only one for each request, so a slot that changes hands has a use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.domain import capacity
from agent.domain.actions import DestroyVm
from agent.domain.fairness import unserved
from agent.domain.pool_view import pool_views, shortage, usable
from agent.domain.states import VmState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent.domain.model import Vm, World
    from agent.domain.pool_view import PoolView


def preempt(world: World) -> Iterator[DestroyVm]:
    """Give up idle VMs for requests of other pools that find no room, else one for a pool of higher priority."""
    if world.draining or world.disk_full:
        return
    views, room = pool_views(world), capacity.free(world)
    starved = [view for view in views if _finds_no_room(world, view, room)]
    freeing = sum(vm.state in (VmState.FAILED, VmState.STOPPING) for vm in world.vms)
    requests = [
        (-view.spec.priority, waiter.since_s, waiter.id, view.spec.name)
        for view in starved
        for waiter in unserved(world, view)[: view.room_under_max]
    ]
    if requests:
        yield from _for_requests([pool for *_, pool in sorted(requests)[freeing:]], _given_up(world, views))
    elif not freeing:
        yield from _for_pools(world, views, starved)


def _for_requests(pools: Sequence[str], idle: list[Vm]) -> Iterator[DestroyVm]:
    for pool in pools:
        victim = next((vm for vm in idle if vm.pool != pool), None)
        if victim is not None:
            idle.remove(victim)
            yield DestroyVm(victim.name, f"a request for a VM of pool {pool} waits for its room")


def _for_pools(world: World, views: Sequence[PoolView], starved: Sequence[PoolView]) -> Iterator[DestroyVm]:
    for view in starved:
        if shortage(view) > 0 and view.room_under_max > 0:
            lower = [other for other in views if other.spec.priority < view.spec.priority]
            reason = f"pool {view.spec.name} of higher priority needs its room"
            yield from (DestroyVm(vm.name, reason) for vm in _given_up(world, lower)[:1])
            return


def _given_up(world: World, views: Sequence[PoolView]) -> list[Vm]:
    """Return the idle VMs nobody waits for, in the order they are given up.

    The lowest pool's first, of equals that with the most; in a pool those that still boot first, then the oldest.
    """
    order: list[Vm] = []
    for view in sorted(views, key=lambda view: (view.spec.priority, -len(view.idle), view.spec.name)):
        idle = [vm for vm in view.idle if vm.state is not VmState.CREATING and vm.name not in world.busy]
        idle.sort(key=lambda vm: (vm.state is VmState.READY, vm.created_at_s))
        order += idle[: max(0, len(view.idle) - view.waiting)]
    return order


def _finds_no_room(world: World, view: PoolView, room: capacity.Resources) -> bool:
    """Whether a pool that could run VMs lacks only the room that others hold."""
    images = filter(None, (view.rollout.serving, view.canary_image))
    runnable = any(usable(world, image) for image in images)
    size = view.spec.size
    return runnable and capacity.could_fit(world, size) and room.lacking_for(size) is not None

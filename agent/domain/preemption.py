"""Preemption: which idle VMs are torn down to free slots for other pools.

A waiting lease request preempts idle VMs of any other pool; a pool of higher priority that is short of VMs preempts
idle VMs of lower priority. Leased VMs and idle VMs that a request waits for are never preempted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.domain import capacity
from agent.domain.actions import DestroyVm
from agent.domain.pool_view import can_start, pool_views, shortage, unserved_requests
from agent.domain.states import VmState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent.domain.model import Vm
    from agent.domain.pool_view import PoolView
    from agent.domain.world import World


def preempt(world: World) -> Iterator[DestroyVm]:
    """Tear down one idle VM for each request that no slot is free for, else one for a pool of higher priority.

    A VM that is failed or being torn down frees a slot already: one request less needs another.
    """
    if world.is_draining or world.disk_full:
        return
    views, free = pool_views(world), capacity.free(world)
    blocked = [view for view in views if _lacks_slot(world, view, free)]
    slots_to_come = sum(vm.state in (VmState.FAILED, VmState.STOPPING) for vm in world.vms)
    requests = [
        (-view.spec.priority, request.since_s, request.id, view.spec.name)
        for view in blocked
        for request in unserved_requests(world, view)[: view.free_under_max]
    ]
    if requests:
        pools = [pool for *_, pool in sorted(requests)[slots_to_come:]]
        yield from _preempt_for_requests(pools, _preemptible(world, views))
    elif not slots_to_come:
        yield from _preempt_for_priority(world, views, blocked)


def _preempt_for_requests(pools: Sequence[str], idle: list[Vm]) -> Iterator[DestroyVm]:
    """Yield one VM of another pool for each request; `pools` names the pool of each."""
    for pool in pools:
        victim = next((vm for vm in idle if vm.pool != pool), None)
        if victim is not None:
            idle.remove(victim)
            yield DestroyVm(victim.name, f"a lease request for pool {pool} needs its slot")


def _preempt_for_priority(world: World, views: Sequence[PoolView], blocked: Sequence[PoolView]) -> Iterator[DestroyVm]:
    """Yield one VM of lower priority for the first pool that is short of VMs."""
    for view in blocked:
        if shortage(view) > 0 and view.free_under_max > 0:
            lower = [other for other in views if other.spec.priority < view.spec.priority]
            reason = f"pool {view.spec.name} of higher priority needs its slot"
            yield from (DestroyVm(vm.name, reason) for vm in _preemptible(world, lower)[:1])
            return


def _preemptible(world: World, views: Sequence[PoolView]) -> list[Vm]:
    """Return the idle VMs that no request waits for, in the order of preemption.

    The pool of lowest priority comes first, of equals the one with the most idle VMs. Within a pool booting VMs come
    first, then the oldest."""
    order: list[Vm] = []
    for view in sorted(views, key=lambda view: (view.spec.priority, -len(view.idle), view.spec.name)):
        idle = [vm for vm in view.idle if vm.state is not VmState.CREATING and vm.name not in world.busy]
        idle.sort(key=lambda vm: (vm.state is VmState.READY, vm.created_at_s))
        order += idle[: max(0, len(view.idle) - len(view.requests))]
    return order


def _lacks_slot(world: World, view: PoolView, free: capacity.Resources) -> bool:
    """Whether a pool could start VMs if others did not hold the resources."""
    images = filter(None, (view.rollout.serving, view.canary_image))
    has_image = any(can_start(world, image) for image in images)
    size = view.spec.size
    return has_image and capacity.could_fit(world, size) and free.lacking_for(size) is not None

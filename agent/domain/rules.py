"""The rules of the planner but for filling: each a small pure function from the world to the actions it calls for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.domain import capacity
from agent.domain.actions import (
    DestroyVm,
    EvictImage,
    ExpireLease,
    GrantLease,
    MarkFailed,
    NotifyHolder,
    PullImage,
    RemoveStray,
    ResolveImage,
)
from agent.domain.breaker import held_back
from agent.domain.eviction import select_evictions
from agent.domain.model import Cause, Failure
from agent.domain.pool_view import pick_ready, pool_views
from agent.domain.rollout import Phase, needed_images
from agent.domain.standby import wants_standby
from agent.domain.states import RUNNING, UNPROVEN, VmState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.domain.model import Observed, PoolSpec, Vm, World
    from agent.domain.pool_view import PoolView


def remove_strays(world: World) -> Iterator[RemoveStray]:
    """Remove what carries our name on the host but is not in the journal: a leak of an earlier life."""
    if world.listing is None:
        return
    known = world.listing.known | {vm.name for vm in world.vms}
    for seen in world.listing.seen:
        if seen.ours and seen.name not in known and not held_back(world, seen.name):
            yield RemoveStray(seen.name)


def mark_missing(world: World) -> Iterator[MarkFailed]:
    """Mark what the journal knows but the host does not: dead without a word, or half-made when the agent died."""
    facts = world.listing.facts() if world.listing else {}
    for vm in world.vms:
        if vm.name in world.busy:
            continue
        if vm.state in (VmState.CREATING, VmState.SUSPENDING):
            reason = f"the agent stopped while this VM was {vm.state}"
            yield MarkFailed(vm.name, Failure(Cause.INTERRUPTED, reason, world.now_s))
        elif vm.name in facts and (missing := _missing(vm, facts[vm.name])):
            yield MarkFailed(vm.name, Failure(Cause.LOST, missing, world.now_s))


def mark_damaged(world: World) -> Iterator[MarkFailed | NotifyHolder]:
    """Give up VMs that run on without files they need. The holder of a leased one is told, once, and judges."""
    facts = world.listing.facts() if world.listing else {}
    for vm in world.vms:
        seen = facts.get(vm.name)
        if seen is None or not seen.damaged or vm.name in world.busy:
            continue
        failure = Failure(Cause.DAMAGED, seen.damaged, world.now_s)
        if vm.state is VmState.LEASED:
            if vm.reported_failure is None or vm.reported_failure.cause is not Cause.DAMAGED:
                yield NotifyHolder(vm.name, failure)
        elif vm.state in RUNNING | {VmState.STANDBY}:
            yield MarkFailed(vm.name, failure)


def tear_down_failed(world: World) -> Iterator[DestroyVm]:
    """Tear down what failed, and go on with every teardown that was interrupted or did not succeed."""
    for vm in world.vms:
        if vm.state in (VmState.FAILED, VmState.STOPPING) and not held_back(world, vm.name):
            reason = str(vm.failure.cause) if vm.failure else "teardown was interrupted"
            yield DestroyVm(vm.name, reason, evidence=vm.state is VmState.FAILED)


def expire_leases(world: World) -> Iterator[ExpireLease]:
    """End the leases whose time is over."""
    for lease in world.leases:
        if lease.expires_at_s <= world.now_s:
            yield ExpireLease(lease.id, lease.vm)


def grant_leases(world: World) -> Iterator[GrantLease]:
    """Give ready VMs to the requests that wait, longest first, while this host takes leases."""
    if not world.mode.takes_leases:
        return
    taken = world.busy
    for waiter in sorted(world.waiters, key=lambda waiter: (waiter.since_s, waiter.id)):
        rollout = world.rollouts.get(waiter.pool)
        vm = pick_ready(world.vms, waiter.pool, rollout.serving if rollout else None, taken)
        if vm:
            taken |= {vm.name}
            yield GrantLease(waiter.id, vm.name)


def retire_unassigned(world: World) -> Iterator[DestroyVm]:
    """Tear down idle VMs of pools that are not assigned any more, and all idle VMs of a host that drains."""
    assigned = {pool.name for pool in world.pools}
    for vm in world.vms:
        if vm.state not in UNPROVEN | {VmState.READY}:
            continue
        if world.draining:
            yield DestroyVm(vm.name, "the host is draining")
        elif vm.pool not in assigned:
            yield DestroyVm(vm.name, "its pool is not assigned to this host any more")


def retire_outdated(world: World) -> Iterator[DestroyVm]:
    """Take old versions out, one ready VM at a time, and never below `min_ready` while the new one comes up."""
    for view in pool_views(world):
        reason = "another image version serves this pool"
        booting = [vm for vm in view.outdated if vm.state is not VmState.READY]
        ready = [vm for vm in view.outdated if vm.state is VmState.READY]
        yield from (DestroyVm(vm.name, reason) for vm in booting if vm.state in UNPROVEN)
        surplus = min(len(ready), len(view.ready) - max(view.wanted, view.spec.min_ready))
        yield from (DestroyVm(vm.name, reason) for vm in ready[: max(0, surplus)])
        if surplus <= 0 and _should_make_room(world, view):
            yield from (DestroyVm(vm.name, reason) for vm in _making_room(view, ready))


def retire_surplus(world: World) -> Iterator[DestroyVm]:
    """Tear down idle VMs beyond what the pool wants: those that still boot first, then the oldest."""
    for view in pool_views(world):
        if view.rollout.phase in (Phase.CANARY, Phase.PROMOTING):
            continue  # two versions stand side by side; `retire_outdated` takes care of the old one
        idle = [vm for vm in view.idle if vm.state is not VmState.CREATING and vm.image == view.rollout.serving]
        idle.sort(key=lambda vm: (vm.state is VmState.READY, vm.created_at_s))
        surplus = len(idle) - view.wanted - (world.can_suspend and wants_standby(view))
        yield from (DestroyVm(vm.name, "the pool has more idle VMs than it wants") for vm in idle[: max(0, surplus)])


def retire_aged(world: World) -> Iterator[DestroyVm]:
    """Replace VMs that stood idle for too long, one at a time, and never below `min_ready`."""
    for view in pool_views(world):
        changing = any(vm.state is not VmState.READY for vm in view.idle) or len(view.ready) < view.wanted
        aged = [vm for vm in view.ready if _too_old(view.spec, vm, world.now_s)]
        if aged and not changing and (len(view.ready) > view.spec.min_ready or view.spec.min_ready >= view.wanted):
            yield DestroyVm(aged[0].name, "it stood idle for longer than its pool allows")


def resolve_references(world: World) -> Iterator[ResolveImage]:
    """Ask what each assigned reference means: when it is new, and again at a period, since tags move."""
    for reference in sorted({pool.image for pool in world.pools}):
        known = world.resolutions.get(reference)
        due = known is None or world.now_s - known.at_s >= world.resolve_period_s or bool(known.error)
        if due and not held_back(world, reference):
            yield ResolveImage(reference)


def prefetch_images(world: World) -> Iterator[PullImage]:
    """Pull the versions the pools are to serve, before a slot waits for them."""
    if world.disk_full:
        return
    for view in pool_views(world):
        wanted = {view.rollout.target, view.rollout.serving} - {None, *view.rollout.quarantined}
        for digest in sorted(filter(None, wanted)):
            if not world.has_image(digest) and not held_back(world, digest):
                yield PullImage(view.spec.image, digest)


def images_in_use(world: World) -> frozenset[str]:
    """Return the image versions that VMs run and that rollouts need, the ones to roll back to included."""
    rollouts = (needed_images(rollout) for rollout in world.rollouts.values())
    return frozenset(vm.image for vm in world.vms).union(*rollouts)


def evict_images(world: World) -> Iterator[EvictImage]:
    """Evict unused versions, least recently used first, until the disk has the free space it should have."""
    blocked = {image.digest for image in world.images if held_back(world, image.digest)}
    for image in select_evictions(world.images, images_in_use(world) | blocked, world.excess_bytes):
        yield EvictImage(image.digest)


def _missing(vm: Vm, seen: Observed | None) -> str:
    """Return what the host lacks of a VM whose listing is a fact; empty when it is as it should be."""
    if vm.state in RUNNING and not (seen and seen.running):
        return "the hypervisor does not list it as running"
    if vm.state is VmState.STANDBY and not (seen and seen.suspended):
        return "the hypervisor does not list it as suspended"
    return ""


def _too_old(pool: PoolSpec, vm: Vm, now_s: float) -> bool:
    aged = pool.max_age_s is not None and now_s - vm.created_at_s >= pool.max_age_s
    idled = pool.max_idle_s is not None and vm.ready_at_s is not None and now_s - vm.ready_at_s >= pool.max_idle_s
    return aged or idled


def _should_make_room(world: World, view: PoolView) -> bool:
    """Whether the new version needs a slot that only an old VM can give."""
    incoming = view.canary_image or view.rollout.serving
    if incoming is None or world.disk_full or not world.has_image(incoming) or held_back(world, incoming):
        return False
    if not (view.needs_canary or (view.outdated and len(view.of(incoming)) < view.wanted)):
        return False
    booting = any(vm.state is not VmState.READY for vm in view.of(incoming))
    freeing = any(vm.pool == view.spec.name and vm.state in (VmState.FAILED, VmState.STOPPING) for vm in world.vms)
    full = view.room_under_max == 0 or capacity.free(world).lacking_for(view.spec.size) is not None
    return full and not booting and not freeing


def _making_room(view: PoolView, outdated_ready: list[Vm]) -> list[Vm]:
    """Return the one VM to give up for the new version, or none when that would leave too few ready."""
    if len(view.ready) - 1 < view.spec.min_ready:
        return []
    candidates = outdated_ready or [vm for vm in view.ready if vm.image != view.canary_image]
    return candidates[:1]

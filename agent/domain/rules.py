"""The rules of the planner for VMs, leases and images. Each is a small pure function from the world to actions.

Slots are handed out by `agent.domain.allocation`, freed for others by `agent.domain.preemption`, and snapshots are
planned by `agent.domain.snapshots`. `agent.domain.plan.RULES` has the order."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

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
from agent.domain.breaker import BreakerKey, Scope, registry_key
from agent.domain.eviction import select_evictions
from agent.domain.health import TOOL_MARGIN_S
from agent.domain.model import Cause, Failure
from agent.domain.pool_view import by_waiting_time, can_start, pick_ready_vm, pool_views
from agent.domain.rollout import Phase, needed_images
from agent.domain.snapshots import needs_standby
from agent.domain.states import AWAITS_PROBES, RUNNING, VmState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent.domain.model import Observed, PoolSpec, Vm
    from agent.domain.pool_view import PoolView
    from agent.domain.rollout import Rollout
    from agent.domain.world import World

QUERIES: Final = 16
"""References that are resolved at the same time."""
QUERIES_OF_REGISTRY: Final = 8
"""References of one registry that are resolved at the same time: a hung registry must not take all places."""
PULLS: Final = 8
"""Image versions that are pulled at the same time, those of the pools of highest priority first."""


def remove_strays(world: World) -> Iterator[RemoveStray]:
    """Remove VMs of this agent that are not in the journal and do not run: leaks of an earlier run of the agent.

    One that runs may run a job: the journal or the data directory was lost or restored. It is reported and left alone.
    """
    if world.listing is None:
        return
    known = world.listing.known | {vm.name for vm in world.vms}
    for seen in world.listing.seen:
        if (
            seen.ours
            and not seen.running
            and seen.name not in known
            and not world.is_blocked(BreakerKey(Scope.VM, seen.name))
        ):
            yield RemoveStray(seen.name)


def mark_missing(world: World) -> Iterator[MarkFailed]:
    """Mark VMs failed that the host does not list, and those that the agent was creating or suspending when it
    ended."""
    listed = world.listing.idle_vms() if world.listing else {}
    for vm in world.vms:
        if vm.name in world.busy:
            continue
        if vm.state in (VmState.CREATING, VmState.SUSPENDING):
            reason = f"the agent stopped while this VM was {vm.state}"
            yield MarkFailed(vm.name, Failure(Cause.INTERRUPTED, reason, world.now_s))
        elif vm.name in listed and (reason := _missing(vm, listed[vm.name])):
            yield MarkFailed(vm.name, Failure(Cause.LOST, reason, world.now_s))


def mark_damaged(world: World) -> Iterator[MarkFailed | NotifyHolder]:
    """Mark VMs failed that run without files they need. The holder of a leased VM is notified once instead."""
    listed = world.listing.idle_vms() if world.listing else {}
    for vm in world.vms:
        seen = listed.get(vm.name)
        if seen is None or not seen.damaged or vm.name in world.busy:
            continue
        failure = Failure(Cause.DAMAGED, seen.damaged, world.now_s)
        if vm.state is VmState.LEASED:
            if vm.reported_failure is None or vm.reported_failure.cause is not Cause.DAMAGED:
                yield NotifyHolder(vm.name, failure)
        elif vm.state in RUNNING | {VmState.STANDBY}:
            yield MarkFailed(vm.name, failure)


def mark_overdue(world: World) -> Iterator[MarkFailed]:
    """Mark VMs failed whose startup deadline is long past: their probes should have reported it, and did not."""
    for vm in world.vms:
        due_s = overdue_at_s(world, vm)
        if due_s is not None and due_s <= world.now_s and vm.name not in world.busy:
            reason = f"its startup probes did not end {world.now_s - vm.since_s:.0f} s after its start"
            yield MarkFailed(vm.name, Failure(Cause.STARTUP_DEADLINE, reason, world.now_s))


def overdue_at_s(world: World, vm: Vm) -> float | None:
    """Return when the startup probes of a VM must have ended, None if none run.

    That is one round of all probes after the deadline, or after this agent began if the deadline passed before.
    """
    pool = world.pool(vm.pool)
    if pool is None or vm.state not in AWAITS_PROBES:
        return None
    deadline_s = max(vm.since_s + pool.startup_deadline_s, world.began_s)
    return deadline_s + 2 * sum(probe.timeout_s + TOOL_MARGIN_S for probe in pool.probes)


def tear_down_failed(world: World) -> Iterator[DestroyVm]:
    """Tear down failed VMs, and continue every teardown that was interrupted or failed."""
    for vm in world.vms:
        is_blocked = world.is_blocked(BreakerKey(Scope.VM, vm.name))
        if vm.state in (VmState.FAILED, VmState.STOPPING) and not is_blocked:
            reason = str(vm.failure.cause) if vm.failure else "teardown was interrupted"
            yield DestroyVm(vm.name, reason, evidence=vm.state is VmState.FAILED)


def expire_leases(world: World) -> Iterator[ExpireLease]:
    """End the expired leases, and those whose requests were answered with an error."""
    for lease in world.leases:
        if lease.expires_at_s <= world.now_s or lease.id in world.unclaimed_leases:
            yield ExpireLease(lease.vm, lease.id)


def grant_leases(world: World) -> Iterator[GrantLease]:
    """Lease ready VMs to the waiting requests, longest waiting first, while this host takes leases."""
    if not world.mode.takes_leases:
        return
    taken: frozenset[str] = frozenset()
    for request in by_waiting_time(world):
        vm = pick_ready_vm(world, request.pool, taken)
        if vm is not None:
            taken |= {vm.name}
            yield GrantLease(vm.name, request)


def retire_unassigned(world: World) -> Iterator[DestroyVm]:
    """Tear down idle VMs of pools that are not assigned, and all idle VMs of a draining host."""
    assigned = {pool.name for pool in world.pools}
    for vm in world.vms:
        if vm.state not in AWAITS_PROBES | {VmState.READY}:
            continue
        if world.is_draining:
            yield DestroyVm(vm.name, "the host is draining")
        elif vm.pool not in assigned:
            yield DestroyVm(vm.name, "its pool is not assigned to this host any more")


def retire_outdated(world: World) -> Iterator[DestroyVm]:
    """Tear down VMs of old versions as new ones become ready, one at a time, and never below `min_ready`."""
    for view in pool_views(world):
        reason = "another image version serves this pool"
        booting = [vm for vm in view.outdated if vm.state is not VmState.READY]
        ready = [vm for vm in view.outdated if vm.state is VmState.READY]
        yield from (DestroyVm(vm.name, reason) for vm in booting if vm.state in AWAITS_PROBES)
        surplus = min(len(ready), len(view.ready) - max(view.wanted, view.spec.min_ready))
        yield from (DestroyVm(vm.name, reason) for vm in ready[: max(0, surplus)])
        if surplus <= 0 and _needs_slot_of_old_vm(world, view):
            yield from (DestroyVm(vm.name, reason) for vm in _vm_to_retire(view, ready))


def retire_surplus(world: World) -> Iterator[DestroyVm]:
    """Tear down idle VMs that the pool has too many: booting ones first, then the oldest."""
    for view in pool_views(world):
        if view.rollout.phase in (Phase.CANARY, Phase.PROMOTING):
            continue  # two versions run; `retire_outdated` handles the old one
        idle = [vm for vm in view.idle if vm.state is not VmState.CREATING and vm.image == view.rollout.serving]
        idle.sort(key=lambda vm: (vm.state is VmState.READY, vm.created_at_s))
        surplus = len(idle) - view.wanted - (world.can_suspend and needs_standby(view))
        yield from (DestroyVm(vm.name, "the pool has more idle VMs than it wants") for vm in idle[: max(0, surplus)])


def retire_aged(world: World) -> Iterator[DestroyVm]:
    """Replace VMs past `max_age_s` or `max_idle_s`, one at a time, and never below `min_ready`."""
    for view in pool_views(world):
        is_changing = any(vm.state is not VmState.READY for vm in view.idle) or len(view.ready) < view.wanted
        aged = [vm for vm in view.ready if _is_too_old(view.spec, vm, world.now_s)]
        can_retire = len(view.ready) > view.spec.min_ready or view.spec.min_ready >= view.wanted
        if aged and not is_changing and can_retire:
            yield DestroyVm(aged[0].name, "it was idle for longer than its pool allows")


def resolve_references(world: World) -> Iterator[ResolveImage]:
    """Query the digest of each assigned reference when it is new, and again every `resolve_period_s`: tags move.

    At most `QUERIES` run at the same time, and `QUERIES_OF_REGISTRY` in one registry; one in a registry that failed.
    """
    references = {pool.image for pool in world.pools}
    running = Counter(registry_key(name) for name in references & world.busy)
    room = QUERIES - running.total()
    for reference in sorted(references - world.busy, key=lambda name: (_resolved_at_s(world, name), name)):
        registry = registry_key(reference)
        limit = 1 if registry in world.breakers else QUERIES_OF_REGISTRY
        if room > 0 and running[registry] < limit and _is_query_due(world, reference):
            running[registry] += 1
            room -= 1
            yield ResolveImage(reference)


def prefetch_images(world: World) -> Iterator[PullImage]:
    """Pull the versions that the pools serve or will serve, before a slot waits for them."""
    if world.disk_full:
        return
    views = pool_views(world)
    present = {image.digest for image in world.images}
    missing = frozenset[str]().union(*map(_versions_to_pull, views)) - present
    room = PULLS - len(world.busy & missing)
    planned: set[str] = set()
    for view in views:
        for digest in sorted(_versions_to_pull(view) - present - planned):
            blocked = world.is_blocked(BreakerKey(Scope.IMAGE, digest)) or world.is_blocked(
                registry_key(view.spec.image)
            )
            if room > len(planned) and not blocked:
                planned.add(digest)
                yield PullImage(view.spec.image, digest)


def _versions_to_pull(view: PoolView) -> set[str]:
    return {view.rollout.target, view.rollout.serving} - {None, *view.rollout.quarantined}  # type: ignore[return-value]


def _resolved_at_s(world: World, reference: str) -> float:
    known = world.resolutions.get(reference)
    return known.at_s if known else 0.0


def _is_query_due(world: World, reference: str) -> bool:
    known = world.resolutions.get(reference)
    is_due = (
        known is None
        or not 0 <= world.now_s - known.at_s < world.resolve_period_s  # in the future: by a clock that was ahead
        or bool(known.error)
    )
    keys = (BreakerKey(Scope.REFERENCE, reference), registry_key(reference))
    return is_due and not any(world.is_blocked(key) for key in keys)


def images_in_use(vms: Iterable[Vm], rollouts: Iterable[Rollout]) -> frozenset[str]:
    """Return the image versions that VMs run and that rollouts need, including those to roll back to."""
    return frozenset(vm.image for vm in vms).union(*(needed_images(rollout) for rollout in rollouts))


def evict_images(world: World) -> Iterator[EvictImage]:
    """Evict unused versions, least recently used first, until the disk has the free space it should have."""
    blocked = {image.digest for image in world.images if world.is_blocked(BreakerKey(Scope.IMAGE, image.digest))}
    in_use = images_in_use(world.vms, world.rollouts.values()) | blocked
    for image in select_evictions(world.images, in_use, world.excess_bytes):
        yield EvictImage(image.digest)


def _missing(vm: Vm, seen: Observed | None) -> str:
    """Return how the listing of an idle VM differs from its state; empty when they agree."""
    if vm.state in RUNNING and not (seen and seen.running):
        return "the hypervisor does not list it as running"
    if vm.state is VmState.STANDBY and not (seen and seen.suspended):
        return "the hypervisor does not list it as suspended"
    return ""


def _is_too_old(pool: PoolSpec, vm: Vm, now_s: float) -> bool:
    is_aged = pool.max_age_s is not None and now_s - vm.created_at_s >= pool.max_age_s
    is_idle = pool.max_idle_s is not None and vm.ready_at_s is not None and now_s - vm.ready_at_s >= pool.max_idle_s
    return is_aged or is_idle


def _needs_slot_of_old_vm(world: World, view: PoolView) -> bool:
    """Whether the new version needs a slot that only a VM of the old one can free."""
    incoming = view.canary_image or view.rollout.serving
    if incoming is None or world.disk_full or not can_start(world, incoming):
        return False
    if not (view.needs_canary or (view.outdated and len(view.idle_of(incoming)) < view.wanted)):
        return False
    is_booting = any(vm.state is not VmState.READY for vm in view.idle_of(incoming))
    is_freeing = any(vm.pool == view.spec.name and vm.state in (VmState.FAILED, VmState.STOPPING) for vm in world.vms)
    is_full = view.free_under_max == 0 or capacity.free(world).lacking_for(view.spec.size) is not None
    return is_full and not is_booting and not is_freeing


def _vm_to_retire(view: PoolView, outdated_ready: list[Vm]) -> list[Vm]:
    """Return the one VM that gives its slot to the new version, or none if too few would stay ready."""
    if len(view.ready) - 1 < view.spec.min_ready:
        return []
    candidates = outdated_ready or [vm for vm in view.ready if vm.image != view.canary_image]
    return candidates[:1]

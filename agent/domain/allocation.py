"""Allocation of free slots to pools: which VMs to resume or create next, and how pools of one priority alternate.

The order is: lease requests by waiting time within their pool's priority, then pools by priority; within a priority by
urgency, then the pool that was short of VMs for the longest. A pool is short since it first lacked a VM, or since it
was last given one while it still lacks others. That moment is stored with the pool's rollout, so a restart does not
change the order."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING

from agent.domain import capacity
from agent.domain.actions import CreateVm, ResumeVm
from agent.domain.breaker import HOST_KEY
from agent.domain.names import vm_name
from agent.domain.pool_view import can_start, pool_views, shortage, unserved_requests
from agent.domain.snapshots import needs_standby, template_to_start_from
from agent.domain.states import VmState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent.domain.actions import Action
    from agent.domain.model import Vm
    from agent.domain.pool_view import PoolView
    from agent.domain.rollout import Rollout
    from agent.domain.world import World


class Urgency(IntEnum):
    """Why a pool wants a VM, most urgent first."""

    REQUEST = 0  # a lease request waits for it
    MIN_READY = 1  # `min_ready` requires it during a rollout
    CANARY = 2  # it tries the new version
    WARM = 3  # the warm target requires it
    SPARE = 4  # it becomes a standby VM


@dataclass(frozen=True, slots=True)
class Want:
    """One VM that a pool wants."""

    view: PoolView
    image: str
    number: int  # its position among the VMs of its pool
    urgency: Urgency
    since_s: float  # since when the request waits, or the pool is short

    @property
    def precedence(self) -> tuple[bool, int]:
        """Requests before everything else, then priority. A lower precedence never takes the slot of a higher one."""
        return (self.urgency is not Urgency.REQUEST, -self.view.spec.priority)

    @property
    def rank(self) -> tuple[bool, int, Urgency, float, int, str]:
        """Its position among the wants of all pools."""
        return (*self.precedence, self.urgency, self.since_s, self.number, self.view.spec.name)


def fill_pools(world: World) -> Iterator[CreateVm | ResumeVm]:
    """Resume or create as many wanted VMs as fit, in the order of their rank.

    When a want does not fit, its slot is kept for it: neither a request nor a want of lower precedence takes it,
    because `preempt` is freeing a slot for it."""
    if world.is_draining or world.disk_full or world.is_blocked(HOST_KEY):
        return
    resumable = [vm for vm in world.vms if vm.state is VmState.STANDBY and vm.name not in world.busy]
    free, fresh_ids = capacity.free(world), iter(world.fresh_ids)
    given: Counter[str] = Counter()
    kept_for: tuple[bool, int] | None = None
    for want in sorted(_all_wants(world), key=lambda want: want.rank):
        pool = want.view.spec
        if kept_for is not None and (want.urgency is Urgency.REQUEST or want.precedence > kept_for):
            return
        if given[pool.name] >= want.view.free_under_max:
            continue
        if free.lacking_for(pool.size):
            if kept_for is None and _is_worth_a_slot(world, want):
                kept_for = want.precedence
            continue
        free = free.minus(capacity.resources_of(pool.size))
        given[pool.name] += 1
        standby = _standby_for(want, resumable)
        if standby is not None:
            resumable.remove(standby)
            yield ResumeVm(standby.name, pool)
        elif (ulid := next(fresh_ids, None)) is not None:
            name = vm_name(pool.name, ulid, prefix=world.name_prefix)
            yield CreateVm(name, pool, want.image, template_to_start_from(world, pool, want.image))
        else:
            return  # the next reconcile pass has new ids


def _is_worth_a_slot(world: World, want: Want) -> bool:
    """Whether a slot is kept for a want that does not fit now. `preempt` frees none for a spare VM."""
    return want.urgency is not Urgency.SPARE and capacity.could_fit(world, want.view.spec.size)


def record_shortages(world: World, actions: Iterable[Action]) -> dict[str, Rollout]:
    """Return the rollouts of a world, each with the moment since when its pool is short, after these actions.

    The moment is stored only for pools that share their priority with another: only those alternate.
    """
    given = Counter(action.pool.name for action in actions if isinstance(action, CreateVm | ResumeVm))
    views = pool_views(world)
    pools_of_priority = Counter(view.spec.priority for view in views)
    rollouts = dict(world.rollouts)
    for view in views:
        is_short = min(shortage(view), view.free_under_max) > given[view.spec.name]
        since_s = world.now_s if given[view.spec.name] else _short_since_s(world, view)
        kept_s = since_s if is_short and pools_of_priority[view.spec.priority] > 1 else None
        if kept_s != view.rollout.short_since_s:
            rollouts[view.spec.name] = replace(view.rollout, short_since_s=kept_s)
    return rollouts


def _short_since_s(world: World, view: PoolView) -> float:
    """Return since when a pool is short of VMs: now, unless it was short before."""
    since_s = view.rollout.short_since_s
    return world.now_s if since_s is None else since_s


def _all_wants(world: World) -> Iterator[Want]:
    """Yield the wants of all pools. Only the first want of a pool is as old as its shortage: then the next pool has its
    turn."""
    for view in pool_views(world):
        for position, want in enumerate(_wants_of(world, view)):
            is_request = want.urgency is Urgency.REQUEST
            yield want if is_request or position == 0 else replace(want, since_s=world.now_s)


def _wants_of(world: World, view: PoolView) -> Iterator[Want]:
    """Yield what one pool wants, most urgent first."""
    image = view.rollout.serving
    serving = list(_serving_wants(world, view, image)) if image is not None and can_start(world, image) else []
    yield from (want for want in serving if want.urgency <= Urgency.MIN_READY)
    if view.needs_canary and view.canary_image and can_start(world, view.canary_image):
        waiting = () if image is not None and can_start(world, image) else unserved_requests(world, view)
        urgency = Urgency.REQUEST if waiting else Urgency.CANARY
        since_s = waiting[0].since_s if waiting else _short_since_s(world, view)
        yield Want(view, view.canary_image, 0, urgency, since_s)
    yield from (want for want in serving if want.urgency > Urgency.MIN_READY)


def _serving_wants(world: World, view: PoolView, image: str) -> Iterator[Want]:
    """Yield the VMs of the serving version that a pool lacks."""
    have = len(view.idle_of(image)) + (len(view.idle_of(view.canary_image)) if view.canary_image else 0)
    waiting = len(view.requests)
    required = waiting + (view.spec.min_ready if view.canary_image else 0)
    short_since_s = _short_since_s(world, view)
    for number in range(have, view.wanted):
        if number < waiting:
            yield Want(view, image, number, Urgency.REQUEST, view.requests[number].since_s)
        else:
            urgency = Urgency.MIN_READY if number < required else Urgency.WARM
            yield Want(view, image, number, urgency, short_since_s)
    if world.can_suspend and needs_standby(view) and have <= view.wanted:
        yield Want(view, image, view.wanted, Urgency.SPARE, short_since_s)


def _standby_for(want: Want, resumable: list[Vm]) -> Vm | None:
    """Return the oldest standby VM that can serve a want, or None when a new VM must be created."""
    if want.urgency is Urgency.SPARE:
        return None  # a spare VM is created to become standby itself
    fitting = [vm for vm in resumable if (vm.pool, vm.image) == (want.view.spec.name, want.image)]
    if want.urgency is not Urgency.REQUEST and any(vm.replacement_due for vm in fitting):
        return None  # resuming it would undo its suspension, again and again
    return min(fitting, key=lambda vm: vm.created_at_s, default=None)

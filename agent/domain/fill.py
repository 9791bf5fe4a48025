"""The rule that takes slots: pools by priority; in each, waiting leases, then canaries, then warm targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.domain import capacity
from agent.domain.actions import CreateVm, ResumeVm
from agent.domain.breaker import HOST_BREAKER, held_back
from agent.domain.demand import pool_views
from agent.domain.names import vm_name
from agent.domain.standby import template_for, wants_standby
from agent.domain.states import VmState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.domain.demand import PoolView
    from agent.domain.model import Vm, World


@dataclass(frozen=True, slots=True)
class _Want:
    """One VM some pool would like to have. Wants are met in the order of `rank`."""

    rank: tuple[int, int, int, str]  # priority of the pool, urgency, number of the VM in its pool, name
    view: PoolView
    image: str
    spare: bool = False  # wanted only to be put on standby


def fill(world: World) -> Iterator[CreateVm | ResumeVm]:
    """Resume or create as many wanted VMs as fit. Where not all fit, pools of one priority take turns.

    What a pool of higher priority waits for is not given to one of lower priority: `retire_outranked` is making room.
    """
    if world.draining or world.disk_full or held_back(world, HOST_BREAKER):
        return
    resumable = [vm for vm in world.vms if vm.state is VmState.STANDBY and vm.name not in world.busy]
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
        room = room.minus(capacity.one(pool.size))
        added[pool.name] = added.get(pool.name, 0) + 1
        standby = _standby_for(want, resumable)
        if standby is not None:
            resumable.remove(standby)
            yield ResumeVm(standby.name, pool)
        else:
            ulid = next(ids, None)
            if ulid is None:
                return  # more are made at the next turn
            name = vm_name(pool.name, ulid, prefix=world.name_prefix)
            yield CreateVm(name, pool, want.image, template_for(world, pool, want.image))


def _standby_for(want: _Want, resumable: list[Vm]) -> Vm | None:
    """Return the standby VM that meets a want sooner than a new one would: the oldest."""
    if want.spare:
        return None  # a spare VM is wanted to become standby itself
    fitting = [vm for vm in resumable if (vm.pool, vm.image) == (want.view.spec.name, want.image)]
    return min(fitting, key=lambda vm: vm.created_at_s, default=None)


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
    if world.can_suspend and wants_standby(view) and have <= view.wanted:
        yield _Want((-view.spec.priority, 3, view.wanted, view.spec.name), view, image, spare=True)


def _usable(world: World, digest: str) -> bool:
    return world.has_image(digest) and not held_back(world, digest)

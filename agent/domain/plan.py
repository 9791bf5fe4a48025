"""The planner: what to do now, given the world, and when to plan again. Pure.

The rules run in the order of `RULES`: those that free a slot come before those that take one. A rule never plans on a
resource that an earlier rule planned on or that an effect works on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from agent.domain import allocation, preemption, rules, snapshots
from agent.domain.actions import Decision, Effect
from agent.domain.conditions import conditions
from agent.domain.rollout import advance
from agent.domain.states import VmState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.domain.actions import Action
    from agent.domain.model import Condition
    from agent.domain.rollout import Rollout
    from agent.domain.world import World

HEARTBEAT_LIMIT_S: Final = 30.0
"""Age of the last reconcile pass from which the agent is not ready and its host document is outdated."""

RULES: Final[tuple[Callable[[World], Iterator[Action]], ...]] = (
    rules.remove_strays,
    rules.mark_missing,
    rules.mark_damaged,
    rules.mark_overdue,
    rules.tear_down_failed,
    rules.expire_leases,
    rules.grant_leases,
    rules.retire_unassigned,
    rules.retire_outdated,
    rules.retire_surplus,
    rules.retire_aged,
    preemption.preempt,
    snapshots.retire_standby,
    allocation.fill_pools,
    snapshots.suspend_spares,
    snapshots.save_templates,
    snapshots.drop_templates,
    rules.resolve_references,
    rules.prefetch_images,
    rules.evict_images,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Actions in order, the rollouts after them, and the host's conditions."""

    actions: tuple[Action, ...]
    rollouts: tuple[Rollout, ...]
    conditions: tuple[Condition, ...]

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The actions that are complete once they are written."""
        return tuple(action for action in self.actions if isinstance(action, Decision))

    @property
    def effects(self) -> tuple[Effect, ...]:
        """The actions to start."""
        return tuple(action for action in self.actions if isinstance(action, Effect))


def plan(world: World) -> Plan:
    """Return what to do now. The same world without busy resources gives the same plan again."""
    world = replace(world, rollouts=advance_rollouts(world))
    actions: list[Action] = []
    for rule in RULES:
        planned: set[str] = set()
        for action in rule(world):
            if action.resource not in world.busy and action.resource not in planned:
                actions.append(action)
                planned.add(action.resource)
        world = replace(world, busy=world.busy | planned) if planned else world
    rollouts = allocation.record_shortages(world, actions)
    return Plan(tuple(actions), tuple(rollouts.values()), conditions(world))


def advance_rollouts(world: World) -> dict[str, Rollout]:
    """Return the rollout of every assigned pool, advanced by what the world shows. Other pools have none."""
    rollouts = {}
    for pool in world.pools:
        resolution = world.resolutions.get(pool.image)
        digest = resolution.digest if resolution else None
        rollouts[pool.name] = advance(
            world.rollouts.get(pool.name), pool, digest, vms=world.vms, has_image=world.has_image, now_s=world.now_s
        )
    return rollouts


def next_due_s(world: World) -> float | None:
    """Return the next moment at which a lease, breaker, soak, resolution, startup or age limit ends, if any."""
    return min((due_s for due_s in _due_moments(world) if due_s > world.now_s), default=None)


def _due_moments(world: World) -> Iterator[float]:
    for lease in world.leases:
        yield lease.expires_at_s
    for breaker in world.breakers.values():
        yield breaker.open_until_s
    for rollout in world.rollouts.values():
        if rollout.soak_until_s is not None:
            yield rollout.soak_until_s
    for vm in world.vms:
        pool = world.pool(vm.pool)
        if pool is not None and vm.ready_at_s is not None and vm.state is VmState.READY:
            yield from (vm.created_at_s + pool.max_age_s,) if pool.max_age_s else ()
            yield from (vm.ready_at_s + pool.max_idle_s,) if pool.max_idle_s else ()
        if (overdue_s := rules.overdue_at_s(world, vm)) is not None:
            yield overdue_s
    for resolution in world.resolutions.values():
        yield resolution.at_s + world.resolve_period_s

"""The planner: what to do now, given the world. A pure function, and every rule of the product by name.

The rules run in this order, so that what frees a slot comes before what takes one. A resource that an earlier rule
works on, or that has an action under way, is left alone by the later ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from agent.domain import fill, preemption, rules, standby
from agent.domain.conditions import conditions
from agent.domain.fairness import note_shortages
from agent.domain.rollout import advance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.domain.actions import Action
    from agent.domain.model import Condition, World
    from agent.domain.rollout import Rollout

RULES: Final[tuple[Callable[[World], Iterator[Action]], ...]] = (
    rules.remove_strays,
    rules.mark_missing,
    rules.mark_damaged,
    rules.tear_down_failed,
    rules.expire_leases,
    rules.grant_leases,
    rules.retire_unassigned,
    rules.retire_outdated,
    rules.retire_surplus,
    rules.retire_aged,
    preemption.preempt,
    standby.retire_standby,
    fill.fill,
    standby.suspend_spares,
    standby.save_templates,
    standby.drop_templates,
    rules.resolve_references,
    rules.prefetch_images,
    rules.evict_images,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Actions to start now, the rollouts as they stand after this look, and the facts to tell."""

    actions: tuple[Action, ...]
    rollouts: tuple[Rollout, ...]
    conditions: tuple[Condition, ...]


def plan(world: World) -> Plan:
    """Return what to do now. Calling it again on a world that did not change and has nothing busy plans the same."""
    world = replace(world, rollouts=advance_rollouts(world))
    actions: list[Action] = []
    for rule in RULES:
        for action in rule(world):
            if action.resource not in world.busy:
                actions.append(action)
                world = replace(world, busy=world.busy | {action.resource})
    rollouts = note_shortages(world, actions)
    return Plan(tuple(actions), tuple(rollouts.values()), conditions(world))


def advance_rollouts(world: World) -> dict[str, Rollout]:
    """Return the rollout of every assigned pool after one look; records of pools no longer assigned are dropped."""
    rollouts = {}
    for pool in world.pools:
        resolution = world.resolutions.get(pool.image)
        wanted = resolution.digest if resolution else None
        rollouts[pool.name] = advance(world.rollouts.get(pool.name), pool, wanted, world)
    return rollouts

"""Who goes next where not all pools fit: requests that wait, then priorities, then whoever went without the longest.

A pool goes without since it became short of VMs, or since it was last given one while it stayed short: so pools of one
priority take turns, and none that is short is passed over for ever. That moment is kept with the pool's rollout, in the
journal, so that a restart does not send anybody back to the end of the line.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.domain.actions import CreateVm, ResumeVm
from agent.domain.pool_view import pool_views, shortage, usable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.domain.actions import Action
    from agent.domain.model import Waiter, World
    from agent.domain.pool_view import PoolView
    from agent.domain.rollout import Rollout


def without_since_s(world: World, view: PoolView) -> float:
    """Return since when a pool has gone without a VM it wants; now, if it has not."""
    since_s = view.rollout.without_since_s
    return world.now_s if since_s is None else since_s


def note_shortages(world: World, actions: Iterable[Action]) -> dict[str, Rollout]:
    """Return the rollouts of a world, each with the moment since when its pool goes without, after these actions.

    Only pools that share their priority with another compete by it; of the others nothing is kept.
    """
    given = Counter(action.pool.name for action in actions if isinstance(action, CreateVm | ResumeVm))
    views = pool_views(world)
    rivals = Counter(view.spec.priority for view in views)
    rollouts = dict(world.rollouts)
    for view in views:
        short = min(shortage(view), view.room_under_max) > given[view.spec.name]
        since_s = world.now_s if given[view.spec.name] else without_since_s(world, view)
        kept = since_s if short and rivals[view.spec.priority] > 1 else None
        if kept != view.rollout.without_since_s:
            rollouts[view.spec.name] = replace(view.rollout, without_since_s=kept)
    return rollouts


def unserved(world: World, view: PoolView) -> tuple[Waiter, ...]:
    """Return the requests of a pool that a new VM would serve, longest waiting first.

    Those are the ones for which none is there or on its way. A pool without a version it can run now may only start the
    one VM that is to prove another, for whoever waits longest.
    """
    if view.rollout.serving is not None and usable(world, view.rollout.serving):
        return view.waiters[len(view.idle) :]
    proves = view.needs_canary and view.canary_image is not None and usable(world, view.canary_image)
    return view.waiters[:1] if proves else ()

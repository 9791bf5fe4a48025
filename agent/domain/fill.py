"""The rule that takes slots: for requests that wait; then pools by priority: canaries, warm targets, standby."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.domain import capacity
from agent.domain.actions import CreateVm, ResumeVm
from agent.domain.breaker import HOST_BREAKER, held_back
from agent.domain.fairness import unserved, without_since_s
from agent.domain.names import vm_name
from agent.domain.pool_view import pool_views, usable
from agent.domain.standby import template_for, wants_standby
from agent.domain.states import VmState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.domain.model import Vm, World
    from agent.domain.pool_view import PoolView


_REQUEST, _STOCK = 0, 1
_NEEDED, _CANARY, _WARM, _SPARE = range(4)
"""How urgent what is no request is: what `min_ready` asks for in a rollout, its canary, the warm target, standby."""


@dataclass(frozen=True, slots=True)
class _Want:
    """One VM some pool would like to have."""

    view: PoolView
    image: str
    number: int  # of the VM in its pool
    urgency: int
    since_s: float | None = None  # of a request: since when it waits

    @property
    def is_request(self) -> bool:
        """Whether somebody waits for this very VM."""
        return self.since_s is not None

    @property
    def standing(self) -> tuple[int, int]:
        """What must be met before others may take the room it waits for."""
        return (_REQUEST if self.is_request else _STOCK, -self.view.spec.priority)

    def rank(self, without_since_s: float) -> tuple[int, int, int, float, int, str]:
        """Return its place among the wants of all pools, if its pool goes without since then."""
        since_s = without_since_s if self.since_s is None else self.since_s
        return (*self.standing, self.urgency, since_s, self.number, self.view.spec.name)


def fill(world: World) -> Iterator[CreateVm | ResumeVm]:
    """Resume or create as many wanted VMs as fit: for requests that wait, then by priority, then by turns.

    What a want of higher standing waits for is not given to a lower one: `preempt` is making room. Nor does a
    request get the room that one which waits longer needs.
    """
    if world.draining or world.disk_full or held_back(world, HOST_BREAKER):
        return
    resumable = [vm for vm in world.vms if vm.state is VmState.STANDBY and vm.name not in world.busy]
    room, ids, line = capacity.free(world), iter(world.fresh_ids), _Line(world)
    held_for: tuple[int, int] | None = None
    for want in line:
        pool = want.view.spec
        if held_for is not None and (want.is_request or want.standing > held_for):
            return
        if line.given[pool.name] >= want.view.room_under_max:
            continue
        if room.lacking_for(pool.size):
            held_for = held_for or (want.standing if capacity.could_fit(world, pool.size) else None)
            continue
        room = room.minus(capacity.one(pool.size))
        line.give(pool.name)
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


class _Line:
    """The wants of all pools in the order they are to be met: a pool that is given one goes behind its equals."""

    def __init__(self, world: World) -> None:
        self.given: Counter[str] = Counter()
        self._now_s = world.now_s
        self._since_s: dict[str, float] = {}
        self._next: dict[str, deque[_Want]] = {}
        self._heads: list[tuple[tuple[int, int, int, float, int, str], str]] = []
        for view in pool_views(world):
            name = view.spec.name
            self._since_s[name] = without_since_s(world, view)
            self._next[name] = deque(_wants(world, view))
            self._push(name)

    def give(self, pool: str) -> None:
        """Note that a pool is given what it wants."""
        self.given[pool] += 1
        self._since_s[pool] = self._now_s

    def __iter__(self) -> Iterator[_Want]:
        while self._heads:
            _, pool = heapq.heappop(self._heads)
            yield self._next[pool].popleft()
            self._push(pool)

    def _push(self, pool: str) -> None:
        if self._next[pool]:
            heapq.heappush(self._heads, (self._next[pool][0].rank(self._since_s[pool]), pool))


def _standby_for(want: _Want, resumable: list[Vm]) -> Vm | None:
    """Return the standby VM that meets a want sooner than a new one would: the oldest."""
    if want.urgency == _SPARE and not want.is_request:
        return None  # a spare VM is wanted to become standby itself
    fitting = [vm for vm in resumable if (vm.pool, vm.image) == (want.view.spec.name, want.image)]
    if not want.is_request and any(vm.replacement_due for vm in fitting):
        return None  # resuming would undo what stocked it, over and over
    return min(fitting, key=lambda vm: vm.created_at_s, default=None)


def _wants(world: World, view: PoolView) -> Iterator[_Want]:
    """Yield what one pool wants, most urgent first: requests, `min_ready`, a canary, warm VMs, a spare one."""
    image = view.rollout.serving
    runnable = image is not None and usable(world, image)
    serving = list(_serving_wants(world, view, image)) if image is not None and runnable else []
    yield from (want for want in serving if want.is_request or want.urgency == _NEEDED)
    if view.needs_canary and view.canary_image and usable(world, view.canary_image):
        waits = () if runnable else unserved(world, view)
        urgency, since_s = (_NEEDED, waits[0].since_s) if waits else (_CANARY, None)
        yield _Want(view, view.canary_image, 0, urgency, since_s)
    yield from (want for want in serving if not want.is_request and want.urgency != _NEEDED)


def _serving_wants(world: World, view: PoolView, image: str) -> Iterator[_Want]:
    """Want what is missing of the serving version."""
    have = len(view.of(image)) + len(view.of(view.canary_image) if view.canary_image else ())
    needed = view.waiting + (view.spec.min_ready if view.canary_image else 0)
    for number in range(have, view.wanted):
        if number < view.waiting:
            yield _Want(view, image, number, _NEEDED, view.waiters[number].since_s)
        else:
            yield _Want(view, image, number, _NEEDED if number < needed else _WARM)
    if world.can_suspend and wants_standby(view) and have <= view.wanted:
        yield _Want(view, image, view.wanted, _SPARE)

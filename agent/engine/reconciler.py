"""The loop: look at the world, plan, write the intents, start the effects. It wakes on events and at a slow tick.

One turn plans and writes its intents inside a single transaction, so a plan is never carried out on a world that has
changed since. Nothing slow happens in a turn: effects, listings and probes run beside it.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import structlog

from agent.domain.actions import GrantLease
from agent.domain.due import next_due_s
from agent.domain.events import EventKind
from agent.domain.plan import plan
from agent.domain.rollout import Rollout
from agent.engine.database import JournalError
from agent.engine.intents import intend

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.domain.model import Lease, World
    from agent.domain.plan import Plan
    from agent.engine.conditions import ConditionBoard
    from agent.engine.executor import Executor
    from agent.engine.leases import LeaseDesk
    from agent.engine.observer import Observer
    from agent.engine.state_store import StateStore, Transaction
    from agent.engine.world_builder import WorldBuilder

log = structlog.get_logger()

TICK_S: Final = 5.0
RETRY_S: Final = 1.0


class Reconciler:
    """Turns the loop whenever `awake` is set. `after_turn` is shown each new world."""

    def __init__(
        self,
        store: StateStore,
        desk: LeaseDesk,
        executor: Executor,
        observer: Observer,
        board: ConditionBoard,
        view: WorldBuilder,
        *,
        after_turn: Callable[[World], None],
        awake: asyncio.Event,
    ) -> None:
        self._store = store
        self._desk = desk
        self._executor = executor
        self._observer = observer
        self._board = board
        self._view = view
        self._after_turn = after_turn
        self._awake = awake
        self.beat_s = time.monotonic()  # when the last turn ended

    async def run(self) -> None:
        """Turn until cancelled."""
        while True:
            self._awake.clear()
            sleep_s = await self._turn_or_retry()
            self.beat_s = time.monotonic()
            try:
                async with asyncio.timeout(sleep_s):
                    await self._awake.wait()
            except TimeoutError:
                continue

    async def turn(self) -> World:
        """Take one turn and return the world it was planned on. Raises `JournalError` with nothing begun."""
        listing = self._observer.take_listing()
        leases: dict[str, Lease | None] = {}
        try:
            async with self._store.transaction() as transaction:
                world = self._view.world(listing, to_plan=True)
                planned = plan(world)
                self._board.post(planned.conditions)
                self._keep_rollouts(transaction, planned)
                for action in planned.actions:
                    intend(transaction, action, jitter=self._view.jitter())
                    if isinstance(action, GrantLease):
                        leases[action.waiter] = self._desk.intend_grant(transaction, action.waiter, action.vm)
        except JournalError:
            self._observer.put_back(listing)
            raise
        for waiter, lease in leases.items():
            if lease is not None:
                self._desk.hand_over(waiter, lease)
        for action in planned.actions:
            self._executor.start(action)
        return world

    async def _turn_or_retry(self) -> float:
        """Take a turn and return how long to sleep at most."""
        try:
            world = await self.turn()
        except JournalError as error:
            log.error("journal-unwritable", error=str(error))  # noqa: TRY400 - the message says it all
            self._tell_of_journal()
            return RETRY_S
        self._after_turn(self._view.world())
        if self._store.fault and not await self._store.try_writing():  # a turn without changes proves nothing
            self._tell_of_journal()
            return RETRY_S
        self._tell_of_journal()
        due_s = next_due_s(world)
        return TICK_S if due_s is None else max(0.01, min(TICK_S, due_s - self._view.clock()))

    def _tell_of_journal(self) -> None:
        fault = self._store.fault
        message = f"{fault}. No VM is leased, created or torn down until it can be written again" if fault else ""
        reason = "WriteFailed" if fault else ""
        self._board.post_problem("JournalWritable", self._view.clock(), reason=reason, message=message)

    def _keep_rollouts(self, transaction: Transaction, planned: Plan) -> None:
        for gone in self._store.rollouts.keys() - {rollout.pool for rollout in planned.rollouts}:
            transaction.drop(Rollout, gone)
        for rollout in planned.rollouts:
            before = self._store.rollouts.get(rollout.pool)
            if before == rollout:
                continue
            transaction.put(rollout)
            if before is None or (before.phase, before.target) != (rollout.phase, rollout.target):
                detail = f"{rollout.phase}: {rollout.reason}" if rollout.reason else str(rollout.phase)
                transaction.event(EventKind.ROLLOUT, pool=rollout.pool, image=rollout.target, detail=detail)
